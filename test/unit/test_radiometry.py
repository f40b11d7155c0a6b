"""The robust range, and how it follows a stream."""

import numpy as np
import pytest

from difiisr_models.radiometry import CountRange, RangeTracker, range_and_bulk, robust_range


def scene(low: float, high: float, dtype=np.uint16) -> np.ndarray:
    return np.linspace(low, high, 120 * 160).reshape(120, 160).astype(dtype)


def test_range_of_a_clean_frame_is_nearly_its_span():
    found = robust_range(scene(20000, 20070))
    assert 20000 <= found.lo < 20002
    assert 20068 < found.hi <= 20070


def test_dead_pixels_do_not_set_the_range():
    frame = scene(20000, 20070)
    clean = robust_range(frame)
    frame[::40, ::40] = 0
    frame[5::40, 7::40] = 65535
    dead = robust_range(frame)
    assert abs(dead.lo - clean.lo) < 2
    assert abs(dead.hi - clean.hi) < 2


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_lamp_of_a_few_pixels_widens_the_range_by_half_its_span_at_most(dtype):
    clean = robust_range(scene(20000, 20070, dtype))
    no_data = np.finfo(np.float32).max if dtype == np.float32 else 65535
    # The last two: a dead pixel.
    for brightness, widened in ((20090, 20), (20150, 35), (65535, 0), (no_data, 0)):
        frame = scene(20000, 20070, dtype)
        frame[50:53, 70:73] = brightness
        assert robust_range(frame).hi - clean.hi == pytest.approx(widened, abs=1.5)
        assert robust_range(frame).lo == pytest.approx(clean.lo, abs=1)


@pytest.mark.parametrize("value", [0, 777, 65535])
def test_a_constant_frame_has_a_range(value):
    found = robust_range(np.full((32, 32), value, np.uint16))
    assert found.span == pytest.approx(8)
    assert found.lo <= value <= found.hi


def test_float_frames_ignore_what_is_not_finite():
    frame = scene(290, 310, np.float32)
    frame[0, :50], frame[1, :50], frame[2] = np.nan, np.inf, -np.finfo(np.float32).max
    assert 289 < robust_range(frame).lo < robust_range(frame).hi < 311
    assert robust_range(np.full((16, 16), np.nan, np.float32)).span > 0


def test_normalise_maps_the_range_to_minus_one_and_one():
    counts = np.array([[1000, 2000, 3000]], np.uint16)
    np.testing.assert_allclose(CountRange(1000, 3000).normalise(counts), [[-1, 0, 1]])


def test_a_hot_object_entering_moves_the_range_slowly():
    tracker, frame = RangeTracker(), scene(7000, 9000)
    before = tracker.update(frame)
    hot = frame.copy()
    hot[40:80, 60:90] = 30000  # 6 % of the frame
    assert robust_range(hot).hi == 30000
    after = tracker.update(hot)
    assert 0 < after.hi - before.hi <= 0.051 * before.span
    assert after.lo == pytest.approx(before.lo, abs=1)


def test_another_scene_snaps():
    tracker = RangeTracker()
    tracker.update(scene(7000, 9000))
    assert tracker.update(scene(20000, 20070)) == robust_range(scene(20000, 20070))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("highest", [3, 255, 60_000])
def test_the_quantiles_are_numpys(dtype, highest):
    highest = min(highest, np.iinfo(dtype).max) if dtype != np.float32 else highest
    counts = np.random.default_rng(0).integers(0, highest, (90, 70), endpoint=True).astype(dtype)
    *_, bulk = range_and_bulk(counts)
    np.testing.assert_allclose(bulk, np.quantile(counts, (0.1, 0.5, 0.9)), rtol=1e-6)


@pytest.mark.parametrize("level", [0.0, 5e25, -3e4])
def test_a_range_that_has_shrunk_to_a_point_divides_nothing_by_zero(level):
    found = CountRange(level, level)
    assert 0 < found.span < 1e20
    assert np.isfinite(found.normalise(np.full((2, 2), level, np.float32))).all()
