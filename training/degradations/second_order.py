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
from dataclasses import field
from itertools import product
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Len
from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from difiisr_models.radiometry import CountRange
from difiisr_models.resample import SCALE
from difiisr_training.degradations.thermal_camera import (
    QualityRange,
    Range,
    from_eight_bit,
    random_jpeg,
    to_eight_bit,
)

KERNELS = tuple(product(("gaussian", "generalised", "plateau"), ("isotropic", "anisotropic")))
_WHITE = 255
_WIDE = 13  # pixels from which a sinc kernel may have a lower cutoff
_FILTERS = ("area", "bilinear", "bicubic")
_UNIT = CountRange(0.0, 1.0)


def _odd(sides: tuple[int, int]) -> tuple[int, int]:
    if not (sides[0] <= sides[1] and sides[0] % 2 and sides[1] % 2):
        raise ValueError("must be a range [low, high] of odd numbers")
    return sides


def _add_up_to_one(shares: tuple[float, ...]) -> tuple[float, ...]:
    if abs(sum(shares) - 1) > 1e-6:
        raise ValueError("must add up to 1")
    return shares


Side = Annotated[int, Ge(1)]
Sides = Annotated[tuple[Side, Side], AfterValidator(_odd)]
Share = Annotated[float, Ge(0)]
ThreeShares = Annotated[tuple[Share, ...], Len(3, 3), AfterValidator(_add_up_to_one)]
SixShares = Annotated[tuple[Share, ...], Len(6, 6), AfterValidator(_add_up_to_one)]


@dataclass(frozen=True, config={"extra": "forbid"})
class KernelConfig:
    """What blur kernels are drawn from. Defaults: the first pass of the reference configuration.

    Attributes:
        sides: smallest and largest side, pixels; odd.
        shares: of the kernels that are no sinc, in the order of :data:`KERNELS`.
        sinc_share: share of sinc kernels.
        sigma: standard deviations, pixels.
        generalised_shape: beta of the generalised Gaussian exp(-d^beta / 2); 1 is the Gaussian.
        plateau_shape: beta of the plateau 1 / (1 + d^beta).
    """

    sides: Sides = (3, 19)
    shares: SixShares = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    sinc_share: float = 0.1
    sigma: Range = (0.2, 3.0)
    generalised_shape: Range = (0.5, 4.0)
    plateau_shape: Range = (1.0, 2.0)


@dataclass(frozen=True, config={"extra": "forbid"})
class PassConfig:
    """One pass. Defaults: the first one of the reference configuration.

    Attributes:
        blur_share: share of the samples that are blurred.
        kernel: of the blur.
        resize_shares: of enlarging, shrinking and keeping the size.
        resize: smallest and largest factor.
        gaussian_share: share of Gaussian noise; the others get Poisson noise.
        gaussian_sigma: standard deviation of the former, of 255.
        poisson_scale: factor on the latter.
        jpeg_quality: limits of JPEG's quality.
    """

    blur_share: float = 1.0
    kernel: KernelConfig = field(default_factory=KernelConfig)
    resize_shares: ThreeShares = (0.2, 0.7, 0.1)
    resize: Range = (0.15, 1.5)
    gaussian_share: float = 0.5
    gaussian_sigma: Range = (1.0, 30.0)
    poisson_scale: Range = (0.05, 3.0)
    jpeg_quality: QualityRange = (30, 95)


_SECOND_PASS = PassConfig(
    blur_share=0.8,
    kernel=KernelConfig(sides=(3, 13), sigma=(0.2, 1.5)),
    resize_shares=(0.3, 0.4, 0.3),
    resize=(0.3, 1.2),
    gaussian_sigma=(1.0, 25.0),
    poisson_scale=(0.05, 2.5),
)


@dataclass(frozen=True, config={"extra": "forbid"})
class SecondOrderConfig:
    """The whole pipeline.

    Attributes:
        first: the first pass, at the size of the scene.
        second: the second pass, about the size of the result; its JPEG comes last of all.
        second_share: share of the samples that get the second pass.
        sinc_share: share of the samples that get the last sinc filter.
    """

    first: PassConfig = field(default_factory=PassConfig)
    second: PassConfig = _SECOND_PASS
    second_share: float = 0.5
    sinc_share: float = 0.8


def second_order_pair(
    hr: np.ndarray, shown: CountRange, config: SecondOrderConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Degrade the 8-bit picture of a scene; arguments and results as those of ``mix.degrade``.

    Both results are clipped to ``shown``.
    """
    # The order of the draws is part of every seeded run.
    first, second = config.first, config.second
    target = hr.astype(np.float32).clip(shown.lo, shown.hi)
    size = (hr.shape[0] // SCALE, hr.shape[1] // SCALE)
    picture = (target - shown.lo) / shown.span
    picture = _compress(_one_pass(picture, hr.shape, first, rng), first, rng)
    if rng.random() < config.second_share:
        picture = _one_pass(picture, size, second, rng)
    sinc_comes_first = rng.random() < 0.5
    if not sinc_comes_first:
        picture = _compress(picture, second, rng)
    picture = _resize(picture, size, rng)
    if rng.random() < config.sinc_share:
        side = _random_side(second.kernel.sides, rng)
        picture = convolve(picture, sinc_kernel(side, rng.uniform(math.pi / 3, math.pi)))
    if sinc_comes_first:
        picture = _compress(picture, second, rng)
    return from_eight_bit(to_eight_bit(picture, _UNIT), shown), target


def _one_pass(
    picture: np.ndarray, size: tuple[int, int], config: PassConfig, rng: np.random.Generator
) -> np.ndarray:
    """Blur, resize to a random factor of ``size``, add noise."""
    if rng.random() < config.blur_share:
        picture = convolve(picture, random_kernel(config.kernel, rng))
    low, high = config.resize
    limits = ((1.0, high), (low, 1.0), (1.0, 1.0))[rng.choice(3, p=config.resize_shares)]
    factor = rng.uniform(*limits)
    picture = _resize(picture, (int(size[0] * factor), int(size[1] * factor)), rng)
    if rng.random() < config.gaussian_share:
        noise = rng.normal(0.0, rng.uniform(*config.gaussian_sigma) / _WHITE, picture.shape)
        return (picture + noise).clip(0, 1).astype(np.float32)
    return add_poisson_noise(picture.clip(0, 1), rng.uniform(*config.poisson_scale), rng)


def _compress(picture: np.ndarray, config: PassConfig, rng: np.random.Generator) -> np.ndarray:
    eight_bit = to_eight_bit(picture, _UNIT)
    return from_eight_bit(random_jpeg(eight_bit, config.jpeg_quality, rng), _UNIT)


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


def random_kernel(config: KernelConfig, rng: np.random.Generator) -> np.ndarray:
    """Draw a kernel ``(side, side)`` float64 that sums to 1."""
    side = _random_side(config.sides, rng)
    if rng.random() < config.sinc_share:
        return sinc_kernel(side, rng.uniform(math.pi / (3 if side < _WIDE else 5), math.pi))
    family, shape = KERNELS[rng.choice(len(KERNELS), p=config.shares)]
    sigma_x = sigma_y = rng.uniform(*config.sigma)
    angle, beta = 0.0, 1.0
    if shape == "anisotropic":
        sigma_y, angle = rng.uniform(*config.sigma), rng.uniform(-math.pi, math.pi)
    if family != "gaussian":  # half of the time below 1, half of the time above
        low, high = config.plateau_shape if family == "plateau" else config.generalised_shape
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
