import numpy as np
import pytest

from difiisr_ros.commands.demo import window_to_show


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
