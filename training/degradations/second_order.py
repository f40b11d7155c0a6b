"""The second-order degradation of the reference configuration, for one channel.

Blur, resize, noise, JPEG; then, for half of the samples, blur, resize and noise again; last a sinc
filter and JPEG in either order. Source: Wang et al., Real-ESRGAN (ICCVW 2021), 3.1 to 3.3, with
the generalised Gaussian and the plateau-shaped kernels of Liu et al. (2020) it refers to, and with
the numbers of ResShift's realsr_swinunet_realesrgan256 configuration, which DifIISR's repeats. A
picture of one channel makes "grey" and "colour" noise the same thing, so that choice is gone;
libjpeg stands in for a differentiable JPEG.
"""

from __future__ import annotations

import math
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from difiisr_models.radiometry import CountRange
from difiisr_models.resample import SCALE
from difiisr_training.degradations.thermal_camera import (
    from_eight_bit,
    random_jpeg,
    to_eight_bit,
)

KERNELS = tuple(product(("gaussian", "generalised", "plateau"), ("isotropic", "anisotropic")))

# Of both passes; shares are those of the samples, a range is [low, high].
_KERNEL_SHARES = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)  # of kernels that are no sinc
_SINC_KERNELS = 0.1
_BETA = {"gaussian": (1.0, 1.0), "generalised": (0.5, 4.0), "plateau": (1.0, 2.0)}
_GAUSSIAN_SHARE = 0.5  # the others get Poisson noise
_JPEG_QUALITY = (30, 95)
_SECOND_PASSES, _LAST_SINCS = 0.5, 0.8

_WHITE = 255
_WIDE = 13  # pixels from which a sinc kernel may have a lower cutoff
_FILTERS = ("area", "bilinear", "bicubic")
_UNIT = CountRange(0.0, 1.0)


class Pass(NamedTuple):
    """One pass of the reference configuration.

    Attributes:
        blur_share: share of the samples that are blurred.
        sides: smallest and largest side of the kernel, pixels; odd.
        sigma: standard deviations of the kernel, pixels.
        resize_shares: of enlarging, shrinking and keeping the size.
        resize: smallest and largest factor.
        noise: standard deviation of Gaussian noise, of 255.
        poisson: factor on Poisson noise.
    """

    blur_share: float
    sides: tuple[int, int]
    sigma: tuple[float, float]
    resize_shares: tuple[float, float, float]
    resize: tuple[float, float]
    noise: tuple[float, float]
    poisson: tuple[float, float]


FIRST = Pass(1.0, (3, 19), (0.2, 3.0), (0.2, 0.7, 0.1), (0.15, 1.5), (1.0, 30.0), (0.05, 3.0))
"""At the size of the scene."""

SECOND = Pass(0.8, (3, 13), (0.2, 1.5), (0.3, 0.4, 0.3), (0.3, 1.2), (1.0, 25.0), (0.05, 2.5))
"""About the size of the result."""


def second_order_pair(
    hr: np.ndarray, shown: CountRange, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Degrade the 8-bit picture of a scene; arguments and results as those of ``mix.degrade``.

    Both results are clipped to ``shown``.
    """
    # The order of the draws is part of every seeded run.
    target = hr.astype(np.float32).clip(shown.lo, shown.hi)
    size = (hr.shape[0] // SCALE, hr.shape[1] // SCALE)
    picture = (target - shown.lo) / shown.span
    picture = _compress(_one_pass(picture, hr.shape, FIRST, rng), rng)
    if rng.random() < _SECOND_PASSES:
        picture = _one_pass(picture, size, SECOND, rng)
    sinc_comes_first = rng.random() < 0.5
    if not sinc_comes_first:
        picture = _compress(picture, rng)
    picture = _resize(picture, size, rng)
    if rng.random() < _LAST_SINCS:
        side = _random_side(SECOND.sides, rng)
        picture = convolve(picture, sinc_kernel(side, rng.uniform(math.pi / 3, math.pi)))
    if sinc_comes_first:
        picture = _compress(picture, rng)
    return from_eight_bit(to_eight_bit(picture, _UNIT), shown), target


def _one_pass(
    picture: np.ndarray, size: tuple[int, int], drawn: Pass, rng: np.random.Generator
) -> np.ndarray:
    """Blur, resize to a random factor of ``size``, add noise."""
    if rng.random() < drawn.blur_share:
        picture = convolve(picture, random_kernel(drawn.sides, drawn.sigma, rng))
    low, high = drawn.resize
    limits = ((1.0, high), (low, 1.0), (1.0, 1.0))[rng.choice(3, p=drawn.resize_shares)]
    factor = rng.uniform(*limits)
    picture = _resize(picture, (int(size[0] * factor), int(size[1] * factor)), rng)
    if rng.random() < _GAUSSIAN_SHARE:
        noise = rng.normal(0.0, rng.uniform(*drawn.noise) / _WHITE, picture.shape)
        return (picture + noise).clip(0, 1).astype(np.float32)
    return add_poisson_noise(picture.clip(0, 1), rng.uniform(*drawn.poisson), rng)


def _compress(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    eight_bit = to_eight_bit(picture, _UNIT)
    return from_eight_bit(random_jpeg(eight_bit, _JPEG_QUALITY, rng), _UNIT)


def _resize(picture: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Resize by a random filter; like the reference's, none is antialiased but "area"."""
    mode = _FILTERS[rng.integers(len(_FILTERS))]
    return F.interpolate(_as_tensor(picture), size=size, mode=mode)[0, 0].numpy()


def convolve(picture: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Filter ``(H, W)`` by a kernel of odd side, mirrored at the borders; float32."""
    padded = F.pad(_as_tensor(picture), (len(kernel) // 2,) * 4, mode="reflect")
    return F.conv2d(padded, _as_tensor(kernel))[0, 0].numpy()


def _as_tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None, None]


def add_poisson_noise(picture: np.ndarray, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Shot noise on a picture 0..1, multiplied by ``scale`` and clipped.

    White is as many events as the picture has grey levels, rounded up to a power of two.
    """
    levels = np.rint(picture * _WHITE) / _WHITE
    white = 2 ** math.ceil(math.log2(np.unique(levels).size))
    noise = rng.poisson(levels * white) / white - levels
    return (picture + scale * noise).clip(0, 1).astype(np.float32)


def random_kernel(
    sides: tuple[int, int], sigma: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """Draw a kernel ``(side, side)`` float64 that sums to 1.

    The generalised Gaussian is exp(-d^beta / 2), the plateau 1 / (1 + d^beta). ``sides``, both odd,
    and ``sigma``: smallest and largest, pixels.
    """
    side = _random_side(sides, rng)
    if rng.random() < _SINC_KERNELS:
        return sinc_kernel(side, rng.uniform(math.pi / (3 if side < _WIDE else 5), math.pi))
    family, shape = KERNELS[rng.choice(len(KERNELS), p=_KERNEL_SHARES)]
    sigma_x = sigma_y = rng.uniform(*sigma)
    (low, high), angle, beta = _BETA[family], 0.0, 1.0
    if shape == "anisotropic":
        sigma_y, angle = rng.uniform(*sigma), rng.uniform(-math.pi, math.pi)
    if family != "gaussian":  # half of the time below 1, half of the time above
        beta = rng.uniform(low, 1.0) if rng.random() < 0.5 else rng.uniform(1.0, high)
    power = squared_distance(side, sigma_x, sigma_y, angle) ** beta
    kernel = 1 / (1 + power) if family == "plateau" else np.exp(-0.5 * power)
    return kernel / kernel.sum()


def squared_distance(side: int, sigma_x: float, sigma_y: float, angle: float) -> np.ndarray:
    """d^T Sigma^-1 d for each pixel of a kernel, ``(side, side)``; ``angle`` in radians."""
    offset = np.arange(side) - (side - 1) / 2
    x, y = np.meshgrid(offset, offset)
    along = (x * math.cos(angle) + y * math.sin(angle)) / sigma_x
    across = (y * math.cos(angle) - x * math.sin(angle)) / sigma_y
    return along**2 + across**2


def sinc_kernel(side: int, cutoff: float) -> np.ndarray:
    """The ideal low-pass filter of circular symmetry, cut to ``side`` pixels; it rings.

    w J1(w r) / (2 pi r) with ``cutoff`` w in radians per pixel, at most pi.
    """
    radius = np.sqrt(squared_distance(side, 1.0, 1.0, 0.0))
    radius[side // 2, side // 2] = 1.0  # not 0 / 0; the limit follows
    bessel = torch.special.bessel_j1(torch.from_numpy(cutoff * radius)).numpy()
    kernel = cutoff * bessel / (2 * math.pi * radius)
    kernel[side // 2, side // 2] = cutoff**2 / (4 * math.pi)
    return kernel / kernel.sum()


def _random_side(sides: tuple[int, int], rng: np.random.Generator) -> int:
    """An odd number of pixels between the two odd limits, both included."""
    low, high = sides
    return low + 2 * int(rng.integers((high - low) // 2 + 1))
