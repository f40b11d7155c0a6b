"""Pixels without a measurement neither count nor spread, and come back as they were."""

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from difiisr_models import Stream, load_upscaler
from difiisr_models.fixed_pattern import PatternStrength
from difiisr_models.validity import StillPixels, fill, invalid_pixels


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
        (border(8), 0, np.uint16, ()),
        (scattered(0.08), np.nan, np.float32, ()),
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


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_gaps_continue_the_scene_around_them(dtype):
    frame = (np.add.outer(np.arange(60), 2 * np.arange(80)) / 2).astype(dtype)
    for gap, expected in (
        (scattered(0.1), frame),
        (border(6), np.pad(frame[6:-6, 6:-6], 6, "reflect")),
    ):
        filled = fill(np.where(gap, 0, frame), gap)
        assert filled.dtype == dtype
        np.testing.assert_array_equal(filled[~gap], frame[~gap])
        np.testing.assert_allclose(filled.astype(float), expected, atol=2)
    assert (fill(frame, np.ones_like(gap)) == 0).all()


@pytest.mark.parametrize("gap", [border(9), scattered(0.08)])
def test_what_fills_gaps_is_not_taken_for_the_noise(gap):
    noisy = scene(np.float32) + np.random.default_rng(1).normal(0, 4, (60, 80)).astype(np.float32)
    noise = []
    for frame in (noisy, np.where(gap, np.float32(np.nan), noisy)):
        stream = Stream()
        stream.begin_frame(frame, None)
        noise.append(stream.see(frame).noise)
    assert noise[1] == pytest.approx(noise[0], rel=0.2)


def test_a_dark_scene_is_no_border():
    lamp, lamps = np.zeros((2, 60, 80), np.uint8)
    lamp[20:40, 30:50], lamps[3:-3:3, 3:-3:2] = 90, 90
    assert invalid_pixels(lamp) is None
    assert invalid_pixels(lamps) is None


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
