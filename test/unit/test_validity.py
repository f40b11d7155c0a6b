"""Pixels without a measurement neither count nor spread, and come back as they were."""

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from difiisr_models import Stream, load_upscaler
from difiisr_models.fixed_pattern import PatternStrength
from difiisr_models.validity import StillPixels, fill_from_nearest, invalid_pixels


def scene(dtype=np.uint16, shift: float = 0.0) -> np.ndarray:
    y, x = np.mgrid[:60, :80]
    x = x + shift
    waves = np.sin(x / 7.1) * np.cos(y / 8.3) + 0.4 * (x + y > 70)
    return (29500 + 200 * waves).astype(dtype)


def border(width: int) -> np.ndarray:
    mask = np.ones((60, 80), bool)
    mask[width:-width, width:-width] = False
    return mask


def scattered(share: float) -> np.ndarray:
    return np.random.default_rng(0).random((60, 80)) < share


@pytest.fixture(scope="module")
def up():
    return load_upscaler("difiisr-rt-x4", device="cpu", backend="torch")


@pytest.mark.parametrize(
    ("mask", "value", "dtype", "no_data"),
    [
        (border(1), 0, np.uint16, ()),
        (border(2), 0, np.uint16, ()),
        (scattered(0.01), 0, np.uint16, ()),
        (scattered(0.002), 65535, np.uint16, ()),
        (border(1), np.nan, np.float32, ()),
        (scattered(0.01), np.inf, np.float32, ()),
        (border(1), -9999.0, np.float32, (-9999.0,)),
        (scattered(0.01), 3e38, np.float32, ()),
        (scattered(0.0008), 4e8, np.float32, ()),
    ],
)
def test_a_defect_changes_nothing_two_pixels_away_and_comes_back(up, mask, value, dtype, no_data):
    frame = scene(dtype)
    broken = np.where(mask, np.array(value, dtype), frame)
    expected = up(frame, Stream()).astype(float)
    result = up(broken, Stream(no_data))
    block = np.ones((4, 4), bool)
    np.testing.assert_array_equal(
        result[np.kron(mask, block)], np.kron(broken, block)[np.kron(mask, block)]
    )
    near = binary_dilation(mask, np.ones((5, 5)))
    difference = (result.astype(float) - expected)[~np.kron(near, block)]
    assert np.sqrt((difference**2).mean()) < 4  # of a span of 460 counts
    assert np.abs(difference).max() < 25


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_ends_of_the_scale_are_scene_where_the_scene_reaches_them(dtype):
    x = np.mgrid[:40, :50][1]
    top = np.iinfo(dtype).max
    ramp = np.clip((x / 30 - 0.3) * top, 0, top).astype(dtype)
    ramp[0] = top // 2
    assert invalid_pixels(ramp) is None


def test_a_stream_says_what_its_last_frame_showed_of_the_scene():
    stream, frame = Stream((7.0,)), scene()
    assert stream.seen is None
    frame[20, 20:23], frame[50, 60] = 7, 30777
    stream.begin_frame(frame, None)
    seen = stream.see(frame)
    assert (seen.invalid_count, seen.hottest) == (3, 30777)
    assert seen.coldest == frame[frame > 7].min()
    lo, hi = np.quantile(frame[frame > 7], (0.002, 0.998))
    assert seen.span == pytest.approx(hi - lo)
    assert seen.noise_percent == pytest.approx(100 * seen.noise / (hi - lo))
    assert seen.pattern == PatternStrength()
    stream.no_data = (7.0, 30777.0)  # acts from the next frame on
    stream.see(frame)
    assert (stream.seen.invalid_count, stream.seen.hottest) == (4, scene().max())
    stream.see(np.full((60, 80), 7, np.uint16))
    assert stream.seen.invalid_count == 4800
    assert np.isnan(stream.seen.hottest)
    stream.reset()
    assert stream.seen is None


def test_gaps_are_filled_from_the_nearest_pixel():
    frame, gap = scene(), np.zeros((60, 80), bool)
    gap[20:23, 30] = True
    filled = fill_from_nearest(frame, gap)
    np.testing.assert_array_equal(filled[~gap], frame[~gap])
    assert filled[21, 30] in (frame[21, 29], frame[21, 31])
    assert (fill_from_nearest(frame, np.ones_like(gap)) == 0).all()


def test_a_stuck_pixel_is_found_while_the_scene_moves_and_only_then():
    moving, standing = StillPixels(), StillPixels()
    rng = np.random.default_rng(0)
    for i in range(30):
        frame = scene(shift=1.7 * i) + rng.integers(0, 3, (60, 80)).astype(np.uint16)
        frame[25, 40] = 29710
        found = moving.update(frame)
        still = standing.update(scene())
    assert found.sum() == 1
    assert found[25, 40]
    assert still is None
    frame = scene()
    frame[25, 40] = 29600
    assert moving.update(frame) is None


@pytest.mark.parametrize("value", [1e10, 1e20, 9e29])
def test_a_hostile_frame_spoils_no_frame_after_the_next(value):
    up, stream, rng = load_upscaler("bicubic"), Stream(), np.random.default_rng(0)
    good = scene(np.float32)
    bad = good.copy()
    bad.flat[rng.choice(bad.size, 240, replace=False)] = value
    expected = up(good, Stream())
    up(bad, stream)
    up(good, stream)
    np.testing.assert_allclose(up(good, stream), expected, atol=0.5)
