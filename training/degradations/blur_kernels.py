"""The blur kernels of the second-order degradation: pure functions and one random choice.

Sources: Wang et al., Real-ESRGAN (ICCVW 2021), 3.1 and 3.3, with the generalised Gaussian and the
plateau-shaped kernels of Liu et al. (2020) it refers to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from difiisr_training.ranges import IntRange, Range, check_ranges, check_shares

KERNEL_NAMES = (
    "isotropic", "anisotropic", "generalised_isotropic", "generalised_anisotropic",
    "plateau_isotropic", "plateau_anisotropic",
)  # fmt: skip
_WIDE = 13  # pixels from which a sinc kernel may have a lower cutoff


@dataclass(frozen=True)
class KernelConfig:
    """What blur kernels are drawn from. Defaults: the first pass of the reference configuration.

    Attributes:
        sides: smallest and largest side, pixels; odd.
        shares: of the kernels that are no sinc, in the order of :data:`KERNEL_NAMES`.
        sinc_share: share of sinc kernels.
        sigma: standard deviations, pixels.
        generalised_shape: beta of the generalised Gaussian; 1 is the Gaussian.
        plateau_shape: beta of the plateau kernel.
    """

    sides: IntRange = (3, 19)
    shares: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    sinc_share: float = 0.1
    sigma: Range = (0.2, 3.0)
    generalised_shape: Range = (0.5, 4.0)
    plateau_shape: Range = (1.0, 2.0)

    def __post_init__(self) -> None:
        check_ranges(self)
        check_shares("shares", self.shares, KERNEL_NAMES)
        if self.sides[0] < 1 or not all(side % 2 for side in self.sides):
            raise ValueError(f"sides of kernels must be odd, got {list(self.sides)}")


def random_kernel(config: KernelConfig, rng: np.random.Generator) -> np.ndarray:
    """Draw a kernel ``(side, side)`` float64 that sums to 1."""
    side = random_side(config.sides, rng)
    if rng.random() < config.sinc_share:
        return sinc_kernel(side, rng.uniform(math.pi / (3 if side < _WIDE else 5), math.pi))
    name = KERNEL_NAMES[rng.choice(len(KERNEL_NAMES), p=config.shares)]
    sigma_x = sigma_y = rng.uniform(*config.sigma)
    angle = 0.0
    if name.endswith("anisotropic"):
        sigma_y, angle = rng.uniform(*config.sigma), rng.uniform(-math.pi, math.pi)
    distance = squared_distance(side, sigma_x, sigma_y, angle)
    if name.startswith("generalised"):
        return generalised_gaussian(distance, _random_shape(config.generalised_shape, rng))
    if name.startswith("plateau"):
        return plateau(distance, _random_shape(config.plateau_shape, rng))
    return generalised_gaussian(distance, 1.0)


def random_side(sides: IntRange, rng: np.random.Generator) -> int:
    """An odd number of pixels between the two odd limits, both included."""
    low, high = sides
    return low + 2 * int(rng.integers((high - low) // 2 + 1))


def squared_distance(side: int, sigma_x: float, sigma_y: float, angle: float) -> np.ndarray:
    """d^T Sigma^-1 d for each pixel of a kernel, ``(side, side)``; ``angle`` in radians."""
    offset = np.arange(side) - (side - 1) / 2
    x, y = np.meshgrid(offset, offset)
    along = (x * math.cos(angle) + y * math.sin(angle)) / sigma_x
    across = (y * math.cos(angle) - x * math.sin(angle)) / sigma_y
    return along**2 + across**2


def generalised_gaussian(distance: np.ndarray, beta: float) -> np.ndarray:
    """exp(-d^beta / 2), normalised; ``distance`` from :func:`squared_distance`."""
    kernel = np.exp(-0.5 * distance**beta)
    return kernel / kernel.sum()


def plateau(distance: np.ndarray, beta: float) -> np.ndarray:
    """1 / (1 + d^beta), normalised; ``distance`` from :func:`squared_distance`."""
    kernel = 1 / (1 + distance**beta)
    return kernel / kernel.sum()


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


def _random_shape(limits: Range, rng: np.random.Generator) -> float:
    """Half of the time below 1, half of the time above."""
    low, high = limits
    return rng.uniform(low, 1.0) if rng.random() < 0.5 else rng.uniform(1.0, high)
