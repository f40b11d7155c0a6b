"""Validation never sees a sequence that training has seen."""

from pathlib import PurePosixPath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wave_frames import save_image

from difiisr_training.data import images


def groups(*files):
    """Which of the files share a sequence: the names of each, sorted."""
    names = images.sequence_names([PurePosixPath(file) for file in files])
    found = {}
    for file, name in zip(files, names, strict=True):
        found.setdefault(name, []).append(PurePosixPath(file).stem)
    return sorted(sorted(group) for group in found.values())


MANY = range(60)
SCHEMES = {
    "numbers near each other are one drive": ("FLIR_04593 FLIR_04598 FLIR_04625", "FLIR_06099"),
    "two flights": ("0_100_30_0_03281 0_100_30_0_03288", "0_100_30_0_08070"),
    "two camera angles": ("0_100_30_0_03281", "0_100_40_0_03290"),
    "day and night": ("00056D 00058D", "00057N"),
    "folders": ("a/0001 a/0002", "b/0001"),
    "no numbers": ("cat", "dog"),
    # One sequence each.
    "nanoseconds": (" ".join(f"{1623456789000000000 + 33333333 * i}" for i in MANY),),
    "seconds and nanoseconds": (" ".join(f"{17 + i // 30}.{i * 33333333}" for i in MANY),),
    "hashes": (" ".join(f"video-frame-{i:06}-{7919**5 * i % 99991:x}" for i in MANY),),
    "every hundredth frame": (" ".join(f"frame_{100 * i:06}" for i in MANY),),
    "a film": (" ".join(f"frame{i:06}" for i in range(9)),),
    "gaps between neighbours": (" ".join(f"frame{images.LARGEST_GAP * i}" for i in range(9)),),
}


@pytest.mark.parametrize("sequences", SCHEMES.values(), ids=SCHEMES)
def test_sequences_of_known_naming_schemes(sequences):
    files = [[f"{name}.png" for name in names.split()] for names in sequences]
    stems = [sorted(PurePosixPath(file).stem for file in names) for names in files]
    assert groups(*(file for names in files for file in names)) == sorted(stems)


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=30),
    share=st.floats(0, 0.9),
    data=st.data(),
)
def test_the_split_takes_whole_sequences_up_to_the_share_in_any_order(sizes, share, data):
    names = [f"s{k}" for k, size in enumerate(sizes) for _ in range(size)]
    chosen = images.validation_sequences(names, share)
    assert sum(name in chosen for name in names) <= share * len(names)
    assert chosen == images.validation_sequences(data.draw(st.permutations(names)), share)
    assert chosen != set(names)


def test_no_sequence_is_on_both_sides_and_frames_skipped_at_the_end_on_neither(tmp_path):
    """Of eight drives of six frames; the grey value of a frame says its drive."""
    for drive in range(8):
        for frame in range(6):
            name = f"d_{1000 * drive + frame:05}.png"
            save_image(tmp_path / "drives" / name, np.full((20, 20), 10 * drive, np.uint8))

    def drawn(part, **changes):
        source = images.ImageSource("drives", **{"val_share": 0.3} | changes)
        return [int(image[0, 0]) for image in images.load_images(source, part, data=tmp_path)]

    assert not set(drawn("train")) & set(drawn("val"))
    assert len(drawn("train")) == 36
    assert len(drawn("val")) == 12  # two whole drives of 14.4 frames allowed
    assert {*drawn("train", skip_last=13), *drawn("val", skip_last=13)} == set(range(0, 60, 10))
    assert drawn("val", skip_last=42) == []  # a single sequence is kept for training
    with pytest.raises(ValueError, match="nothing to train on among 0 files"):
        drawn("train", skip_last=50)
