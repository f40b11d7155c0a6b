"""Rolling statistics of a stream of frames: rates, latencies, drops by reason, lost stamps."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

WINDOW = 10.0  # seconds that rates, latencies and `recent_*` look back


@dataclass(frozen=True)
class Summary:
    """One moment of a stream; counts are totals since the start, unless `recent_`."""

    received: int = 0
    published: int = 0
    idle: int = 0  # not processed because nobody listened
    waiting: bool = False  # the newest image was one of them
    lost: int = 0  # never arrived, seen as gaps in the stamps
    dropped: dict[str, int] = field(default_factory=dict)  # by reason
    recent_received: int = 0
    recent_lost: int = 0
    recent_dropped: dict[str, int] = field(default_factory=dict)
    rate_in: float = 0.0  # Hz
    rate_out: float = 0.0
    latency: tuple[float, float, float] | None = None  # p50, p90, p99, seconds
    upscaling: float | None = None  # p50 of the upscaler alone, seconds
    silence: float = 0.0  # seconds since the last image, or since the start
    last_error: str = ""


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile of non-empty `values`, 0 < percent <= 100."""
    return sorted(values)[math.ceil(percent / 100 * len(values)) - 1]


def missing_frames(stamps: Sequence[int]) -> int:
    """Return how many frames are missing just before the newest of `stamps` (nanoseconds).

    The camera's period is the median distance of the stamps. A step backwards (a bag that starts
    again) or of more than WINDOW is a new stream, and nothing is missing.
    """
    steps = [later - earlier for earlier, later in pairwise(stamps)]
    if len(steps) < 3 or not 0 < steps[-1] < WINDOW * 1e9:
        return 0
    period = sorted(steps)[len(steps) // 2]
    return max(0, round(steps[-1] / period) - 1) if period > 0 else 0


class StreamStatistics:
    """Counts what happens to frames; safe to call from several threads.

    `clock` returns monotonic seconds: neither simulated time nor a clock correction may bend a
    latency.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._started = clock()
        self._last_image = self._started
        self._stamps: deque[int] = deque(maxlen=16)
        self._totals: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._waiting = False
        self._last_error = ""
        self._received: deque[float] = deque()  # times
        self._published: deque[tuple[float, float, float]] = deque()  # time, latency, upscaling
        self._recent_lost: deque[tuple[float, int]] = deque()  # time, frames
        self._recent_dropped: deque[tuple[float, str]] = deque()  # time, reason

    def received(self, stamp: int) -> None:
        """Count an image that arrived; `stamp` is its header's, in nanoseconds."""
        with self._lock:
            now = self._last_image = self._clock()
            self._totals["received"] += 1
            self._waiting = False
            self._received.append(now)
            self._stamps.append(stamp)
            lost = missing_frames(tuple(self._stamps))
            if lost:
                self._totals["lost"] += lost
                self._recent_lost.append((now, lost))

    def published(self, latency: float, upscaling: float) -> None:
        """Count a result that went out `latency` seconds after its image arrived.

        `upscaling` seconds of them the upscaler took.
        """
        with self._lock:
            self._totals["published"] += 1
            self._published.append((self._clock(), latency, upscaling))

    def idle(self) -> None:
        """Count an image that nobody wanted upscaled."""
        with self._lock:
            self._totals["idle"] += 1
            self._waiting = True

    def dropped(self, reason: str, error: str = "") -> None:
        """Count an image that gets no answer, and keep the text of the error, if it was one."""
        with self._lock:
            self._dropped[reason] += 1
            self._recent_dropped.append((self._clock(), reason))
            self._last_error = error or self._last_error

    def summary(self) -> Summary:
        """Return the numbers of now."""
        with self._lock:
            now = self._clock()
            while self._received and self._received[0] < now - WINDOW:
                self._received.popleft()
            for events in (self._published, self._recent_lost, self._recent_dropped):
                while events and events[0][0] < now - WINDOW:
                    events.popleft()
            moments, latencies, upscaling = ([row[i] for row in self._published] for i in range(3))
            return Summary(
                **{name: self._totals[name] for name in ("received", "published", "idle", "lost")},
                waiting=self._waiting,
                dropped=dict(self._dropped),
                recent_received=len(self._received),
                recent_lost=sum(frames for _, frames in self._recent_lost),
                recent_dropped=dict(Counter(reason for _, reason in self._recent_dropped)),
                rate_in=_rate(self._received),
                rate_out=_rate(moments),
                latency=tuple(percentile(latencies, p) for p in (50, 90, 99))
                if latencies
                else None,
                upscaling=percentile(upscaling, 50) if upscaling else None,
                silence=now - self._last_image,
                last_error=self._last_error,
            )


def _rate(moments: Sequence[float]) -> float:
    if len(moments) < 2 or moments[-1] <= moments[0]:
        return 0.0
    return (len(moments) - 1) / (moments[-1] - moments[0])
