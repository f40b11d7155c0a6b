"""Counts to the network's units and back.

The network sees ``n = 2 (counts - lo) / (hi - lo) - 1`` for a robust range of the frame. Counts are
never rescaled on the way out: the same range maps back, so a kelvin stays a kelvin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from difiisr_models.settings import Camera
from difiisr_models.validity import NO_DATA

NETWORK_LIMIT = 6.0
"""The network is shown [-6, 6]; what lies beyond (a dead pixel, the sun) goes around it."""

_RANGE_QUANTILES = (0.002, 0.998)  # leaves 38 pixels of a 160x120 frame outside on either side
_WIDENING = 0.5  # of the span between the quantiles, at most, at either end
_SCENE_QUANTILES = (0.1, 0.5, 0.9)
_SAMPLED_PIXELS = 80_000  # larger frames are thinned out before their quantiles are taken
_MIN_SPAN_COUNTS = 8.0
_EPSILON, _TINY = float(np.finfo(np.float32).eps), float(np.finfo(np.float32).tiny)
_MIN_SPAN_RELATIVE = 1e-4  # of the magnitude of float frames: 0.03 K at 300 K


ZERO_CELSIUS = 273.15
"""In kelvin."""


def temperatures(counts: np.ndarray, camera: Camera, unit: str) -> np.ndarray:
    """Counts of any dtype -> float32 temperatures of the same shape, NaN for ``no_data``.

    Args:
        counts: what the camera measured, or what was made of it.
        camera: says what scale * counts + offset is; its unit is not counts.
        unit: kelvin or celsius.
    """
    shift = {"kelvin": ZERO_CELSIUS, "celsius": 0.0}
    offset = camera.offset - shift[camera.unit] + shift[unit]
    values = counts.astype(np.float32) * np.float32(camera.scale) + np.float32(offset)
    if camera.no_data_values:
        values[np.isin(counts, camera.no_data_values)] = np.nan
    return values


@dataclass(frozen=True)
class CountRange:
    """The counts that the network sees as -1 (``lo``) and +1 (``hi``).

    n = (counts - centre) gain and counts = n half_span + centre, all rounded to float32 at every
    operation, on whatever device.
    """

    lo: float
    hi: float

    @property
    def span(self) -> float:
        """``hi - lo`` in counts, always positive: at least what float32 can tell apart there."""
        return max(self.hi - self.lo, _EPSILON * max(-self.lo, self.hi), _TINY)

    @property
    def centre(self) -> float:
        """The middle in counts, a float32."""
        return float(np.float32(0.5 * (self.lo + self.hi)))

    @property
    def gain(self) -> float:
        """Network units per count, a float32."""
        return float(np.float32(2 / self.span))

    @property
    def half_span(self) -> float:
        """Counts per network unit, a float32."""
        return float(np.float32(self.span / 2))

    def followed(self, gain: float, offset: float) -> CountRange:
        """The same part of the scene where its counts are ``gain`` times these plus ``offset``."""
        return CountRange(gain * self.lo + offset, gain * self.hi + offset)

    def normalise(self, counts: np.ndarray) -> np.ndarray:
        """Counts of any dtype -> float32 of the same shape, -1..1 over the range."""
        return (counts.astype(np.float32) - self.centre) * self.gain


def robust_range(counts: np.ndarray) -> CountRange:
    """Range of one frame: quantiles, widened for what is small and hot, but not for dead pixels.

    A lamp of a few pixels on a night street lies far outside the quantiles. Either end moves out to
    the last pixel that the network would be shown, by half the span at most.

    Args:
        counts: ``(H, W)`` uint8, uint16 or float32; values that are not finite, or not below
            :data:`NO_DATA`, are ignored.
    """
    return range_and_bulk(counts)[0]


def range_and_bulk(
    counts: np.ndarray, invalid: np.ndarray | None = None
) -> tuple[CountRange, np.ndarray]:
    """The robust range, and the quantiles that tell one scene from another, ``(3,)``.

    ``invalid``: ``(H, W)`` bool, pixels that do not count.
    """
    stride = max(1, int((counts.size / _SAMPLED_PIXELS) ** 0.5))
    values = np.ascontiguousarray(counts[::stride, ::stride])
    if invalid is not None and not invalid[::stride, ::stride].all():
        values = values[~invalid[::stride, ::stride]]
    if counts.dtype.kind == "f":
        values = values[np.abs(values) < NO_DATA]
        if values.size == 0:
            return CountRange(-1.0, 1.0), np.zeros(len(_SCENE_QUANTILES))
    ordered = _sorted(values)
    lo, hi, *bulk = _quantiles_of_sorted(ordered, (*_RANGE_QUANTILES, *_SCENE_QUANTILES))
    beyond, widening = (NETWORK_LIMIT - 1) / 2 * (hi - lo), _WIDENING * (hi - lo)
    first = ordered[np.searchsorted(ordered, lo - beyond)]
    last = ordered[np.searchsorted(ordered, hi + beyond, side="right") - 1]
    lo, hi = max(float(first), lo - widening), min(float(last), hi + widening)
    floor = _MIN_SPAN_COUNTS
    if counts.dtype.kind == "f":  # the magnitude is the range's too: a dead pixel has none to say
        floor = max(_MIN_SPAN_RELATIVE * max(-lo, hi), float(np.finfo(np.float32).tiny))
    widen = max(0.0, floor - (hi - lo)) / 2
    return CountRange(lo - widen, hi + widen), np.array(bulk)


def _sorted(values: np.ndarray) -> np.ndarray:
    """``np.sort(values, axis=None)``, several times as fast for counts: by counting them where they
    lie close together.
    """
    if values.dtype.kind == "f":
        return np.sort(values, axis=None)
    lowest, highest = int(values.min()), int(values.max())
    if 4 * (highest - lowest) < values.size:
        frequency = np.bincount((values - values.dtype.type(lowest)).ravel())
        return np.repeat(np.arange(lowest, highest + 1, dtype=values.dtype), frequency)
    return np.sort(values, axis=None, kind="stable")  # of 16 bits, a radix sort


def _quantiles_of_sorted(ordered: np.ndarray, shares: tuple[float, ...]) -> list[float]:
    """Quantiles of sorted values, interpolated linearly as ``np.quantile`` does."""
    last, found = ordered.size - 1, []
    for share in shares:
        position = share * last
        below = int(position)
        low, high = float(ordered[below]), float(ordered[min(below + 1, last)])
        found.append(low + (position - below) * (high - low))
    return found
