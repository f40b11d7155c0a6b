"""The second-order pipeline's kernels and noises are those that its configuration names."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difiisr_training.degradations import second_order


def rng(seed=0):
    return np.random.default_rng(seed)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_kernels_keep_the_mean_and_are_centred(seed):
    kernel = second_order.random_kernel(second_order.KernelConfig(), rng(seed))
    side = kernel.shape[0]
    assert kernel.shape == (side, side)
    assert side in range(3, 20, 2)
    assert kernel.sum() == pytest.approx(1)
    assert kernel == pytest.approx(kernel[::-1, ::-1], abs=1e-9)


def test_gaussian_kernel_has_its_widths_along_its_axes():
    d = second_order.squared_distance(41, 3.0, 1.5, math.pi / 2)  # long axis along y
    kernel = second_order.blur_kernel(d, 1.0, is_plateau=False)
    y, x = np.mgrid[:41, :41] - 20.0
    assert (kernel * y * y).sum() == pytest.approx(9.0, rel=0.01)
    assert (kernel * x * x).sum() == pytest.approx(2.25, rel=0.01)


def test_sinc_kernel_passes_below_its_cutoff_and_stops_above():
    response = np.abs(np.fft.fft2(second_order.sinc_kernel(63, math.pi / 2), (256, 256)))
    assert response[0, 20] == pytest.approx(1, abs=0.1)  # 0.16 pi
    assert response[0, 100] < 0.1  # 0.78 pi


def test_gaussian_noise_of_the_second_order_is_stated_of_255():
    noisy = second_order.add_gaussian_noise(np.full((300, 300), 0.5, np.float32), 10.0, rng())
    assert noisy.std() * 255 == pytest.approx(10, rel=0.02)


def test_poisson_noise_grows_with_the_root_of_the_level():
    levels = np.repeat(np.linspace(0.1, 0.9, 9), 20000).reshape(9, 20000).astype(np.float32)
    noise = (second_order.add_poisson_noise(levels, 0.5, rng()) - levels).std(axis=1)
    white = 16  # nine levels, rounded up to a power of two
    assert noise[:5] == pytest.approx(0.5 * np.sqrt(levels[:5, 0] / white), rel=0.1)


@pytest.mark.parametrize(
    ("make", "changed", "said"),
    [
        (second_order.KernelConfig, {"shares": (0.5, 0.5)}, "shares"),
        (second_order.KernelConfig, {"sides": (4, 8)}, "odd"),
        (second_order.PassConfig, {"resize_shares": (0.5, 0.5, 0.5)}, "add up to 1"),
        (second_order.PassConfig, {"jpeg_quality": (30, 200)}, "jpeg_quality"),
    ],
)
def test_settings_that_cannot_be_drawn_from_are_refused(make, changed, said):
    with pytest.raises(ValueError, match=said):
        make(**changed)
