"""All that is remembered of a stream of frames, in one object that is passed explicitly.

Networks and steps are pure; what a frame's result owes to the frames before it is here, and is
forgotten in one place. So one model serves several cameras, and a recording may be cut into slices.
"""

from __future__ import annotations

import numpy as np

from difiisr_models.radiometry import CountRange, range_and_bulk

_SCENE_CHANGE = 0.25  # of the tracked span; a hot object on less than a tenth of the frame is none


class Stream:
    """The state of one stream: what its frames look like, and for each channel their range."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all frames; the next one begins a new stream."""
        self._kind: tuple[tuple[int, ...], np.dtype] | None = None
        self._ranges: dict[int, RangeTracker] = {}
        self.stamp_ns: int | None = None

    def begin_frame(self, frame: np.ndarray, stamp_ns: int | None) -> None:
        """Take note of the next frame; one of another shape or dtype begins a new stream.

        Args:
            frame: ``(H, W)`` or ``(H, W, C)``.
            stamp_ns: when it was taken, nanoseconds; None where nobody knows.
        """
        kind = (frame.shape, frame.dtype)
        if kind != self._kind:
            self.reset()
        self._kind, self.stamp_ns = kind, stamp_ns

    def range_of(self, counts: np.ndarray, channel: int = 0) -> CountRange:
        """Take in a channel ``(H, W)`` of the next frame and return the range to use for it."""
        return self._ranges.setdefault(channel, RangeTracker()).update(counts)


class RangeTracker:
    """The range of a stream over time.

    It follows the frames slowly, so that a hot object entering does not make the output pump, and
    snaps to a frame whose bulk (its 10 %, 50 % and 90 % quantiles) has moved: another scene, a
    shutter event. A stream of one static frame keeps exactly that frame's range.
    """

    def __init__(self, rate: float = 0.05) -> None:
        """``rate``: share of the way to the current frame's range taken at each frame, 0..1.

        However far that is, neither end moves by more than ``rate`` times the span.
        """
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"the tracking rate must lie in 0..1, got {rate}")
        self._rate = rate
        self._range: CountRange | None = None
        self._bulk: np.ndarray | None = None

    def update(self, counts: np.ndarray) -> CountRange:
        """Take in one frame ``(H, W)`` and return the range to use for it."""
        frame, bulk = range_and_bulk(counts)
        tracked = self._range
        if tracked is None or np.abs(bulk - self._bulk).max() > _SCENE_CHANGE * tracked.span:
            self._range, self._bulk = frame, bulk
        else:
            most, rate = tracked.span, self._rate
            self._range = CountRange(
                tracked.lo + rate * float(np.clip(frame.lo - tracked.lo, -most, most)),
                tracked.hi + rate * float(np.clip(frame.hi - tracked.hi, -most, most)),
            )
            self._bulk = self._bulk + rate * (bulk - self._bulk)
        return self._range
