"""The rows of ``bench.json``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch

from difiisr_ros.bench.contenders import Contender
from difiisr_ros.bench.roofline import Ceilings
from difiisr_ros.bench.samples import Summary, summarise
from difiisr_ros.bench.stream_runs import (
    LARGEST_LOSS,
    StreamRun,
    find_peak,
    kept_stream_runs,
    total_loss,
)
from difiisr_ros.bench.targets import Row

_BACK_OFF = 0.9  # of a peak that not all runs hold


def size_columns(stage: str, model: str, size: tuple[int, int]) -> Row:
    """What every row begins with; ``size`` is (height, width)."""
    return {
        "stage": stage, "size": f"{size[1]}x{size[0]}", "pixels": size[0] * size[1], "model": model,
    }  # fmt: skip


def contender_row(
    stage: str, size: tuple[int, int], device: torch.device, contender: Contender
) -> Row:
    """Who was timed."""
    return size_columns(stage, contender.model, size) | {
        "runtime": contender.runtime, "device": device.type, "precision": contender.precision,
        "parameters": contender.parameters, "weights_sha256": contender.weights_sha256,
    }  # fmt: skip


def times(s: Summary) -> Row:
    """Seconds of a call."""
    return {
        "calls": s.calls, "fps": s.rate, "p50": s.p50, "p90": s.p90, "p99": s.p99,
        "jitter": s.jitter,
    }  # fmt: skip


def work(contender: Contender, summary: Summary, ceilings: Ceilings | None) -> Row:
    """FLOP, bytes and what follows from them at the median time, of networks."""
    cost = contender.cost
    if cost is None or ceilings is None:
        return {}
    return {
        "flop": cost.flop, "bytes": cost.bytes, "flops": cost.flop / summary.p50,
        "ceiling_flops": ceilings.flops, "ceiling_bytes_per_second": ceilings.bandwidth,
        "roofline": ceilings.share(cost, summary.p50),
    }  # fmt: skip


def identity(values: Mapping[str, str]) -> Row:
    """What the diagnostics of a node say of its model."""
    return {
        "backend": values["backend"], "device": values["device"].partition(":")[0],
        "weights_sha256": values["weights sha256"],
    }  # fmt: skip


def no_result(rate: float | None, search: bool, why: str) -> Row:
    """A stream, or one rate of it, that could not be measured."""
    return {"rate": rate, "search": search, "no_result": why}


def stream_rows(
    run: Callable[[float, float], StreamRun], rates: Sequence[float], runs: int, seconds: float
) -> Iterator[Row]:
    """Rows of one stream: at every rate, then at its peak, ``runs`` runs each, which hold it too.

    Args:
        run: makes one at a rate, for a number of seconds.
        rates: Hz.
        runs: best and worst are dropped.
        seconds: of a run.
    """
    held = []
    for rate in rates:
        made = [run(rate, seconds) for _ in range(runs)]
        if total_loss(made) <= LARGEST_LOSS:
            held.append(rate)
        yield _stream_row(rate, made) | {"search": False}
    lowest = 2 / seconds  # two frames
    peak = find_peak(lambda rate: run(rate, seconds), max(held, default=min(rates)), lowest)
    if peak is None:
        why = f"more than {100 * LARGEST_LOSS:.0f} % lost at every rate down to {lowest:.2g} Hz"
        yield no_result(None, True, why)
    else:
        rate, limit = peak.rate, peak.limit
        made = [run(rate, seconds) for _ in range(runs)]
        while total_loss(made) > LARGEST_LOSS and _BACK_OFF * rate >= lowest:
            rate, limit = _BACK_OFF * rate, "node"  # the search's one run had been lucky
            made = [run(rate, seconds) for _ in range(runs)]
        yield _stream_row(rate, made) | {"search": True, "limit": limit}


def _stream_row(rate: float, runs: Sequence[StreamRun]) -> Row:
    """All columns from the same kept runs."""
    kept = kept_stream_runs(runs)
    sent, received = (sum(getattr(run, key) for run in kept) for key in ("sent", "received"))
    if not received:
        return no_result(rate, False, f"no result of {sent} frames at {rate:g} Hz")
    latency = summarise([run.latencies for run in kept])
    intervals = [i for run in kept for i in run.intervals]
    loads = [run.load for run in kept]
    gpu, gpu_memory, upscaling = (
        [value for load in loads if (value := getattr(load, key)) is not None]
        for key in ("gpu", "gpu_memory_mib", "upscaling")
    )
    return {
        "rate": float(np.mean([run.rate for run in kept])),
        # Results over the time between them: None of a single one.
        "fps": len(intervals) / sum(intervals) if intervals else None,
        "sent": sent, "received": received, "loss": total_loss(kept),
        "p50": latency.p50, "p90": latency.p90, "p99": latency.p99,
        "jitter": float(np.std(intervals or [0.0])),
        "upscaling_p50": float(np.median(upscaling)) if upscaling else None,
        "cpu": float(np.mean([load.cpu for load in loads])),
        "memory_mib": max(load.memory_mib for load in loads),
        "gpu": float(np.mean(gpu)) if gpu else None,
        "gpu_memory_mib": max(gpu_memory, default=None),
    }  # fmt: skip
