"""The second-order degradation of the reference configuration, for one channel.

Blur, resize, noise, JPEG; then, for half of the samples, blur, resize and noise again; last a sinc
filter and JPEG in either order. Source: Wang et al., Real-ESRGAN (ICCVW 2021), with the numbers of
ResShift's realsr_swinunet_realesrgan256 configuration, which DifIISR's repeats. A picture of one
channel makes "grey" and "colour" noise the same thing, so that choice is gone; libjpeg stands in
for a differentiable JPEG.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from difiisr_models.radiometry import CountRange
from difiisr_models.resample import SCALE
from difiisr_training.degradations.blur_kernels import (
    KernelConfig,
    random_kernel,
    random_side,
    sinc_kernel,
)
from difiisr_training.degradations.compression import (
    check_quality,
    from_eight_bit,
    jpeg,
    to_eight_bit,
)
from difiisr_training.ranges import IntRange, Range, check_ranges, check_shares

_WHITE = 255
_FILTERS = ("area", "bilinear", "bicubic")
_UNIT = CountRange(0.0, 1.0)


@dataclass(frozen=True)
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
    resize_shares: tuple[float, ...] = (0.2, 0.7, 0.1)
    resize: Range = (0.15, 1.5)
    gaussian_share: float = 0.5
    gaussian_sigma: Range = (1.0, 30.0)
    poisson_scale: Range = (0.05, 3.0)
    jpeg_quality: IntRange = (30, 95)

    def __post_init__(self) -> None:
        check_ranges(self)
        check_quality(self.jpeg_quality)
        check_shares("resize_shares", self.resize_shares, ("enlarged", "shrunk", "kept"))


def _second_pass() -> PassConfig:
    return PassConfig(
        blur_share=0.8,
        kernel=KernelConfig(sides=(3, 13), sigma=(0.2, 1.5)),
        resize_shares=(0.3, 0.4, 0.3),
        resize=(0.3, 1.2),
        gaussian_sigma=(1.0, 25.0),
        poisson_scale=(0.05, 2.5),
    )


@dataclass(frozen=True)
class SecondOrderConfig:
    """The whole pipeline.

    Attributes:
        first: the first pass, at the size of the scene.
        second: the second pass, about the size of the result; its JPEG comes last of all.
        second_share: share of the samples that get the second pass.
        sinc_share: share of the samples that get the last sinc filter.
    """

    first: PassConfig = field(default_factory=PassConfig)
    second: PassConfig = field(default_factory=_second_pass)
    second_share: float = 0.5
    sinc_share: float = 0.8


def second_order_pair(
    hr: np.ndarray, shown: CountRange, config: SecondOrderConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Degrade the 8-bit picture of a scene.

    Args:
        hr: ``(4h, 4w)`` uint8, uint16 or float32 counts.
        shown: what the picture shows, ``compression.agc_range`` of the frame.
        config: probabilities and ranges.
        rng: where everything random comes from.

    Returns:
        low resolution ``(h, w)`` and target ``(4h, 4w)``, float32 counts clipped to ``shown``.
    """
    target = hr.astype(np.float32).clip(shown.lo, shown.hi)
    size = (hr.shape[0] // SCALE, hr.shape[1] // SCALE)
    picture = (target - shown.lo) / shown.span
    picture = _one_pass(picture, hr.shape, config.first, rng)
    picture = _random_jpeg(picture, config.first.jpeg_quality, rng)
    if rng.random() < config.second_share:
        picture = _one_pass(picture, size, config.second, rng)
    if rng.random() < 0.5:
        picture = _to_size_with_sinc(picture, size, config, rng)
        picture = _random_jpeg(picture, config.second.jpeg_quality, rng)
    else:
        picture = _random_jpeg(picture, config.second.jpeg_quality, rng)
        picture = _to_size_with_sinc(picture, size, config, rng)
    return from_eight_bit(to_eight_bit(picture, _UNIT), shown), target


def add_gaussian_noise(picture: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """White noise of standard deviation ``sigma`` (of 255) on a picture 0..1, clipped to that."""
    noise = rng.normal(0.0, sigma / _WHITE, picture.shape)
    return (picture + noise).clip(0, 1).astype(np.float32)


def add_poisson_noise(picture: np.ndarray, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Shot noise on a picture 0..1, multiplied by ``scale`` and clipped.

    White is as many events as the picture has grey levels, rounded up to a power of two.
    """
    levels = np.rint(picture * _WHITE) / _WHITE
    white = 2 ** math.ceil(math.log2(np.unique(levels).size))
    noise = rng.poisson(levels * white) / white - levels
    return (picture + scale * noise).clip(0, 1).astype(np.float32)


def convolve(picture: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Filter ``(H, W)`` by a kernel of odd side, mirrored at the borders; float32."""
    half = kernel.shape[0] // 2
    padded = F.pad(_as_tensor(picture), (half,) * 4, mode="reflect")
    return F.conv2d(padded, _as_tensor(kernel))[0, 0].numpy()


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
        return add_gaussian_noise(picture, rng.uniform(*config.gaussian_sigma), rng)
    return add_poisson_noise(picture.clip(0, 1), rng.uniform(*config.poisson_scale), rng)


def _to_size_with_sinc(
    picture: np.ndarray, size: tuple[int, int], config: SecondOrderConfig, rng: np.random.Generator
) -> np.ndarray:
    picture = _resize(picture, size, rng)
    if rng.random() >= config.sinc_share:
        return picture
    side = random_side(config.second.kernel.sides, rng)
    return convolve(picture, sinc_kernel(side, rng.uniform(math.pi / 3, math.pi)))


def _random_jpeg(picture: np.ndarray, limits: IntRange, rng: np.random.Generator) -> np.ndarray:
    quality = int(rng.integers(limits[0], limits[1] + 1))
    return from_eight_bit(jpeg(to_eight_bit(picture, _UNIT), quality), _UNIT)


def _resize(picture: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Resize by a random filter; like the reference's, none is antialiased but "area"."""
    mode = _FILTERS[rng.integers(len(_FILTERS))]
    return F.interpolate(_as_tensor(picture), size=size, mode=mode)[0, 0].numpy()


def _as_tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None, None]
