"""From stream statistics to `diagnostic_msgs/DiagnosticArray`."""

from __future__ import annotations

import os
from pathlib import Path

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from difiisr_models import Upscaler
from difiisr_ros.stream_statistics import WINDOW, Summary

# Reasons for which a frame gets no answer.
STALE, MALFORMED, TOO_LARGE, FAILED = "stale", "malformed", "too_large", "failed"

UPSCALING = "upscaling p50 (ms)"  # what of the latency the upscaler takes

SILENCE = 3.0  # seconds without an image before the stream counts as stale


def assess(summary: Summary, topic: str) -> tuple[bytes, str]:
    """Return level and message for an active stream: what is wrong first, and what to do."""
    dropped = summary.recent_dropped
    if summary.silence > SILENCE:
        return DiagnosticStatus.STALE, (
            f"no image on {topic} for {summary.silence:.0f} s: check the camera, the topic name, "
            "and that the publisher's reliability fits input_reliability"
        )
    if dropped.get(FAILED):
        return DiagnosticStatus.ERROR, (
            f"{dropped[FAILED]} frames failed in {WINDOW:.0f} s: {summary.last_error}"
        )
    if dropped.get(MALFORMED) or dropped.get(TOO_LARGE):
        bad = dropped.get(MALFORMED, 0) + dropped.get(TOO_LARGE, 0)
        return DiagnosticStatus.WARN, (
            f"{bad} images refused in {WINDOW:.0f} s: {summary.last_error}"
        )
    if summary.recent_lost:
        return DiagnosticStatus.WARN, (
            f"{summary.recent_lost} frames lost before this node in {WINDOW:.0f} s: give the "
            "camera driver the shared-memory profile config/fastdds.xml"
        )
    if dropped.get(STALE):
        return DiagnosticStatus.WARN, (
            f"{dropped[STALE]} of {summary.recent_received} frames skipped in {WINDOW:.0f} s: "
            "the model is slower than the camera; use fewer steps, a faster device or model"
        )
    if summary.waiting:
        return DiagnosticStatus.OK, "waiting for a subscriber of the result"
    if not summary.published:
        what = "computing the first frame" if summary.received else "waiting for an image"
        return DiagnosticStatus.OK, what
    return DiagnosticStatus.OK, f"{summary.rate_out:.1f} Hz"


def stream_values(summary: Summary) -> dict[str, str]:
    """Return the numbers as they stand in the diagnostic message."""
    values = {
        "rate in (Hz)": f"{summary.rate_in:.2f}",
        "rate out (Hz)": f"{summary.rate_out:.2f}",
    }
    for i, name in enumerate(("p50", "p90", "p99")):
        latency = summary.latency
        values[f"latency {name} (ms)"] = f"{1e3 * latency[i]:.1f}" if latency else "nan"
    upscaling = summary.upscaling
    values |= {
        UPSCALING: "nan" if upscaling is None else f"{1e3 * upscaling:.1f}",
        "frames received": str(summary.received),
        "frames published": str(summary.published),
        "frames idle": str(summary.idle),
        "frames lost before": str(summary.lost),
    }
    for reason in (STALE, MALFORMED, TOO_LARGE, FAILED):
        values[f"dropped {reason}"] = str(summary.dropped.get(reason, 0))
    return values | {"last error": summary.last_error}


def model_values(upscaler: Upscaler) -> dict[str, str]:
    """Return what is loaded, what runs it and why not something faster, and its memory."""
    values = {"model": upscaler.name, "backend": upscaler.backend, "device": upscaler.device}
    values |= {f"passed over {backend}": reason for backend, reason in upscaler.passed_over}
    values["weights sha256"] = upscaler.weights_sha256
    return values | memory_values(upscaler.device)


def memory_values(device: str) -> dict[str, str]:
    """Return resident memory of the process and, on a GPU, what torch holds there, in MB."""
    values = {}
    statm = Path("/proc/self/statm")
    if statm.exists():
        pages = int(statm.read_text().split()[1])
        values["memory (MB)"] = f"{pages * os.sysconf('SC_PAGE_SIZE') / 1e6:.0f}"
    if device.startswith("cuda"):
        import torch

        values["GPU memory (MB)"] = f"{torch.cuda.memory_reserved(device) / 1e6:.0f}"
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
