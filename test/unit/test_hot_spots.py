"""Small hot objects keep their temperature, and integer frames their limits."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from difiisr_models import Stream, load_upscaler
from difiisr_models.resample import downsample, pack

FINE, HEIGHT, WIDTH = 8, 48, 64


@pytest.fixture(scope="module")
def up():
    return load_upscaler("difiisr-rt-x4", device="cpu", backend="torch")


def measured_again(sr: np.ndarray) -> np.ndarray:
    return downsample(pack(torch.from_numpy(sr.astype(np.float64))[None, None]))[0, 0].numpy()


def disc(
    radius: float, blur: float, at: tuple[float, float] = (24.2, 32.3)
) -> tuple[np.ndarray, float]:
    """A disc of height 1 as the camera's pixels see it, and its peak at four times the pixels."""
    y, x = np.mgrid[: HEIGHT * FINE, : WIDTH * FINE] / FINE
    fine = ((y - at[0]) ** 2 + (x - at[1]) ** 2 < radius**2) * 1.0
    fine = gaussian_filter(fine, blur * FINE) if blur else fine
    four = fine.reshape(HEIGHT * 4, 2, WIDTH * 4, 2).mean((1, 3))
    return fine.reshape(HEIGHT, FINE, WIDTH, FINE).mean((1, 3)), float(four.max())


@pytest.mark.parametrize("excess", [1000, 8000])
@pytest.mark.parametrize(("radius", "blur"), [(1, 0), (1, 0.5), (2, 0.8), (4, 0), (4, 0.35)])
def test_a_spot_over_a_quiet_wall(up, excess, radius, blur):
    spot, peak = disc(radius, blur)
    sigma = 4
    noise = np.random.default_rng(0).normal(0, sigma, spot.shape)
    wall = 29500 + 60 * np.arange(WIDTH) / WIDTH
    frame = np.round(wall + excess * spot + noise).astype(np.uint16)
    stream = Stream()
    up(frame, stream)
    sr = up(frame, stream).astype(float) - 29500
    assert np.abs(measured_again(sr + 29500) - frame).max() <= 0.005 * excess + 2.5 * sigma
    assert sr.min() > -5 * sigma - 0.03 * excess
    if blur:
        assert sr.max() == pytest.approx(30 + excess * peak, rel=0.1)
    assert sr.max() < frame.max() - 29500 + 0.3 * excess


@pytest.mark.parametrize(
    ("excess", "radius", "blur"), [(450, 1, 0.7), (450, 1.3, 0.7), (300, 1, 0.7), (200, 1.3, 0.7)]
)
def test_a_spot_little_above_its_wall_keeps_its_peak(up, excess, radius, blur):
    spot, peak = disc(radius, blur)
    noise = np.random.default_rng(11).normal(0, 4, spot.shape)
    wall = 29500 + 60 * np.arange(WIDTH) / WIDTH
    sr = up(np.round(wall + excess * spot + noise).astype(np.uint16), Stream()).astype(float)
    assert sr.max() == pytest.approx(29530 + excess * peak, abs=0.1 * excess * peak)


def test_a_hard_edge_little_above_its_wall_overshoots_little(up):
    noise = np.random.default_rng(0).normal(0, 4, (HEIGHT, WIDTH))
    wall = 29500 + 60 * np.arange(WIDTH) / WIDTH
    frame = np.round(wall + 200 * disc(3, 0, (24.0, 32.375))[0] + noise).astype(np.uint16)
    assert up(frame, Stream()).max() < frame.max() + 0.3 * 200


def drawn() -> np.ndarray:
    frame = np.full((64, 80), 110, np.uint8)
    frame[20:40, 30:36], frame[:10], frame[50:52, 10:70], frame[45, 5] = 255, 0, 255, 255
    return frame


def clipped(level: np.ndarray | float) -> np.ndarray:
    """What of a random scene lies more than ``level`` deviations up, in 8 bits; most of it is 0."""
    image = gaussian_filter(np.random.default_rng(3).normal(size=(256, 320)), 3)
    image = np.clip(600 * (image / image.std() - level), 0, 255)
    return np.rint(measured_again(image)).clip(0, 255).astype(np.uint8)


def nearly_white() -> np.ndarray:
    return 255 - clipped(1.8)


def lamps_at_night() -> np.ndarray:
    """Black all around: no border without a measurement."""
    y, x = np.mgrid[-1:1:256j, -1:1:320j]
    return clipped(8 * (x**2 + y**2))


@pytest.mark.parametrize("make", [drawn, nearly_white, lamps_at_night])
def test_a_saturated_frame_still_scales_down_to_itself(make):
    frame = make()
    for name in ("difiisr-rt-x4", "bicubic-consistent"):
        up = load_upscaler(name, device="cpu", backend="torch", consistency=1.0)
        assert np.abs(measured_again(up(frame)) - frame).max() <= 1
