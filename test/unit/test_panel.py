import numpy as np
import pytest
from PIL import Image

from difiisr_ros.commands.demo import draw_panel, window_to_show


def warm_square(left, top):
    frame = np.full((60, 80), 100.0, np.float32)
    frame[top : top + 6, left : left + 6] = 200.0
    frame[top + 2 : top + 4, left + 2 : left + 4] = 150.0
    return frame


@pytest.mark.parametrize(("left", "top"), [(30, 20), (60, 40), (10, 45)])
def test_window_holds_the_warm_thing(left, top):
    x, y, width, height = window_to_show(warm_square(left, top))
    assert x <= left
    assert left + 6 <= x + width <= 80
    assert y <= top
    assert top + 6 <= y + height <= 60


@pytest.mark.parametrize("frame", [np.zeros((16, 16)), np.full((40, 30), 7.0)])
def test_window_of_a_frame_without_anything_lies_inside(frame):
    x, y, width, height = window_to_show(frame)
    assert 0 <= x <= x + width <= frame.shape[1]
    assert 0 <= y <= y + height <= frame.shape[0]


def test_panel_is_a_picture_with_one_colour_map_for_all(tmp_path):
    frame = warm_square(30, 20)
    large = np.kron(frame, np.ones((4, 4), np.float32))
    draw_panel(tmp_path / "one.png", [("a", frame), ("b", large)], "counts")
    with Image.open(tmp_path / "one.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    # Ambient and warm, the commonest colours on the left, are as large on the right.
    half = pixels.shape[1] // 2
    colours, counts = np.unique(pixels[:, :half].reshape(-1, 3), axis=0, return_counts=True)
    for colour in colours[counts.argsort()[-2:]]:
        assert (pixels[:, half:] == colour).all(axis=-1).mean() > 0.1
