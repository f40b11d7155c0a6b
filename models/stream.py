"""All that is remembered of a stream of frames, in one object that is passed explicitly.

Networks and steps are pure; what a frame's result owes to the frames before it is here, and is
forgotten in one place. So one model serves several cameras, and a recording may be cut into slices.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from difiisr_models.calibration import Calibration
from difiisr_models.events import KINDS, Event, EventDetector, Kind, is_same
from difiisr_models.fixed_pattern import PatternStrength, PatternTracker
from difiisr_models.noise import difference_noise, scene_noise
from difiisr_models.radiometry import CountRange, range_and_bulk
from difiisr_models.settings import Camera
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
_SHORTEST_PAUSE, _PERIODS = 0.5, 3  # seconds and frames that a pause lasts longer than
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
        event: what the frame is against the ones before it. What is remembered in counts has to
            follow its ``gain`` and ``offset``.
    """

    counts: np.ndarray
    invalid: np.ndarray | None
    range: CountRange
    is_new_scene: bool
    bulk: float
    noise: float
    pattern: PatternStrength
    event: Event = field(default_factory=Event)


@dataclass(frozen=True)
class StreamEvents:
    """What has happened in a stream so far.

    Attributes:
        event: what its last frame is.
        since_ns: stamp of the first of the frames of that kind, the last included; None where
            nobody knows.
        counts: frames of each kind; a pause counts also where its frame is of another kind.
        last: the last event that was not ``normal``.
    """

    event: Event = field(default_factory=Event)
    since_ns: int | None = None
    counts: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    last: Event = field(default_factory=Event)

    def then(self, event: Event, stamp_ns: int | None) -> StreamEvents:
        """The same after one more frame."""
        counts = dict(self.counts)
        counts[event.kind] += 1
        counts["pause"] += event.pause > 0 and event.kind != "pause"
        since = self.since_ns if event.kind == self.event.kind else stamp_ns
        return StreamEvents(event, since, counts, self.last if event.kind == "normal" else event)

    @property
    def text(self) -> str:
        """The events but normal frames in words: ``"5 offset, 12 repeat"``, or ``"none"``."""
        found = [f"{n} {kind}" for kind, n in self.counts.items() if n and kind != "normal"]
        return ", ".join(found) or "none"


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
        max_pause: seconds without frames that what is known of the scene survives.
        is_closed: the camera says that its shutter is closed: its frames show nothing.
        calibration: what is known of the camera from before; of frames of its size.
        events: what has happened.
        tone: how its frames look in 8 bits.
        fallbacks: results that are plain bicubic, for the network's estimate could not be true.
        last_fallback: why the last of them is, "" before any.
    """

    def __init__(
        self,
        no_data: Sequence[float] = (),
        max_pause: float = 5.0,
        calibration: Calibration | None = None,
    ) -> None:
        self.no_data, self.max_pause = tuple(no_data), max_pause
        self.calibration, self.is_closed = calibration, False
        self.fallbacks, self.last_fallback = 0, ""
        self.reset()

    def set_camera(self, camera: Camera) -> None:
        """Take what is to be known of the camera, at the beginning of a stream.

        Raises:
            FileNotFoundError: there is no file ``camera.calibration``.
            ValueError: it is no calibration.
        """
        self.no_data, self.max_pause = camera.no_data_values, camera.max_pause
        if camera.calibration:
            self.calibration = Calibration.load(camera.calibration)

    def reset(self) -> None:
        """Forget all frames; the next one begins a new stream."""
        self._kind: tuple[tuple[int, ...], np.dtype] | None = None
        self._channels: dict[int, Channel] = {}
        self.tone = ToneMapper()
        self._steps: deque[int] = deque(maxlen=15)  # between stamps, nanoseconds
        self._pause, self._is_again = 0.0, False
        self.stamp_ns: int | None = None
        self.events = StreamEvents()

    def begin_frame(self, frame: np.ndarray, stamp_ns: int | None) -> None:
        """Take note of the next frame; one of another shape or dtype begins a new stream.

        Args:
            frame: ``(H, W)`` or ``(H, W, C)``.
            stamp_ns: when it was taken, nanoseconds; None where nobody knows.
        """
        kind = (frame.shape, frame.dtype)
        if kind != self._kind:
            self.reset()
        self._is_again = bool(stamp_ns) and stamp_ns == self.stamp_ns
        self._pause = 0.0
        if stamp_ns is not None and self.stamp_ns is not None and stamp_ns > self.stamp_ns:
            step = stamp_ns - self.stamp_ns
            usual = sorted(self._steps)[len(self._steps) // 2] if len(self._steps) > 2 else step / 4
            if step > max(_PERIODS * usual, 1e9 * _SHORTEST_PAUSE):
                self._pause = step / 1e9
            self._steps.append(step)
        self._kind, self.stamp_ns = kind, stamp_ns

    def see(self, counts: np.ndarray, channel: int = 0, remove_pattern: bool = True) -> Seen:
        """Take in a channel ``(H, W)`` of the frame that has begun.

        ``remove_pattern``: take off the fixed pattern of the sensor, where one is established.
        """
        memory = self.channel(channel, counts.shape)
        if self._is_again and memory.last is not None and is_same(counts, memory.last[0]):
            return memory.last[1]  # the same message, computed once more
        seen = memory.see(
            counts, self.no_data, remove_pattern, self._pause, self.max_pause, self.is_closed
        )
        if channel == 0:
            self.events = self.events.then(seen.event, self.stamp_ns)
        return seen

    def channel(self, number: int = 0, shape: tuple[int, ...] = ()) -> Channel:
        """What one channel of the stream has shown; a new one where it has shown nothing.

        ``shape``: of its frames, which a calibration must fit.
        """
        if number not in self._channels:
            is_known = number == 0 and self.fits(shape)
            self._channels[number] = Channel(self.calibration if is_known else None)
        return self._channels[number]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the calibration is of a camera with such frames, ``(H, W)``; False without."""
        return self.calibration is not None and self.calibration.bad.shape == shape[:2]

    @property
    def is_repeat(self) -> bool:
        """Whether the last frame was exactly the one before it, in all channels."""
        found = [channel.last for channel in self._channels.values()]
        return bool(found) and all(last is not None and last[1].event.is_exact for last in found)

    def calibrate(self) -> Calibration:
        """What the frames so far tell of the camera.

        Raises:
            ValueError: there were none, or they have several channels: colours are no counts.
        """
        if len(self._channels) != 1 or self._channels[0].last is None:
            raise ValueError("no frame of one channel has been seen yet: let frames come first")
        return self._channels[0].calibrate()

    @property
    def seen(self) -> Seen | None:
        """The last frame in its first channel, None before any."""
        channel = self._channels.get(0)
        return None if channel is None or channel.last is None else channel.last[1]

    def note_fallback(self, reason: str) -> None:
        """Count a result that is plain bicubic; a reset does not forget it."""
        self.fallbacks, self.last_fallback = self.fallbacks + 1, reason

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
        result: key and what was made of that frame, None where nothing was.
        past: what a recurrent model made of it, None where that tells nothing of the next one.
    """

    def __init__(self, known: Calibration | None = None) -> None:
        """``known``: of the camera, from an earlier stream."""
        self._still = StillPixels(None if known is None else known.bad)
        self._events = EventDetector()
        self.pattern = PatternTracker()
        if known is not None:
            self.pattern.restore(known.pattern)
        self.last: tuple[np.ndarray, Seen] | None = None
        self.result: tuple[Any, Any] | None = None
        self.past: Past | None = None
        self._begin_scene(0.0 if known is None else known.noise)

    def see(
        self,
        counts: np.ndarray,
        no_data: Sequence[float],
        remove_pattern: bool,
        pause: float = 0.0,
        max_pause: float = np.inf,
        is_closed: bool = False,
    ) -> Seen:
        """Take in the next frame ``(H, W)``, ``pause`` seconds late; see :meth:`Stream.see`."""
        counts = counts.copy()  # it is remembered, and a caller may use its array again
        invalid = invalid_pixels(counts, no_data)
        if pause > max_pause:
            self._events.reset()
        event = self._events.update(counts, invalid, is_closed)
        if event.kind == "flat" and self._range.is_garbage_for(counts, invalid):
            self._events.reset()
            event = replace(event, kind="cut")
        is_late = pause > 0 and event.kind == "normal"
        event = replace(event, kind="pause" if is_late else event.kind, pause=pause)
        how = tuple(no_data), remove_pattern
        if event.is_exact and self._how == how and self.last is not None:
            seen = replace(self.last[1], event=event, is_new_scene=False)
            self.last = counts, seen
            return seen
        self._how, self.result = how, None
        begins = event.kind == "cut" or pause > max_pause
        if begins:
            self._begin_scene()
        elif event.is_affine:
            self._follow(event.gain, event.offset)
        seen = self._look(counts, invalid, remove_pattern, event)
        self.last = counts, seen
        return seen

    def kept(self, key: Any) -> Any | None:
        """The result that was kept under an equal key, where the last frame was a repeated one."""
        is_there = self.result is not None and self.result[0] == key
        return self.result[1] if is_there and self.last[1].event.is_exact else None

    def calibrate(self) -> Calibration:
        """What the frames so far tell of the camera."""
        bad = self._still.found
        bad = np.zeros(self.last[0].shape, bool) if bad is None else bad
        return Calibration(bad, self.last[1].noise, self.pattern.state())

    def _begin_scene(self, noise: float = 0.0) -> None:
        """Forget the scene and its range; stuck pixels and fixed pattern are the camera's."""
        self._range, self._noise, self.past = RangeTracker(), NoiseTracker(noise), None
        self.pattern.begin_scene()
        self._how: tuple | None = None

    def _follow(self, gain: float, offset: float) -> None:
        """All counts are from now on ``gain`` times what they were, plus ``offset``."""
        self._range.follow(gain, offset)
        self._noise.follow(gain, offset)
        self.pattern.begin_scene(gain)
        if self.past is not None:
            self.past = replace(self.past, range=self.past.range.followed(gain, offset))

    def _look(
        self, counts: np.ndarray, invalid: np.ndarray | None, remove_pattern: bool, event: Event
    ) -> Seen:
        has_news, is_new_scene = event.has_news, False
        stuck = self._still.update(counts) if has_news else self._still.found
        if stuck is not None:
            invalid = stuck if invalid is None else invalid | stuck
        if has_news:
            found, is_new_scene = self._range.update(counts, invalid), self._range.is_new_scene
            self.past = None if is_new_scene else self.past
        else:
            found = self._range.beside(counts, invalid)
        if self._range.was_absurd or self._noise.deviation > found.half_span / 2:
            # So is all that was learnt with it; a frame of nothing but noise has a third of that.
            self._noise = NoiseTracker()
            self.pattern.begin_scene()
            self.past = None
        if counts.dtype.kind == "f":
            with np.errstate(invalid="ignore", over="ignore"):  # of marks for no data
                absurd = np.abs(counts - found.centre) > _GARBAGE * found.half_span
            invalid = absurd if invalid is None else invalid | absurd
            invalid = invalid if invalid.any() else None
        filled = counts if invalid is None else fill_from_nearest(counts, invalid)
        noise = self._noise.update(filled) if has_news else self._noise.deviation
        pattern = None
        if remove_pattern:
            pattern = self.pattern.update(filled, noise) if has_news else self.pattern.pattern
        if pattern is not None:
            filled = filled - pattern
        strength = PatternStrength() if pattern is None else self.pattern.strength
        return Seen(filled, invalid, found, is_new_scene, self._range.bulk, noise, strength, event)


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

    def __init__(self, known: float = 0.0) -> None:
        """``known``: of the camera's earlier frames, counts; 0 where nobody knows."""
        self._frames = 0
        self._earlier: deque[np.ndarray] = deque(maxlen=_LAG)
        self._variance = known**2 or None

    @property
    def deviation(self) -> float:
        """The noise of the frames so far, counts; 0 before any."""
        return float(np.sqrt(self._variance or 0.0))

    def follow(self, gain: float, offset: float) -> None:
        """All counts are from now on ``gain`` times what they were, plus ``offset``."""
        self._variance = (self._variance or 0.0) * gain**2
        earlier = (np.float32(gain) * each + np.float32(offset) for each in self._earlier)
        self._earlier = deque(earlier, maxlen=_LAG)

    def update(self, counts: np.ndarray) -> float:
        """Take in a frame ``(H, W)`` without gaps; returns its noise, counts."""
        earlier = self._earlier
        if earlier and np.array_equal(earlier[-1], counts):
            return self.deviation
        if self._frames % _EVERY == 0:
            sigma, with_texture = scene_noise(counts)
            if len(earlier) == _LAG:
                near, far = (difference_noise(counts, earlier[i]) for i in (-1, 0))
                if far < with_texture and far <= _WHITE * near:
                    sigma = far
            rate = 1.0 if self._variance is None else _NOISE_RATE
            self._variance = (self._variance or 0.0) * (1 - rate) + rate * sigma**2
        self._frames += 1
        earlier.append(counts)
        return self.deviation


class RangeTracker:
    """The range of a stream over time.

    It follows the frames slowly, so that a hot object entering does not make the output pump, and
    snaps to a frame whose bulk (its 10 %, 50 % and 90 % quantiles) has moved: another scene, a
    shutter event. A stream of one static frame keeps exactly that frame's range.

    Attributes:
        is_new_scene: it snapped to the last frame.
        was_absurd: because the range so far was none of a stream of such frames.
    """

    def __init__(self, rate: float = 0.05) -> None:
        """``rate``: share of the way to the current frame's range taken at each frame, 0..1.

        However far that is, neither end moves by more than ``rate`` times the span.
        """
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"the tracking rate must lie in 0..1, got {rate}")
        self._rate = rate
        self.is_new_scene = self.was_absurd = False
        self._range: CountRange | None = None
        self._bulk: np.ndarray | None = None

    @property
    def bulk(self) -> float:
        """From the 10 % to the 90 % quantile of the tracked frames, counts."""
        return float(self._bulk[-1] - self._bulk[0])

    def follow(self, gain: float, offset: float) -> None:
        """All counts are from now on ``gain`` times what they were, plus ``offset``."""
        self._range, self._bulk = self._range.followed(gain, offset), gain * self._bulk + offset

    def is_garbage_for(self, counts: np.ndarray, invalid: np.ndarray | None = None) -> bool:
        """Whether float32 cannot carry the frame ``(H, W)`` in this range, even of a shutter."""
        return not self._range.span <= _GARBAGE * range_and_bulk(counts, invalid)[0].span

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
        tracked = self._range
        self.was_absurd = tracked is not None and not 0 < tracked.span <= _ABSURD * frame.span
        if (
            tracked is None
            or self.was_absurd
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
