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
_SHARP = 0.5  # share of what interpolates, in small spots
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
    beyond = greatest((frame.abs() > limit).float(), _HOT_MARGIN)
    labels, _ = label(beyond[0, 0].cpu().numpy())
    return find_objects(labels)


def greatest(image: Tensor, reach: int) -> Tensor:
    """Greatest value up to ``reach`` pixels away along each axis: ``(..., h, w)`` of what it is of.

    A pooling of this size takes torch 20 times as long.
    """
    padded = F.pad(image, (reach,) * 4, value=-torch.inf)
    return _greatest_of(_greatest_of(padded, 2 * reach + 1, -1), 2 * reach + 1, -2)


def _greatest_of(image: Tensor, count: int, axis: int) -> Tensor:
    """Greatest of each ``count`` neighbours along an axis, which becomes shorter by the others."""
    span = 1
    while span < count:
        step = min(span, count - span)
        length = image.shape[axis] - step
        image = torch.maximum(image.narrow(axis, 0, length), image.narrow(axis, step, length))
        span += step
    return image


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
    height, is_peak = frame - brightest, frame == greatest(frame, _REACH)
    return (is_peak & (height > _HOT_CONTRAST * spread.clamp_min(noise))).float()


def _most_of_wall(around: Tensor) -> Tensor:
    """Greatest value 5 to 7 pixels from each pixel, of a frame with 7 more on each side."""
    near = _greatest_of(_greatest_of(around, _WALL, -1), _WALL, -2)
    far = 2 * (_REACH + _WALL // 2 + 1)  # from one side of the square to the other
    rows, columns = _greatest_of(near, far + 1, -1), _greatest_of(near, far + 1, -2)
    above_or_below = torch.maximum(rows[..., far:, :], rows[..., :-far, :])
    return torch.maximum(above_or_below, torch.maximum(columns[..., far:], columns[..., :-far]))


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
    brightest, darkest = (sign * greatest(sign * frame, 2) for sign in (1, -1))
    contrast = brightest - darkest
    bulk = max(seen.bulk * found.gain, _LEAST_BULK)
    spots = small_spots(frame, seen.noise * found.gain)
    hot = (spots > 0) | (contrast > _HOT_CONTRAST * bulk)
    if float(((frame <= lowest) | (frame >= highest)).float().mean()) > _SATURATED:
        hot = torch.zeros_like(hot)
    low, high = torch.full_like(frame, lowest), torch.full_like(frame, highest)
    tolerance = torch.full_like(frame, _TOLERATED_COUNTS * found.gain)
    if bool(hot.any()):
        hot = greatest(hot.float(), _RINGING) > 0
        slack = _SLACK * bulk
        least = darkest - (_UNDERSHOOT * contrast).clamp_min(slack)
        most = brightest + (_OVERSHOOT * contrast).clamp_min(slack)
        low, high = torch.where(hot, least, low), torch.where(hot, most, high)
        low, high = low.clamp_min(lowest), high.clamp_max(highest)
        tolerance = torch.where(hot, _TOLERATED_SHARE * contrast, tolerance)
        # Networks flatten the peak of a small spot, interpolation that is consistent overshoots it.
        target = downsample(packed)
        sharp = enforce_consistency(upsample(target), target)
        packed = torch.lerp(packed, sharp, _SHARP * greatest(spots, 2))
        return project_within(packed, target, low, high, tolerance)
    elif lowest <= packed.amin() and packed.amax() <= highest:
        return packed
    return project_within(packed, downsample(packed), low, high, tolerance)
