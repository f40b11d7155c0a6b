"""Timing of recorded streams from their stamps: rates, jitter, gaps, drops, latency.

All times come in as integer nanoseconds; what is shown to people goes out in hertz, milliseconds
and seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GAP = 1.5  # an interval longer than so many medians is a gap


@dataclass(frozen=True)
class Spread:
    """Distribution of some values, in their unit; ``std`` is that of the population."""

    count: int
    mean: float
    std: float
    min: float
    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True)
class Gap:
    """A pause in a stream.

    Attributes:
        after: stamp of the last message before it, ns.
        seconds: how long it is.
        missing: messages that would have come at the median interval.
    """

    after: int
    seconds: float
    missing: int


@dataclass(frozen=True)
class StreamTiming:
    """One topic over time.

    Attributes:
        messages: recorded messages.
        rate: per second, by log time; ``None`` with fewer than two messages.
        stamp_rate: per second, by header stamp.
        interval_ms: between neighbouring messages, by log time; its ``std`` is the jitter.
        duplicates: messages whose stamp was there before.
        out_of_order: messages whose stamp is older than that of an earlier message.
        gaps: intervals between neighbouring stamps longer than 1.5 medians.
    """

    messages: int
    rate: float | None
    stamp_rate: float | None
    interval_ms: Spread | None
    duplicates: int
    out_of_order: int
    gaps: tuple[Gap, ...]


@dataclass(frozen=True)
class Drops:
    """Camera frames without a result.

    Attributes:
        frames: camera frames, each stamp once.
        total: those without a result.
        before_first: of these, earlier than any result: the node was not yet listening.
        after_last: later than any result: the recording ended first, or the node stopped.
        between: all others.
        orphans: results whose stamp no camera frame has.
    """

    frames: int
    total: int
    before_first: int
    between: int
    after_last: int
    orphans: int


def spread(values: np.ndarray) -> Spread | None:
    """Distribution of ``(n,)`` values; percentiles interpolate linearly; ``None`` for none."""
    if not len(values):
        return None
    values = np.asarray(values, np.float64)
    p50, p90, p99 = np.percentile(values, (50, 90, 99)).tolist()
    low, high = float(values.min()), float(values.max())
    return Spread(len(values), float(values.mean()), float(values.std()), low, p50, p90, p99, high)


def stream_timing(stamps: np.ndarray, logged: np.ndarray) -> StreamTiming:
    """Timing of one topic.

    Args:
        stamps: header stamps, ``(n,)`` int64 ns, in recorded order.
        logged: log times, likewise.
    """
    count = len(stamps)
    newest = np.maximum.accumulate(stamps)[:-1] if count else stamps
    return StreamTiming(
        messages=count,
        rate=_rate(logged),
        stamp_rate=_rate(np.unique(stamps)),
        interval_ms=spread(np.diff(logged) / 1e6),
        duplicates=count - len(np.unique(stamps)),
        out_of_order=int((stamps[1:] < newest).sum()),
        gaps=find_gaps(stamps),
    )


def find_gaps(stamps: np.ndarray) -> tuple[Gap, ...]:
    """Intervals between neighbouring stamps (``(n,)`` int64 ns, any order) above 1.5 medians."""
    stamps = np.unique(stamps)
    intervals = np.diff(stamps)
    if not len(intervals):
        return ()
    median = float(np.median(intervals))
    return tuple(
        Gap(int(stamps[i]), float(intervals[i]) / 1e9, round(intervals[i] / median) - 1)
        for i in np.flatnonzero(intervals > GAP * median)
    )


def find_drops(camera: np.ndarray, results: np.ndarray) -> Drops:
    """Camera frames without a result, by stamp; both ``(n,)`` int64 ns, in any order."""
    camera, results = np.unique(camera), np.unique(results)
    answered = np.isin(camera, results)
    places = np.flatnonzero(answered)
    first, last = (places[0], places[-1]) if len(places) else (len(camera), len(camera))
    total = int((~answered).sum())
    before, after = int(first), int(max(len(camera) - 1 - last, 0))
    return Drops(
        frames=len(camera),
        total=total,
        before_first=before,
        between=total - before - after,
        after_last=after,
        orphans=int((~np.isin(results, camera)).sum()),
    )


def first_times(stamps: np.ndarray, logged: np.ndarray) -> dict[int, int]:
    """Stamp -> log time of the first message that has it."""
    times: dict[int, int] = {}
    for stamp, at in zip(stamps.tolist(), logged.tolist(), strict=True):
        times.setdefault(stamp, at)
    return times


def latencies_ms(earlier: dict[int, int], later: dict[int, int]) -> np.ndarray:
    """``later - earlier`` in ms for the stamps that both have, in the order of ``later``."""
    return np.array([(at - earlier[s]) / 1e6 for s, at in later.items() if s in earlier])


def _rate(times: np.ndarray) -> float | None:
    elapsed = int(times[-1] - times[0]) if len(times) > 1 else 0
    return (len(times) - 1) / (elapsed / 1e9) if elapsed > 0 else None
