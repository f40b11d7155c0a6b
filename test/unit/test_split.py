"""Validation never sees a sequence that training has seen."""

from pathlib import PurePosixPath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from difiisr_training.data.images import ImageSource, list_images, load_images
from difiisr_training.data.sequences import LARGEST_GAP, sequence_names, validation_sequences


def groups(*files):
    """Which of the files share a sequence: the names of each, sorted."""
    names = sequence_names([PurePosixPath(file) for file in files])
    found = {}
    for file, name in zip(files, names, strict=True):
        found.setdefault(name, []).append(PurePosixPath(file).stem)
    return sorted(sorted(group) for group in found.values())


MANY = range(60)
TWO_GROUPS = {
    "numbers near each other are one drive": ("FLIR_04593 FLIR_04598 FLIR_04625", "FLIR_06099"),
    "two flights": ("0_100_30_0_03281 0_100_30_0_03288", "0_100_30_0_08070"),
    "two camera angles": ("0_100_30_0_03281", "0_100_40_0_03290"),
    "day and night": ("00056D 00058D", "00057N"),
    "folders": ("a/0001 a/0002", "b/0001"),
    "no numbers": ("cat", "dog"),
}
ONE_GROUP = {
    "nanoseconds": [f"{1623456789000000000 + 33333333 * i}" for i in MANY],
    "seconds and nanoseconds": [f"{17 + i // 30}.{i * 33333333}" for i in MANY],
    "hashes": [f"video-frame-{i:06}-{7919**5 * i % 99991:x}" for i in MANY],
    "every hundredth frame": [f"frame_{100 * i:06}" for i in MANY],
    "a film": [f"frame{i:06}" for i in range(9)],
}


@pytest.mark.parametrize("scheme", [*TWO_GROUPS, *ONE_GROUP])
def test_sequences_of_known_naming_schemes(scheme):
    if scheme in ONE_GROUP:
        expected = [ONE_GROUP[scheme]]
    else:
        expected = [names.split() for names in TWO_GROUPS[scheme]]
    found = groups(*(f"{name}.png" for names in expected for name in names))
    stems = [sorted(PurePosixPath(f"{name}.png").stem for name in names) for names in expected]
    assert found == sorted(stems)


def test_a_gap_is_measured_between_neighbours_not_from_the_first():
    files = [f"f{i}.png" for i in range(0, 10 * LARGEST_GAP, LARGEST_GAP)]
    assert len(groups(*files)) == 1
    assert len(groups("f0.png", f"f{LARGEST_GAP + 1}.png")) == 2


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=30),
    share=st.floats(0, 0.9),
    data=st.data(),
)
def test_the_split_takes_whole_sequences_up_to_the_share_in_any_order(sizes, share, data):
    names = [f"s{k}" for k, size in enumerate(sizes) for _ in range(size)]
    chosen = validation_sequences(names, share)
    assert sum(name in chosen for name in names) <= share * len(names)
    assert chosen == validation_sequences(data.draw(st.permutations(names)), share)
    assert chosen != set(names)


@pytest.fixture
def drives(tmp_path):
    """Eight drives of six frames; the grey value of a frame says its drive."""
    folder = tmp_path / "drives"
    folder.mkdir()
    for drive in range(8):
        for frame in range(6):
            pixels = np.full((20, 20), 10 * drive, np.uint8)
            Image.fromarray(pixels).save(folder / f"d_{1000 * drive + frame:05}.png")
    return tmp_path


def test_no_sequence_is_on_both_sides(drives):
    source = ImageSource("drives", val_share=0.3)
    train, val = (
        [int(image[0, 0]) for image in load_images(source, data=drives, part=part)]
        for part in ("train", "val")
    )
    assert not set(train) & set(val)
    assert len(train) + len(val) == 48
    assert len(val) == 12  # two whole drives of 14.4 frames allowed


def test_a_single_sequence_is_kept_for_training(drives):
    for path in list_images(drives / "drives")[6:]:
        path.unlink()
    source = ImageSource("drives", val_share=0.5)
    assert len(load_images(source, data=drives, part="train")) == 6
    assert load_images(source, data=drives, part="val") == []


def test_frames_skipped_at_the_end_are_on_neither_side(drives):
    source = ImageSource("drives", skip_last=13, val_share=0.3)
    seen = {
        int(image[0, 0])
        for part in ("train", "val")
        for image in load_images(source, data=drives, part=part)
    }
    assert seen == {0, 10, 20, 30, 40, 50}
    with pytest.raises(ValueError, match="nothing to train on among 0 files"):
        load_images(ImageSource("drives", skip_last=50), data=drives, part="train")
