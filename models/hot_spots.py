"""Small hot objects on a quiet scene, and counts at their limits: what keeps them from ringing."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import find_objects, label
from torch import Tensor

from difiisr_models.consistency import enforce_consistency, project_within
from difiisr_models.resample import downsample, upsample
from difiisr_models.stream import Seen

_HOT_MARGIN = 16  # pixels around a hot spot that the model is shown with it
_HOT_CONTRAST = 6.0  # times the bulk of the scene, or what a wall spreads over
_LEAST_BULK = 0.02  # network units; flat scenes have no spread to compare with
_SATURATED = 0.8  # of the pixels at an end of the scale: there is no wall to compare with
_REACH, _WALL = 4, 3  # pixels that a small spot reaches from its peak, and its wall from there
_NOISE_SPREAD = 5.0  # deviations, of some hundred pixels of a wall
_SHARP, _SHARP_SPOT = 0.5, 0.75  # share of what interpolates, around hot spots and in small ones
_RINGING = 8  # pixels that a projection rings over
_SLACK = 0.1  # of the bulk
_UNDERSHOOT, _OVERSHOOT = 0.02, 0.28  # of the contrast around a hot spot
_TOLERATED_SHARE = 0.003  # of that contrast, and
_TOLERATED_COUNTS = 0.4  # counts that D of a bounded image may differ by


def hot_parts(frame: Tensor, limit: float) -> list[tuple[slice, slice]]:
    """Windows around all that lies beyond what the model is shown: small hot objects, the sun.

    Args:
        frame: ``(1, 1, h, w)`` in network units.
        limit: the model is shown [-limit, limit].

    Returns:
        rows and columns of windows that do not overlap, with some of the scene around.
    """
    beyond = F.max_pool2d((frame.abs() > limit).float(), 2 * _HOT_MARGIN + 1, 1, _HOT_MARGIN)
    labels, _ = label(beyond[0, 0].cpu().numpy())
    return find_objects(labels)


def small_spots(frame: Tensor, noise: float) -> Tensor:
    """Peaks of small hot spots on a quiet wall.

    They are more than 6 times as far above all that lies 5 to 7 pixels away as that spreads over,
    its noise not counted.

    Args:
        frame: ``(1, 1, h, w)`` in network units.
        noise: standard deviation, likewise.

    Returns:
        ``(1, 1, h, w)``, 1 at the peaks and 0 elsewhere.
    """
    around = F.pad(frame, (_REACH + _WALL,) * 4, mode="replicate")
    brightest, darkest = (sign * _most_of_wall(sign * around) for sign in (1, -1))
    spread = (brightest - darkest - _NOISE_SPREAD * noise).clamp_min(_LEAST_BULK)
    height, is_peak = frame - brightest, frame == F.max_pool2d(frame, 2 * _REACH + 1, 1, _REACH)
    return (is_peak & (height > _HOT_CONTRAST * spread.clamp_min(noise))).float()


def _most_of_wall(around: Tensor) -> Tensor:
    """Greatest value 5 to 7 pixels from each pixel, of a frame with 7 more on each side."""
    near = F.max_pool2d(around, _WALL, 1)
    far = 2 * (_REACH + _WALL // 2 + 1)  # from one side of the square to the other
    rows, columns = F.max_pool2d(near, (1, far + 1), 1), F.max_pool2d(near, (far + 1, 1), 1)
    above_or_below = F.max_pool2d(rows, (2, 1), 1, dilation=(far, 1))
    return torch.maximum(above_or_below, F.max_pool2d(columns, (1, 2), 1, dilation=(1, far)))


def within_bounds(packed: Tensor, frame: Tensor, seen: Seen) -> Tensor:
    """The image with no value that its counts cannot hold, and with no ringing around hot spots.

    What D of it is stays: clipping and projection go together. A hot spot is where neighbouring
    pixels differ by more than 6 times what most of the scene spreads over, or what the wall around
    a small spot does; there, and 8 pixels around, the image is kept between the darkest and the
    brightest of 5x5 pixels, but for 2 % and 28 % of their contrast.

    Args:
        packed: ``(1, 16, h, w)`` in network units.
        frame: ``(1, 1, h, w)``, what was measured.
        seen: of the stream; integer counts have limits.
    """
    found, dtype = seen.range, seen.measured.dtype
    lowest, highest = -torch.inf, torch.inf
    if dtype.kind in "iu":
        ends = found.normalise(np.array([np.iinfo(dtype).min, np.iinfo(dtype).max]))
        lowest, highest = float(ends[0]), float(ends[1])
    brightest, darkest = (sign * F.max_pool2d(sign * frame, 5, 1, 2) for sign in (1, -1))
    contrast = brightest - darkest
    bulk = max(seen.bulk * found.gain, _LEAST_BULK)
    spots = small_spots(frame, seen.noise * found.gain)
    hot = (spots > 0) | (contrast > _HOT_CONTRAST * bulk)
    if float(((frame <= lowest) | (frame >= highest)).float().mean()) > _SATURATED:
        hot = torch.zeros_like(hot)
    low, high = torch.full_like(frame, lowest), torch.full_like(frame, highest)
    tolerance = torch.full_like(frame, _TOLERATED_COUNTS * found.gain)
    if bool(hot.any()):
        for size in ((2 * _RINGING + 1, 1), (1, 2 * _RINGING + 1)):
            padding = tuple(side // 2 for side in size)
            hot = F.max_pool2d(hot.float(), size, 1, padding) > 0
        slack = _SLACK * bulk
        least = darkest - (_UNDERSHOOT * contrast).clamp_min(slack)
        most = brightest + (_OVERSHOOT * contrast).clamp_min(slack)
        low, high = torch.where(hot, least, low), torch.where(hot, most, high)
        low, high = low.clamp_min(lowest), high.clamp_max(highest)
        tolerance = torch.where(hot, _TOLERATED_SHARE * contrast, tolerance)
        # Networks flatten the peak of a spot, interpolation that is consistent overshoots it.
        target = downsample(packed)
        sharp = enforce_consistency(upsample(target), target)
        share = _SHARP + (_SHARP_SPOT - _SHARP) * F.max_pool2d(spots, 5, 1, 2)
        packed = torch.where(hot, torch.lerp(packed, sharp, share), packed)
        return project_within(packed, target, low, high, tolerance)
    elif lowest <= packed.amin() and packed.amax() <= highest:
        return packed
    return project_within(packed, downsample(packed), low, high, tolerance)
