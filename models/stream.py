"""All that is remembered of a stream of frames, in one object that is passed explicitly.

Networks and steps are pure; what a frame's result owes to the frames before it is here, and is
forgotten in one place. So one model serves several cameras, and a recording may be cut into slices.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from difiisr_models.camera_files import Calibration
from difiisr_models.events import KINDS, Event, EventDetector, Kind
from difiisr_models.fixed_pattern import PatternStrength, PatternTracker
from difiisr_models.frame_statistics import RANGE_QUANTILES
from difiisr_models.noise import NoiseTracker
from difiisr_models.radiometry import GARBAGE, CountRange, RangeTracker
from difiisr_models.settings import Camera
from difiisr_models.tone_mapping import ToneMapper
from difiisr_models.validity import StillPixels, fill, invalid_pixels

if TYPE_CHECKING:
    from difiisr_models.recurrence import Past

_SAMPLED_PIXELS = 80_000  # that a span takes quantiles of
_SHORTEST_PAUSE, _PERIODS = 0.5, 3  # seconds and frames that a pause lasts longer than


@dataclass(frozen=True)
class Seen:
    """A frame as its stream shows it; all numbers but ``invalid_count`` in counts.

    Attributes:
        measured: ``(H, W)`` as the camera gave it.
        counts: the same with the invalid pixels filled from the nearest valid ones, and without the
            fixed pattern of the sensor; float32 where one is established.
        invalid: ``(H, W)`` bool, None where all pixels are valid.
        range: that the network is shown as -1..1; it follows the frames slowly.
        bulk: from its 10 % to its 90 % quantile: how far most of the scene spreads.
        noise: standard deviation of its noise.
        pattern: strength of what was taken off.
        event: what the frame is against the ones before it. What is remembered in counts has to
            follow its ``gain`` and ``offset``.
    """

    measured: np.ndarray
    counts: np.ndarray
    invalid: np.ndarray | None
    range: CountRange
    bulk: float
    noise: float
    pattern: PatternStrength
    event: Event

    @cached_property
    def _valid(self) -> np.ndarray:
        return self.measured.ravel() if self.invalid is None else self.measured[~self.invalid]

    @property
    def invalid_count(self) -> int:
        """Pixels without a measurement."""
        return self.measured.size - self._valid.size

    @property
    def coldest(self) -> float:
        """Least *measured* value of the valid pixels; NaN without any."""
        return float(self._valid.min()) if self._valid.size else float("nan")

    @property
    def hottest(self) -> float:
        """Greatest *measured* value of the valid pixels; NaN without any."""
        return float(self._valid.max()) if self._valid.size else float("nan")

    @cached_property
    def span(self) -> float:
        """From the 0.2 % to the 99.8 % quantile of the valid pixels; 0 without any."""
        valid = self._valid[:: 1 + self._valid.size // _SAMPLED_PIXELS]
        return float(np.ptp(np.quantile(valid, RANGE_QUANTILES))) if valid.size else 0.0

    @property
    def noise_percent(self) -> float:
        """The noise in percent of the span; 0 where there is no span."""
        return 100 * self.noise / self.span if self.span else 0.0


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


class Stream:
    """The state of one stream: what its frames look like, and for each channel what was seen of it.

    Attributes:
        stamp_ns: when the last frame was taken, nanoseconds; None where nobody said.
        no_data: values that mark pixels without a measurement; another set acts from the next
            frame on.
        max_pause: seconds without frames that what is known of the scene survives.
        is_closed: the camera says that its shutter is closed: its frames show nothing.
        encoding: what the next frame's message calls its pixels: another begins a new stream, for
            the same dtype may hold other counts.
        calibration: what is known of the camera from before; of frames of its size.
        pause: seconds without frames before the last one, 0 without a pause.
        events: what has happened.
        tone: how its frames look in 8 bits.
        fallbacks: results that are plain bicubic, for the network's estimate could not be true; a
            reset does not forget them.
        last_fallback: why the last of them is, "" before any.
    """

    def __init__(
        self,
        no_data: Sequence[float] = (),
        max_pause: float = 5.0,
        calibration: Calibration | None = None,
    ) -> None:
        self.no_data, self.max_pause = tuple(no_data), max_pause
        self.calibration, self.is_closed, self.encoding = calibration, False, ""
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
        self._kind: tuple[tuple[int, ...], np.dtype, str] | None = None
        self._channels: dict[int, Channel] = {}
        self.tone = ToneMapper()
        self._steps: deque[int] = deque(maxlen=15)  # between stamps, nanoseconds
        self.pause, self._is_again = 0.0, False
        self.stamp_ns: int | None = None
        self.events = StreamEvents()

    def begin_frame(self, frame: np.ndarray, stamp_ns: int | None) -> None:
        """Take note of the next frame; another shape, dtype or encoding begins a new stream.

        Args:
            frame: ``(H, W)`` or ``(H, W, C)``.
            stamp_ns: when it was taken, nanoseconds; None where nobody knows.
        """
        kind = (frame.shape, frame.dtype, self.encoding)
        if kind != self._kind:
            self.reset()
        self._is_again = bool(stamp_ns) and stamp_ns == self.stamp_ns
        self.pause = 0.0
        if stamp_ns is not None and self.stamp_ns is not None and stamp_ns > self.stamp_ns:
            step = stamp_ns - self.stamp_ns
            usual = sorted(self._steps)[len(self._steps) // 2] if len(self._steps) > 2 else step / 4
            if step > max(_PERIODS * usual, 1e9 * _SHORTEST_PAUSE):
                self.pause = step / 1e9
            self._steps.append(step)
        self._kind, self.stamp_ns = kind, stamp_ns

    def see(self, counts: np.ndarray, channel: int = 0, remove_pattern: bool = True) -> Seen:
        """Take in a channel ``(H, W)`` of the frame that has begun.

        ``remove_pattern``: take off the fixed pattern of the sensor, where one is established.
        """
        memory = self.channel(channel, counts.shape)
        last = memory.seen if self._is_again else None
        if last is not None and np.array_equal(counts, last.measured, equal_nan=True):
            return last  # the same message, computed once more
        seen = memory.see(counts, self, remove_pattern)
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
        found = [channel.seen for channel in self._channels.values()]
        return bool(found) and all(seen is not None and seen.event.is_exact for seen in found)

    @property
    def seen(self) -> Seen | None:
        """The last frame in its first channel, None before any; any thread may ask."""
        channel = self._channels.get(0)
        return None if channel is None else channel.seen

    def calibrate(self) -> Calibration:
        """What the frames so far tell of the camera.

        Raises:
            ValueError: there were none, or they have several channels: colours are no counts.
        """
        if len(self._channels) != 1 or self.seen is None:
            raise ValueError("no frame of one channel has been seen yet: let frames come first")
        return self._channels[0].calibrate()


class Channel:
    """What one channel of a stream has shown so far.

    Attributes:
        seen: the last frame; None before any.
        result: key and what was made of that frame, None where nothing was.
        past: what a recurrent model made of it, None where that tells nothing of the next one.
    """

    def __init__(self, known: Calibration | None = None) -> None:
        """``known``: of the camera, from an earlier stream."""
        self._still = StillPixels(None if known is None else known.bad)
        self._events, self._pattern = EventDetector(), PatternTracker()
        if known is not None:
            self._pattern.restore(known.pattern)
        self.seen: Seen | None = None
        self.result: tuple[Any, Any] | None = None
        self.past: Past | None = None
        self._how: tuple[tuple[float, ...], bool] | None = None
        self._begin_scene(0.0 if known is None else known.noise)

    def see(self, counts: np.ndarray, stream: Stream, remove_pattern: bool) -> Seen:
        """Take in the next frame ``(H, W)``; see :meth:`Stream.see`."""
        counts = counts.copy()  # it is remembered, and a caller may use its array again
        invalid = invalid_pixels(counts, stream.no_data)
        is_lost = stream.pause > stream.max_pause
        if is_lost:
            self._events = EventDetector()
        event = self._events.update(counts, invalid, stream.is_closed)
        if event.kind == "flat" and self._range.is_garbage_for(counts, invalid):
            self._events = EventDetector()
            event = replace(event, kind="cut")
        is_late = stream.pause > 0 and event.kind == "normal"
        event = replace(event, kind="pause" if is_late else event.kind, pause=stream.pause)
        how = stream.no_data, remove_pattern
        if event.is_exact and self._how == how and self.seen is not None:
            self.seen = replace(self.seen, event=event)
            return self.seen
        if event.kind == "cut" or is_lost:
            self._begin_scene()
        elif event.is_affine:
            self._follow(event.gain, event.offset)
        self._how, self.result = how, None
        self.seen = self._look(counts, invalid, remove_pattern, event)
        return self.seen

    def kept(self, key: Any) -> Any | None:
        """The result that was kept under an equal key, where the last frame was a repeated one."""
        if self.result is None or self.seen is None or not self.seen.event.is_exact:
            return None
        return self.result[1] if self.result[0] == key else None

    def calibrate(self) -> Calibration:
        """What the frames so far tell of the camera."""
        assert self.seen is not None, "a channel begins with a frame"
        bad = self._still.found
        bad = np.zeros(self.seen.measured.shape, bool) if bad is None else bad
        return Calibration(bad, self.seen.noise, self._pattern.state())

    def _begin_scene(self, noise: float = 0.0) -> None:
        """Forget the scene and its range; stuck pixels and fixed pattern are the camera's."""
        self._range = RangeTracker()
        self._forget_scene(noise)
        self._how = None

    def _forget_scene(self, noise: float = 0.0) -> None:
        self._noise, self.past = NoiseTracker(noise), None
        self._pattern.begin_scene()

    def _follow(self, gain: float, offset: float) -> None:
        """All counts are from now on ``gain`` times what they were, plus ``offset``."""
        self._range.follow(gain, offset)
        self._noise.follow(gain, offset)
        self._pattern.begin_scene(gain)
        if self.past is not None:
            self.past = replace(self.past, range=self.past.range.followed(gain, offset))

    def _look(
        self, counts: np.ndarray, invalid: np.ndarray | None, remove_pattern: bool, event: Event
    ) -> Seen:
        """Which pixels hold nothing, then range, noise and pattern of those that do."""
        has_news = event.has_news
        stuck = self._still.update(counts) if has_news else self._still.found
        if stuck is not None:
            invalid = stuck if invalid is None else invalid | stuck
        if has_news:
            found = self._range.update(counts, invalid)
            self.past = None if self._range.is_new_scene else self.past
        else:
            found = self._range.beside(counts, invalid)
        if self._range.was_absurd or self._noise.deviation > found.half_span / 2:
            # So is all that was learnt with it; a frame of nothing but noise has a third of that.
            self._forget_scene()
        if counts.dtype.kind == "f":
            with np.errstate(invalid="ignore", over="ignore"):  # of marks for no data
                absurd = np.abs(counts - found.centre) > GARBAGE * found.half_span
            invalid = absurd if invalid is None else invalid | absurd
            invalid = invalid if invalid.any() else None
        filled = counts if invalid is None else fill(counts, invalid)
        noise = self._noise.update(filled, invalid) if has_news else self._noise.deviation
        strength = PatternStrength()
        if remove_pattern:
            pattern = self._pattern.update(filled, noise) if has_news else self._pattern.pattern
            if pattern is not None:
                filled, strength = filled - pattern, self._pattern.strength
        return Seen(counts, filled, invalid, found, self._range.bulk, noise, strength, event)
