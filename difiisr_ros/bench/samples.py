"""Times of many calls, taken in turns and summarised the way ros2_benchmark does."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from difiisr_ros.stream_statistics import percentile

Run = TypeVar("Run")


@dataclass(frozen=True)
class Summary:
    """Seconds of one call, over the runs that are kept.

    Attributes:
        calls: how many.
        mean, p50, p90, p99: seconds.
        jitter: standard deviation, seconds.
    """

    calls: int
    mean: float
    p50: float
    p90: float
    p99: float
    jitter: float

    @property
    def rate(self) -> float:
        """Calls per second."""
        return 1 / self.mean


def kept_runs(runs: Sequence[Run], value: Callable[[Run], float] = statistics.fmean) -> list[Run]:
    """Without the best and the worst run by ``value``, where three or more were made."""
    ordered = sorted(runs, key=value)
    return ordered[1:-1] if len(ordered) > 2 else ordered


def summarise(runs: Sequence[Sequence[float]]) -> Summary:
    """Percentiles (nearest rank) of all samples of ``runs``, which are those that were kept.

    Raises:
        ValueError: no run has a sample.
    """
    samples = [sample for run in runs for sample in run]
    if not samples:
        raise ValueError(f"no sample in {len(runs)} runs")
    return Summary(
        len(samples),
        statistics.fmean(samples),
        *(percentile(samples, percent) for percent in (50, 90, 99)),
        statistics.pstdev(samples),
    )


def time_in_turns(
    functions: Mapping[str, Callable[[], object]],
    runs: int,
    seconds: float,
    done: Callable[[], None] = lambda: None,
) -> dict[str, Summary]:
    """Time functions in turns, A B C A B C, so that whatever else the machine does hits all alike.

    Args:
        functions: by name.
        runs: turns of each; best and worst are dropped.
        seconds: that a turn of one function takes about; at least one call. Functions slower than
            this are called once a turn, and in two turns only if they are ten times as slow.
        done: called after each turn of each function.
    """
    calls, turns = {}, {}
    for name, call in functions.items():
        call()  # loads, allocates, compiles
        taken = _timed(call)
        calls[name] = max(1, int(seconds / taken))
        turns[name] = min(runs, 2) if taken > 10 * seconds else runs
    samples: dict[str, list[list[float]]] = {name: [] for name in functions}
    for turn in range(runs):
        for name, call in functions.items():
            if turn < turns[name]:
                samples[name].append([_timed(call) for _ in range(calls[name])])
            done()
    return {name: summarise(kept_runs(found)) for name, found in samples.items()}


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
