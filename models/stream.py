"""All that is remembered of a stream of frames, in one object that is passed explicitly.

Networks and steps are pure; what a frame's result owes to the frames before it is here, and is
forgotten in one place. So one model serves several cameras, and a recording may be cut into slices.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from difiisr_models.fixed_pattern import PatternStrength, PatternTracker
from difiisr_models.noise import difference_noise, flattest_deviation, scene_noise
from difiisr_models.radiometry import CountRange, range_and_bulk
from difiisr_models.tone_mapping import ToneMapper
from difiisr_models.validity import StillPixels, fill_from_nearest, invalid_pixels

if TYPE_CHECKING:
    from difiisr_models.recurrence import Past

_ABSURD = 50.0  # times the span of a frame
_GARBAGE = 5_000.0  # half-spans: in a float frame no temperature, and more than float32 can carry
_SAMPLED_PIXELS = 80_000  # that a summary takes quantiles of
_LAG = 6  # frames
_WHITE = 1.3  # times: differences of white noise do not grow with the lag
_EVERY = 4  # frames: noise changes slowly, and looking for it takes as long as bicubic
_NOISE_RATE = 0.5  # share of such a frame in the tracked variance
_SCENE_CHANGE = 0.25  # of the tracked span; a hot object on less than a tenth of the frame is none


@dataclass(frozen=True)
class Seen:
    """A frame as its stream shows it.

    Attributes:
        counts: ``(H, W)`` with the invalid pixels filled from the nearest valid ones, and without
            the fixed pattern of the sensor; float32 where one is established.
        invalid: ``(H, W)`` bool, None where all pixels are valid.
        range: to normalise it by.
        is_new_scene: it shows another scene than the frame before.
        bulk: from its 10 % to its 90 % quantile, counts: how far most of the scene spreads.
        noise: standard deviation of its noise, counts.
        pattern: strength of what was taken off.
    """

    counts: np.ndarray
    invalid: np.ndarray | None
    range: CountRange
    is_new_scene: bool
    bulk: float
    noise: float
    pattern: PatternStrength


@dataclass(frozen=True)
class StreamSummary:
    """What a stream shows, by its last frame; all but the number of pixels in counts.

    Attributes:
        noise: standard deviation.
        span: from the 0.2 % to the 99.8 % quantile of the valid pixels; 0 without any.
        pattern: the fixed pattern that is taken off.
        invalid: pixels without a measurement.
        coldest, hottest: least and greatest *measured* value of the valid pixels, before anything
            is taken off, filled or computed; NaN without any.
        range: that the network is shown as -1..1; it follows the frames slowly.
    """

    noise: float
    span: float
    pattern: PatternStrength
    invalid: int
    coldest: float
    hottest: float
    range: CountRange

    @property
    def noise_percent(self) -> float:
        """The noise in percent of the span; 0 where there is no span."""
        return 100 * self.noise / self.span if self.span else 0.0


class Stream:
    """The state of one stream: what its frames look like, and for each channel what was seen of it.

    Attributes:
        stamp_ns: when the last frame was taken, nanoseconds; None where nobody said.
        no_data: values that mark pixels without a measurement; another set acts from the next
            frame on.
        tone: how its frames look in 8 bits.
    """

    def __init__(self, no_data: Sequence[float] = ()) -> None:
        self.no_data = tuple(no_data)
        self.reset()

    def reset(self) -> None:
        """Forget all frames; the next one begins a new stream."""
        self._kind: tuple[tuple[int, ...], np.dtype] | None = None
        self._channels: dict[int, Channel] = {}
        self.tone = ToneMapper()
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

    def see(self, counts: np.ndarray, channel: int = 0, remove_pattern: bool = True) -> Seen:
        """Take in a channel ``(H, W)`` of the frame that has begun.

        ``remove_pattern``: take off the fixed pattern of the sensor, where one is established.
        """
        return self.channel(channel).see(counts, self.no_data, remove_pattern)

    def channel(self, number: int = 0) -> Channel:
        """What one channel of the stream has shown; a new one where it has shown nothing."""
        return self._channels.setdefault(number, Channel())

    @property
    def seen(self) -> Seen | None:
        """The last frame in its first channel, None before any."""
        channel = self._channels.get(0)
        return None if channel is None or channel.last is None else channel.last[1]

    def summary(self) -> StreamSummary | None:
        """What the last frame showed in its first channel, None before any.

        Any thread may ask while another takes in frames.
        """
        channel = self._channels.get(0)
        last = None if channel is None else channel.last
        return None if last is None else _summary(*last)


class Channel:
    """What one channel of a stream has shown so far.

    Attributes:
        pattern: the sensor's.
        last: the last frame, as it was measured and as it was seen; None before any.
        past: what a recurrent model made of it, None where that tells nothing of the next one.
    """

    def __init__(self) -> None:
        self._range = RangeTracker()
        self._still = StillPixels()
        self._noise = NoiseTracker()
        self.pattern = PatternTracker()
        self.last: tuple[np.ndarray, Seen] | None = None
        self.past: Past | None = None

    def see(self, counts: np.ndarray, no_data: Sequence[float], remove_pattern: bool) -> Seen:
        """Take in the next frame ``(H, W)``; see :meth:`Stream.see`."""
        counts = counts.copy()  # it is remembered, and a caller may use its array again
        invalid = invalid_pixels(counts, no_data)
        stuck = self._still.update(counts)
        if stuck is not None:
            invalid = stuck if invalid is None else invalid | stuck
        found, is_new_scene = self._range.update(counts, invalid), self._range.is_new_scene
        self.past = None if is_new_scene else self.past
        if counts.dtype.kind == "f":
            with np.errstate(invalid="ignore", over="ignore"):  # of marks for no data
                absurd = np.abs(counts - found.centre) > _GARBAGE * found.half_span
            invalid = absurd if invalid is None else invalid | absurd
            invalid = invalid if invalid.any() else None
        filled = counts if invalid is None else fill_from_nearest(counts, invalid)
        noise = self._noise.update(filled)
        pattern = self.pattern.update(filled, noise) if remove_pattern else None
        if pattern is not None:
            filled = filled - pattern
        strength = PatternStrength() if pattern is None else self.pattern.strength
        seen = Seen(filled, invalid, found, is_new_scene, self._range.bulk, noise, strength)
        self.last = counts, seen
        return seen


def _summary(counts: np.ndarray, seen: Seen) -> StreamSummary:
    valid = counts.ravel() if seen.invalid is None else counts[~seen.invalid]
    coldest = hottest = float("nan")
    lo = hi = 0.0
    if valid.size:
        coldest, hottest = float(valid.min()), float(valid.max())
        lo, hi = np.quantile(valid[:: 1 + valid.size // _SAMPLED_PIXELS], (0.002, 0.998))
    return StreamSummary(
        noise=seen.noise,
        span=float(hi - lo),
        pattern=seen.pattern,
        invalid=counts.size - valid.size,
        coldest=coldest,
        hottest=hottest,
        range=seen.range,
    )


class NoiseTracker:
    """The noise of a stream over time.

    Every fourth frame is judged: by itself at first, from the seventh on by its difference to
    earlier ones. Where nothing moves, that holds noise and nothing else, be the scene as textured
    as it may. It is believed where the difference to the frame before is as large as to the one six
    before. If it is smaller, the camera filters over time (as a Lepton does), or all of the scene
    moves, and the frame by itself tells better.
    """

    def __init__(self) -> None:
        self._frames = 0
        self._earlier: deque[np.ndarray] = deque(maxlen=_LAG)
        self._variance: float | None = None

    def update(self, counts: np.ndarray) -> float:
        """Take in a frame ``(H, W)`` without gaps; returns its noise, counts."""
        earlier = self._earlier
        if earlier and np.array_equal(earlier[-1], counts):
            return float(np.sqrt(self._variance))
        if self._frames % _EVERY == 0:
            deviation = flattest_deviation(counts)
            sigma = scene_noise(deviation, counts)
            if len(earlier) == _LAG:
                near, far = (difference_noise(counts, earlier[i]) for i in (-1, 0))
                if far < deviation and far <= _WHITE * near:
                    sigma = far
            rate = 1.0 if self._variance is None else _NOISE_RATE
            self._variance = (self._variance or 0.0) * (1 - rate) + rate * sigma**2
        self._frames += 1
        earlier.append(counts)
        return float(np.sqrt(self._variance))


class RangeTracker:
    """The range of a stream over time.

    It follows the frames slowly, so that a hot object entering does not make the output pump, and
    snaps to a frame whose bulk (its 10 %, 50 % and 90 % quantiles) has moved: another scene, a
    shutter event. A stream of one static frame keeps exactly that frame's range.

    Attributes:
        is_new_scene: it snapped to the last frame.
    """

    def __init__(self, rate: float = 0.05) -> None:
        """``rate``: share of the way to the current frame's range taken at each frame, 0..1.

        However far that is, neither end moves by more than ``rate`` times the span.
        """
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"the tracking rate must lie in 0..1, got {rate}")
        self._rate = rate
        self.is_new_scene = False
        self._range: CountRange | None = None
        self._bulk: np.ndarray | None = None

    @property
    def bulk(self) -> float:
        """From the 10 % to the 90 % quantile of the tracked frames, counts."""
        return float(self._bulk[-1] - self._bulk[0])

    def update(self, counts: np.ndarray, invalid: np.ndarray | None = None) -> CountRange:
        """Take in one frame ``(H, W)`` but its ``invalid`` pixels; returns the range to use for it.

        A range that is absurdly wide for the frame, as one hostile frame may leave it, is dropped.
        """
        frame, bulk = range_and_bulk(counts, invalid)
        tracked = self._range
        if (
            tracked is None
            or tracked.span > _ABSURD * frame.span
            or np.abs(bulk - self._bulk).max() > _SCENE_CHANGE * tracked.span
        ):
            self.is_new_scene = True
            self._range, self._bulk = frame, bulk
        else:
            self.is_new_scene = False
            most, rate = tracked.span, self._rate
            self._range = CountRange(
                tracked.lo + rate * float(np.clip(frame.lo - tracked.lo, -most, most)),
                tracked.hi + rate * float(np.clip(frame.hi - tracked.hi, -most, most)),
            )
            self._bulk = self._bulk + rate * (bulk - self._bulk)
        return self._range
