"""Whether a network's estimate can be true of the frame it was shown.

It is asked of the estimate before the consistency step: after it, nonsense too agrees with the
input. What is wrong inside a network (a flipped bit, an overflow) shows in whole regions.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import torch
import torch.nn.functional as F
from torch import Tensor

_WINDOW = 16  # low-resolution pixels, about, on a side of the regions that are judged
_FLOOR = 0.02  # network units: noise and rounding in flat places
_BEYOND = (
    0.2  # share of what lies beyond the usual range, -1..1, that a good estimate may be off by
)


@dataclass(frozen=True)
class EstimateLimits:
    """What a model's estimates of true frames stay below, in each region of 16x16 pixels.

    Both are in units of the region's contrast: the rms of the differences between neighbouring
    input pixels, and a fifth of what they lie beyond -1..1. A model's manifest may hold ``limits``,
    as measured on its test frames.

    Attributes:
        deviation: rms of (mean over a 4x4 block - input pixel).
        detail: rms of (pixel - mean over its 4x4 block).
    """

    deviation: float = 2.0
    detail: float = 3.0

    def __post_init__(self) -> None:
        if not (0 < self.deviation < 100 and 0 < self.detail < 100):
            raise ValueError(f"limits must lie between 0 and 100, got {self}")


def measure_estimate(packed: Tensor, shown: Tensor) -> Tensor:
    """Largest deviation and detail over the regions, ``(2,)`` on the same device.

    Args:
        packed: ``(1, 16, h, w)``, the network's estimate.
        shown: ``(1, 1, h, w)``, what it was shown, in network units.

    Returns:
        NaN or infinity where the estimate has one.
    """
    mean, square = packed.mean(1, keepdim=True), packed.square().mean(1, keepdim=True)
    across, down = shown.diff(dim=-1).square(), shown.diff(dim=-2).square()
    beyond = _BEYOND * (shown.abs() - 1).clamp_min(0)
    apart = F.pad(across, (0, 1)) + F.pad(down, (0, 0, 0, 1)) + beyond.square()
    powers = torch.cat(((mean - shown).square(), (square - mean.square()).clamp_min(0), apart), 1)
    rows, columns = (-(-side // _WINDOW) for side in shown.shape[-2:])
    deviation, detail, contrast = F.adaptive_avg_pool2d(powers, (rows, columns)).sqrt()[0]
    return (torch.stack((deviation, detail)) / (contrast + _FLOOR)).amax((1, 2))


def fault_of(measured: list[float], limits: EstimateLimits) -> str:
    """Why an estimate is not believed, "" if it is; ``measured``: of :func:`measure_estimate`."""
    deviation, detail = measured
    if not isfinite(deviation + detail):
        return "the network's estimate is not finite"
    if deviation > limits.deviation:
        what, value, most = "deviates from the input by", deviation, limits.deviation
    elif detail > limits.detail:
        what, value, most = "invents detail of", detail, limits.detail
    else:
        return ""
    return f"the network's estimate {what} {value:.2g} times the contrast, more than {most:g}"
