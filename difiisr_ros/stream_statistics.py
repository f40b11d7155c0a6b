"""Rolling statistics of a stream of frames: rates, latencies, drops by reason, lost stamps."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import numpy as np

WINDOW = 10.0  # seconds that rates, latencies and recent counts look back

SILENCE = 3.0  # seconds without an image before a stream counts as silent
_MOST_EVENTS = 100_000  # that are kept of a flood
_LONGEST_GAP = 4  # frames in a row that come late: more is another rate, and nothing is lost
_PAUSE = 0.5  # seconds without images: more than a network loses at once
_NEAR = 1.0  # second between a gap and what explains it
_SAME_CLOCK = 20.0  # times that a camera's clock may run faster or slower than this machine's

# Reasons for which an image that arrived gets no answer. stopped: the node was deactivated.
# repeated: it is the one before it, and on_repeat says drop.
Reason = Literal["stale", "over_rate", "malformed", "too_large", "failed", "stopped", "repeated"]
# What becomes of frames. idle: nobody listened. lost: never arrived, seen as gaps in the stamps.
# withheld: the camera did not send them, as while its shutter is closed.
Fate = Literal["received", "published", "idle", "lost", "withheld", Reason]


@dataclass(frozen=True)
class Summary:
    """One moment of a stream.

    Attributes:
        total: how many frames met each fate since the process started.
        recent: the same, of the last ``WINDOW`` seconds.
        waiting: nobody listened when the newest image came.
        rate_in: images received, Hz.
        rate_out: results published, Hz.
        latency: p50, p90 and p99 from an image to its result, seconds; NaN without any.
        upscaling: p50 of the upscaler alone, seconds; NaN without any.
        silence: seconds since the last image, or since the start.
        errors: fate -> text of the newest error of that kind.
    """

    total: Counter[Fate] = field(default_factory=Counter)
    recent: Counter[Fate] = field(default_factory=Counter)
    waiting: bool = False
    rate_in: float = 0.0
    rate_out: float = 0.0
    latency: tuple[float, float, float] = (np.nan, np.nan, np.nan)
    upscaling: float = np.nan
    silence: float = 0.0
    errors: Mapping[Fate, str] = field(default_factory=dict)

    @property
    def pending(self) -> int:
        """Frames received that wait or are computed: they have met no fate yet."""
        fates = ("published", "idle", *get_args(Reason))
        return self.total["received"] - sum(self.total[fate] for fate in fates)


class _Event(NamedTuple):
    at: float  # monotonic seconds
    fate: Fate
    latency: float = 0.0  # of what was published, seconds
    upscaling: float = 0.0


def missing_frames(stamps: Sequence[float], arrivals: Sequence[float]) -> int:
    """Return how many frames are missing just before the newest, 0 where that cannot be told.

    Both clocks must tell of the gap, each in its own period, the median distance of two frames;
    the smaller number is returned. A step backwards (a bag that starts again) or of more than
    ``WINDOW`` is a new stream; periods that have nothing to do with each other are no camera's.

    Args:
        stamps: of the headers, seconds.
        arrivals: monotonic seconds.
    """
    counts, periods = [], []
    for moments in (stamps, arrivals):
        steps = [later - earlier for earlier, later in pairwise(moments)]
        if len(steps) < 3 or not 0 < steps[-1] < WINDOW:
            return 0
        periods.append(sorted(steps)[len(steps) // 2])
        counts.append(round(steps[-1] / periods[-1]) - 1 if periods[-1] > 0 else 0)
    is_clock = max(periods) <= _SAME_CLOCK * min(periods)
    return max(0, min(counts)) if is_clock else 0


class StreamStatistics:
    """Counts what happens to frames; safe to call from several threads.

    ``clock`` returns monotonic seconds: neither simulated time nor a clock correction may bend a
    latency.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._total: Counter[Fate] = Counter()
        self._errors: dict[Fate, str] = {}
        self.begin()

    def begin(self) -> None:
        """Begin a new stream: what was seen of the last one is forgotten, all but the totals."""
        with self._lock:
            self._last_image = self._clock()
            self._stamps: deque[float] = deque(maxlen=16)
            self._arrivals: deque[float] = deque(maxlen=16)
            self._gap: list[int] = []  # missing frames, step by step, that may be another rate
            self._gap_length = 0.0  # seconds, of its longest step
            self._explained = -np.inf  # monotonic seconds
            self._recent: deque[_Event] = deque(maxlen=_MOST_EVENTS)
            self._waiting = False

    def received(self, stamp: int) -> None:
        """Count an image that arrived; ``stamp`` is its header's, in nanoseconds."""
        with self._lock:
            self._last_image = self._clock()
            self._waiting = False
            self._add("received")
            self._stamps.append(stamp / 1e9)
            self._arrivals.append(self._last_image)
            if missing := missing_frames(self._stamps, self._arrivals):
                self._gap.append(missing)
                step = self._arrivals[-1] - self._arrivals[-2]
                self._gap_length = max(self._gap_length, step)
            elif self._gap:
                self._count_gap()

    def explained(self) -> None:
        """The camera's shutter was at work about now: a gap in the stamps is no loss."""
        with self._lock:
            self._explained = self._clock()
            for n, event in enumerate(self._recent):
                if event.fate == "lost" and event.at > self._explained - _NEAR:
                    self._recent[n] = event._replace(fate="withheld")
                    self._total.update({"lost": -1, "withheld": 1})

    def _count_gap(self) -> None:
        """A long gap that stands alone is the camera's, as others by their neighbourhood are."""
        missing = sum(self._gap) if len(self._gap) <= _LONGEST_GAP else 0
        now = self._clock()
        is_alone = len(self._gap) == 1 and not any(
            event.fate in ("lost", "withheld") and event.at > now - WINDOW for event in self._recent
        )
        is_explained = now - self._explained < self._gap_length + 2 * _NEAR
        is_pause = is_explained or (is_alone and self._gap_length > _PAUSE)
        for _ in range(missing):
            self._add("withheld" if is_pause else "lost")
        self._gap.clear()
        self._gap_length = 0.0

    def count(
        self, fate: Fate, error: str = "", *, latency: float = 0.0, upscaling: float = 0.0
    ) -> None:
        """Count what became of an image that was received.

        ``error``: why it gets no answer. ``latency``: seconds from its arrival to its result, of
        which ``upscaling`` the upscaler took.
        """
        with self._lock:
            self._waiting = self._waiting or fate == "idle"
            self._add(fate, latency, upscaling)
            if error:
                self._errors.pop(fate, None)  # the newest comes last
                self._errors[fate] = error

    def summary(self) -> Summary:
        """Return the numbers of now."""
        with self._lock:
            now = self._clock()
            while self._recent and self._recent[0].at < now - WINDOW:
                self._recent.popleft()
            published = [event for event in self._recent if event.fate == "published"]
            latencies = [event.latency for event in published] or [np.nan]
            upscaling = [event.upscaling for event in published] or [np.nan]
            return Summary(
                total=self._total.copy(),
                recent=Counter(event.fate for event in self._recent),
                waiting=self._waiting,
                rate_in=_rate([e.at for e in self._recent if e.fate == "received"], now),
                rate_out=_rate([event.at for event in published], now),
                latency=tuple(np.percentile(latencies, (50, 90, 99))),
                upscaling=float(np.median(upscaling)),
                silence=now - self._last_image,
                errors=self._errors.copy(),
            )

    def _add(self, fate: Fate, latency: float = 0.0, upscaling: float = 0.0) -> None:
        self._total[fate] += 1
        self._recent.append(_Event(self._clock(), fate, latency, upscaling))


def _rate(moments: Sequence[float], now: float) -> float:
    """Hz, up to ``now``: a stream that has become slower or silent has no longer its old rate."""
    if len(moments) < 2 or moments[-1] <= moments[0] or now - moments[-1] > SILENCE:
        return 0.0
    steps = len(moments) - 1
    return min(steps / (moments[-1] - moments[0]), len(moments) / (now - moments[0]))
