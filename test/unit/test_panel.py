import numpy as np
import pytest

from difiisr_ros.comparison import window_to_show


@pytest.mark.parametrize(("left", "top"), [(30, 20), (56, 40), (12, 36)])
def test_window_is_where_the_results_differ_most(left, top):
    one = np.full((60, 80), 100.0, np.float32)
    other = one.copy()
    other[top : top + 6, left : left + 6] = 200.0
    other[:, 0] = 900.0  # a rim is not looked at
    x, y, width, height = window_to_show(one, other)
    assert 80 * x <= left
    assert left + 6 <= 80 * (x + width) <= 80
    assert 60 * y <= top
    assert top + 6 <= 60 * (y + height) <= 60
