"""Recordings are sources of training frames like folders are."""

import numpy as np
import pytest
from PIL import Image
from thermal_bags import IMAGE, record

from difiisr_ros.commands.train_model import load_source
from difiisr_training.data.images import ImageSource


def load(source, data, part="train"):
    return load_source(source, data=data, part=part)


def test_a_recording_is_a_sequence_and_every_nth_message_is_used(tmp_path):
    for drive in range(5):
        record(tmp_path / "bags" / f"drive{drive}", frames=4 + drive)
    source = ImageSource("bags", val_share=0.4)
    train, val = (load(source, tmp_path, part) for part in ("train", "val"))
    assert len(train) + len(val) == 4 + 5 + 6 + 7 + 8
    assert len(val) > 8  # two whole recordings
    record(tmp_path / "one", frames=10)
    assert len(load(ImageSource("one", every=4), tmp_path)) == 3
    assert load(ImageSource("one"), tmp_path, "val") == []


def test_the_topic_may_be_asked_for(tmp_path):
    record(tmp_path / "bag")
    found = load(ImageSource("bag", topic=IMAGE), tmp_path)
    assert found[0].dtype == np.uint16
    with pytest.raises(ValueError, match="no image topic '/c'"):
        load(ImageSource("bag", topic="/c"), tmp_path)


def test_images_beside_a_recording_are_not_left_out_in_silence(tmp_path):
    record(tmp_path / "bag", frames=2)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "0.png")
    with pytest.raises(ValueError, match="1 recordings and 1 images"):
        load(ImageSource("."), tmp_path)
