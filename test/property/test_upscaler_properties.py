"""Whatever the frame: its dtype, four times its size, and its own pixels when scaled down."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from difiisr_models import load_upscaler
from difiisr_models.resample import downsample, pack

SIDES = st.integers(16, 70)
UP = load_upscaler("bicubic-consistent", consistency=1.0, device="cpu", tile=40, overlap=8)


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.sampled_from(["uint8", "uint16", "float32"]), st.integers(0, 2**31))
def test_any_frame(height, width, dtype, seed):
    rng = np.random.default_rng(seed)
    top = 255 if dtype == "uint8" else 65535
    lo, hi = np.sort(rng.uniform(0.2 * top, 0.8 * top, 2))
    ramp = np.linspace(lo, hi, height * width).reshape(height, width)
    frame = (ramp + rng.normal(0, (hi - lo) / 20, ramp.shape)).astype(dtype)
    UP.reset()
    sr = UP(frame)
    assert sr.dtype == frame.dtype
    assert sr.shape == (4 * height, 4 * width)
    again = downsample(pack(torch.from_numpy(sr.astype(np.float64))[None, None]))[0, 0].numpy()
    assert np.abs(again - frame).mean() <= 0.005 * np.ptp(frame.astype(float)) + 0.3


@settings(max_examples=30, deadline=None)
@given(SIDES, SIDES, st.floats(0, 0.9), st.integers(0, 2**31))
def test_missing_pixels_stay_missing_and_alone(height, width, share, seed):
    rng = np.random.default_rng(seed)
    frame = rng.normal(300, 3, (height, width)).astype(np.float32)
    missing = rng.random(frame.shape) < share
    frame[missing] = np.nan
    sr = UP(frame)
    np.testing.assert_array_equal(np.isnan(sr), np.kron(missing, np.ones((4, 4), bool)))
