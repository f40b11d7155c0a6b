"""Counts to the network's units and back.

The network sees ``n = 2 (counts - lo) / (hi - lo) - 1`` for a robust range of the frame. Counts are
never rescaled on the way out: the same range maps back, so a kelvin stays a kelvin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from difiisr_models.frame_statistics import RANGE_QUANTILES, thinned
from difiisr_models.settings import Camera
from difiisr_models.validity import NO_DATA

NETWORK_LIMIT = 6.0
"""The network is shown [-6, 6]; what lies beyond (a dead pixel, the sun) goes around it."""

_WIDENING = 0.5  # of the span between the quantiles, at most, at either end
_SCENE_QUANTILES = (0.1, 0.5, 0.9)
_ABSURD = 50.0  # times the span of a frame
_SCENE_CHANGE = 0.25  # of the tracked span; a hot object on less than a tenth of the frame is none
_RATE = 0.05  # share of the way to a frame's range, but of the span at most, that either end moves
_MIN_SPAN_COUNTS = 8.0
_EPSILON, _TINY = float(np.finfo(np.float32).eps), float(np.finfo(np.float32).tiny)
_MIN_SPAN_RELATIVE = 1e-4  # of the magnitude of float frames: 0.03 K at 300 K

GARBAGE = 5_000.0
"""Half-spans: in a float frame no temperature, and more than float32 can carry."""

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
    values = np.ascontiguousarray(thinned(counts))
    if invalid is not None and not thinned(invalid).all():
        values = values[~thinned(invalid)]
    if counts.dtype.kind == "f":
        values = values[np.abs(values) < NO_DATA]
        if values.size == 0:
            return CountRange(-1.0, 1.0), np.zeros(len(_SCENE_QUANTILES))
    # Of counts a radix sort.
    ordered = np.sort(values, axis=None, kind=None if counts.dtype.kind == "f" else "stable")
    lo, hi, *bulk = _quantiles_of_sorted(ordered, (*RANGE_QUANTILES, *_SCENE_QUANTILES))
    beyond, widening = (NETWORK_LIMIT - 1) / 2 * (hi - lo), _WIDENING * (hi - lo)
    first = ordered[np.searchsorted(ordered, lo - beyond)]
    last = ordered[np.searchsorted(ordered, hi + beyond, side="right") - 1]
    lo, hi = max(float(first), lo - widening), min(float(last), hi + widening)
    floor = _MIN_SPAN_COUNTS
    if counts.dtype.kind == "f":  # the magnitude is the range's too: a dead pixel has none to say
        floor = max(_MIN_SPAN_RELATIVE * max(-lo, hi), _TINY)
    widen = max(0.0, floor - (hi - lo)) / 2
    return CountRange(lo - widen, hi + widen), np.array(bulk)


def _quantiles_of_sorted(ordered: np.ndarray, shares: tuple[float, ...]) -> list[float]:
    """Quantiles of sorted values, interpolated linearly as ``np.quantile`` does."""
    last, found = ordered.size - 1, []
    for share in shares:
        position = share * last
        below = int(position)
        low, high = float(ordered[below]), float(ordered[min(below + 1, last)])
        found.append(low + (position - below) * (high - low))
    return found


class RangeTracker:
    """The range of a stream over time.

    It follows the frames slowly, so that a hot object entering does not make the output pump, and
    snaps to a frame whose bulk (its 10 %, 50 % and 90 % quantiles) has moved: another scene, a
    shutter event. A stream of one static frame keeps exactly that frame's range.

    Attributes:
        is_new_scene: it snapped to the last frame.
        was_absurd: because the range so far was none of a stream of such frames.
    """

    _range: CountRange
    _bulk: np.ndarray

    def __init__(self) -> None:
        self.is_new_scene = self.was_absurd = self._has_range = False

    @property
    def bulk(self) -> float:
        """From the 10 % to the 90 % quantile of the tracked frames, counts."""
        return float(self._bulk[-1] - self._bulk[0])

    def follow(self, gain: float, offset: float) -> None:
        """All counts are from now on ``gain`` times what they were, plus ``offset``."""
        self._range, self._bulk = self._range.followed(gain, offset), gain * self._bulk + offset

    def is_garbage_for(self, counts: np.ndarray, invalid: np.ndarray | None = None) -> bool:
        """Whether float32 cannot carry the frame ``(H, W)`` in this range, even of a shutter."""
        return not self._range.span <= GARBAGE * range_and_bulk(counts, invalid)[0].span

    def beside(self, counts: np.ndarray, invalid: np.ndarray | None = None) -> CountRange:
        """The range for a frame ``(H, W)`` that nothing is learnt from: moved to where it lies."""
        middle, tracked = float(range_and_bulk(counts, invalid)[1][1]), self._range
        by = min(0.0, middle - tracked.lo) + max(0.0, middle - tracked.hi)
        return CountRange(tracked.lo + by, tracked.hi + by)

    def update(self, counts: np.ndarray, invalid: np.ndarray | None = None) -> CountRange:
        """Take in one frame ``(H, W)`` but its ``invalid`` pixels; returns the range to use for it.

        A range that is absurdly wide for the frame, as one hostile frame may leave it, is dropped.
        """
        frame, bulk = range_and_bulk(counts, invalid)
        if not self._has_range:
            self._range, self._bulk, self._has_range = frame, bulk, True
            self.is_new_scene = True
            return frame
        tracked = self._range
        self.was_absurd = not 0 < tracked.span <= _ABSURD * frame.span
        if self.was_absurd or np.abs(bulk - self._bulk).max() > _SCENE_CHANGE * tracked.span:
            self.is_new_scene = True
            self._range, self._bulk = frame, bulk
        else:
            self.is_new_scene = False
            most, rate = tracked.span, _RATE
            self._range = CountRange(
                tracked.lo + rate * float(np.clip(frame.lo - tracked.lo, -most, most)),
                tracked.hi + rate * float(np.clip(frame.hi - tracked.hi, -most, most)),
            )
            self._bulk = self._bulk + rate * (bulk - self._bulk)
        return self._range
