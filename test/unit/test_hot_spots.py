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


def disc(radius: float, blur: float) -> tuple[np.ndarray, float]:
    """A disc of height 1 as the camera's pixels see it, and its peak at four times the pixels."""
    y, x = np.mgrid[: HEIGHT * FINE, : WIDTH * FINE] / FINE
    fine = ((x - 32.3) ** 2 + (y - 24.2) ** 2 < radius**2) * 1.0
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


def test_a_saturated_frame_still_scales_down_to_itself():
    frame = np.full((64, 80), 110, np.uint8)
    frame[20:40, 30:36], frame[:10], frame[50:52, 10:70], frame[45, 5] = 255, 0, 255, 255
    for name in ("difiisr-rt-x4", "bicubic-consistent"):
        up = load_upscaler(name, device="cpu", backend="torch", consistency=1.0)
        assert np.abs(measured_again(up(frame)) - frame).max() <= 1
