"""What a stream's runs say: which of them count, and the fastest rate that is held."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from difiisr_ros.bench.samples import kept_runs

LARGEST_LOSS = 0.05  # share of the frames at a rate that counts as held
_KEEPS_UP = 0.95  # share of the rate asked for that a camera which keeps up reaches
_RESOLUTION = 0.05  # of the peak


@dataclass(frozen=True)
class Load:
    """What the node's process took while frames were published.

    Attributes:
        cpu: cores, 1.0 = one of them all the time.
        memory_mib: largest resident size so far.
        upscaling: median seconds of the upscaler itself, as the node's diagnostics say; None where
            the run was shorter than what they look back on.
        gpu: share of the time in which the GPU computed, None where nothing tells.
        gpu_memory_mib: taken on the GPU since before the process started, None without one.
    """

    cpu: float
    memory_mib: float
    upscaling: float | None = None
    gpu: float | None = None
    gpu_memory_mib: float | None = None


@dataclass(frozen=True)
class StreamRun:
    """One run at one rate.

    Attributes:
        rate: frames published per second, as reached.
        sent, received: frames.
        latencies: seconds from publishing to the result's arrival, one per result.
        intervals: seconds between results.
        load: of the node.
    """

    rate: float
    sent: int
    received: int
    latencies: list[float]
    intervals: list[float]
    load: Load

    @property
    def loss(self) -> float:
        """Share of the frames without a result."""
        return total_loss([self])


@dataclass(frozen=True)
class Peak:
    """The highest rate at which a stream is held.

    Attributes:
        rate: Hz.
        limit: ``"node"`` where it loses more above, ``"sender"`` where the camera of the benchmark
            is no faster, so that the node may be.
    """

    rate: float
    limit: str


def kept_stream_runs(runs: Sequence[StreamRun]) -> list[StreamRun]:
    """Without the best and the worst by mean latency; a run without any result is the worst."""
    return kept_runs(
        runs, lambda run: statistics.fmean(run.latencies) if run.latencies else math.inf
    )


def total_loss(runs: Sequence[StreamRun]) -> float:
    """Share of all the runs' frames without a result."""
    sent = sum(run.sent for run in runs)
    return (sent - sum(run.received for run in runs)) / sent


def find_peak(measure: Callable[[float], StreamRun], first: float, lowest: float) -> Peak | None:
    """Double the rate until more than ``LARGEST_LOSS`` is lost, then bisect.

    Args:
        measure: makes a run at a rate in Hz.
        first: where to start.
        lowest: rates below are not tried.

    Returns:
        ``None`` where every rate that was tried lost more.
    """
    low, high, rate = 0.0, math.inf, first
    while low < (1 - _RESOLUTION) * high and rate >= lowest:
        run = measure(rate)
        if run.loss > LARGEST_LOSS:
            high = min(rate, run.rate)
        elif run.rate < _KEEPS_UP * rate:
            return Peak(max(low, run.rate), "sender")
        else:
            low = rate
        rate = 2 * rate if high == math.inf else (low + high) / 2
    return Peak(low, "node") if low else None
