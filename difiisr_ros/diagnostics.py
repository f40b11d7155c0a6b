"""From stream statistics to ``diagnostic_msgs/DiagnosticArray``."""

from __future__ import annotations

from typing import get_args

import psutil
import torch
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from difiisr_models import Stream, Upscaler
from difiisr_models.stream import StreamSummary
from difiisr_ros.stream_statistics import WINDOW, Reason, Summary

UPSCALING = "upscaling p50 (ms)"  # what of the latency the upscaler takes

SILENCE = 3.0  # seconds without an image before the stream counts as stale


def assess(summary: Summary, topic: str, info_trouble: str = "") -> tuple[bytes, str]:
    """Return level and message for an active stream: what is wrong first, and what to do.

    ``info_trouble``: what is wrong with its camera_info, empty if nothing is.
    """
    recent, total, error = summary.recent, summary.total, summary.last_error
    refused = recent["malformed"] + recent["too_large"]
    failed, lost, stale, received = (recent[f] for f in ("failed", "lost", "stale", "received"))
    window = f"in {WINDOW:.0f} s"
    findings = (
        (
            DiagnosticStatus.STALE,
            summary.silence > SILENCE,
            f"no image on {topic} for {summary.silence:.0f} s: check the camera, the topic name, "
            "and that the publisher's reliability fits input_reliability",
        ),
        (DiagnosticStatus.ERROR, failed, f"{failed} frames failed {window}: {error}"),
        (DiagnosticStatus.WARN, refused, f"{refused} images refused {window}: {error}"),
        (
            DiagnosticStatus.WARN,
            lost,
            f"{lost} frames lost before this node {window}: give the camera driver the "
            "shared-memory profile config/fastdds.xml",
        ),
        (
            DiagnosticStatus.WARN,
            stale,
            f"{stale} of {received} frames skipped {window}: the model is slower than the camera; "
            "use fewer steps, a faster device or model",
        ),
        (DiagnosticStatus.WARN, info_trouble, info_trouble),
        (DiagnosticStatus.OK, summary.waiting, "waiting for a subscriber of the result"),
        (DiagnosticStatus.OK, total["published"], f"{summary.rate_out:.1f} Hz"),
        (DiagnosticStatus.OK, total["received"], "computing the first frame"),
        (DiagnosticStatus.OK, True, "waiting for an image"),
    )
    return next((level, text) for level, is_so, text in findings if is_so)


def stream_values(summary: Summary) -> dict[str, str]:
    """Return the numbers as they stand in the diagnostic message."""
    total = summary.total
    p50, p90, p99 = (_milliseconds(seconds) for seconds in summary.latency or (None,) * 3)
    return {
        "rate in (Hz)": f"{summary.rate_in:.2f}",
        "rate out (Hz)": f"{summary.rate_out:.2f}",
        "latency p50 (ms)": p50,
        "latency p90 (ms)": p90,
        "latency p99 (ms)": p99,
        UPSCALING: _milliseconds(summary.upscaling),
        "frames received": str(total["received"]),
        "frames published": str(total["published"]),
        "frames idle": str(total["idle"]),
        "frames lost before": str(total["lost"]),
        **{f"dropped {reason}": str(total[reason]) for reason in get_args(Reason)},
        "last error": summary.last_error,
    }


def scene_values(summary: StreamSummary) -> dict[str, str]:
    """Return what the last frame showed; temperatures are measured ones, in the camera's counts."""
    counts = {
        "noise": summary.noise,
        "span": summary.span,
        "pattern rows": summary.pattern.rows,
        "pattern columns": summary.pattern.columns,
        "pattern pixels": summary.pattern.pixels,
        "coldest measured": summary.coldest,
        "hottest measured": summary.hottest,
        "range from": summary.range.lo,
        "range to": summary.range.hi,
    }
    return {
        **{f"{name} (counts)": f"{value:.6g}" for name, value in counts.items()},
        "noise (% of span)": f"{summary.noise_percent:.2f}",
        "invalid pixels": str(summary.invalid),
    }


def fallback_values(stream: Stream) -> dict[str, str]:
    """Return how many results are plain bicubic, and why the last is."""
    return {"plain bicubic": str(stream.fallbacks), "why plain bicubic": stream.last_fallback}


def model_values(upscaler: Upscaler) -> dict[str, str]:
    """Return what is loaded, what runs it and why not something faster, and memory.

    Memory is what of this process is resident and, on a GPU, what torch holds there, in MB.
    """
    values = {
        "model": upscaler.name,
        "backend": upscaler.backend,
        "device": upscaler.device,
        **{f"passed over {backend}": reason for backend, reason in upscaler.passed_over},
        "weights sha256": upscaler.weights_sha256,
        "memory (MB)": f"{psutil.Process().memory_info().rss / 1e6:.0f}",
    }
    if upscaler.device.startswith("cuda"):
        values["GPU memory (MB)"] = f"{torch.cuda.memory_reserved(upscaler.device) / 1e6:.0f}"
    return values


def diagnostic_array(
    stamp: Time, name: str, hardware_id: str, level: bytes, message: str, values: dict[str, str]
) -> DiagnosticArray:
    """Return the message with one status of the given name, level and values."""
    status = DiagnosticStatus(
        level=level,
        name=name,
        message=message,
        hardware_id=hardware_id,
        values=[KeyValue(key=key, value=value) for key, value in values.items()],
    )
    array = DiagnosticArray(status=[status])
    array.header.stamp = stamp
    return array


def _milliseconds(seconds: float | None) -> str:
    return "nan" if seconds is None else f"{1e3 * seconds:.1f}"
