"""From stream statistics to ``diagnostic_msgs/DiagnosticArray``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, get_args

import psutil
import torch
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from rclpy.node import Node

from difiisr_models import Stream, Upscaler
from difiisr_models.stream import StreamEvents
from difiisr_ros.stream_statistics import SILENCE, WINDOW, Reason, Summary

UPSCALING = "upscaling p50 (ms)"  # what of the latency the upscaler takes

SLOW_FRAME, HANGING = 5.0, 30.0  # seconds that one frame computes: a warning, an error


class Finding(NamedTuple):
    """Something wrong with a stream.

    Attributes:
        kind: the same for the same trouble.
        level: of ``DiagnosticStatus``.
        text: what is wrong, and what to do.
    """

    kind: str
    level: bytes
    text: str


def findings(
    summary: Summary, topic: str, computing: float = 0.0, min_rate: float = 0.0
) -> list[Finding]:
    """Return what is wrong with an active stream of images on ``topic``.

    Args:
        summary: its statistics.
        topic: full name.
        computing: seconds that the frame being computed has taken so far.
        min_rate: Hz, fewer images are too few; 0 for any.
    """
    recent, errors = summary.recent, summary.errors
    failed, lost, stale, received = (recent[f] for f in ("failed", "lost", "stale", "received"))
    window, silence, rate = f"in {WINDOW:.0f} s", summary.silence, summary.rate_in
    is_late = computing > SLOW_FRAME
    found = (
        (
            "silent", DiagnosticStatus.ERROR, silence > SILENCE,
            f"no image on {topic} for {silence:.0f} s: check the camera, the topic name, "
            "and that the publisher's reliability fits input_reliability",
        ),
        (
            "slow input", DiagnosticStatus.WARN, received > 1 and 0 < rate < min_rate,
            f"{topic} brings {rate:.2g} Hz, less than min_rate {min_rate:g}: check the camera and "
            "the network, or set min_rate",
        ),
        (
            "hanging", DiagnosticStatus.ERROR if computing > HANGING else DiagnosticStatus.WARN,
            is_late,
            f"one frame of {topic} computes for {computing:.0f} s: the model is too slow for this "
            "device, is being compiled, or hangs; if it does not end, start the node again",
        ),
        (
            "failed", DiagnosticStatus.ERROR, failed,
            f"{failed} frames failed {window}: {errors.get('failed')}; such a frame has no result",
        ),
        (
            "malformed", DiagnosticStatus.WARN, recent["malformed"],
            f"{recent['malformed']} images refused {window}: {errors.get('malformed')}; check the "
            "camera driver",
        ),
        (
            "too_large", DiagnosticStatus.WARN, recent["too_large"],
            f"{recent['too_large']} images refused {window}: {errors.get('too_large')}; send "
            "smaller ones, crop, or raise max_frame_megapixels",
        ),
        (
            "lost", DiagnosticStatus.WARN, lost,
            f"{lost} frames lost before this node {window}: give the camera driver the "
            "shared-memory profile config/fastdds.xml",
        ),
        (
            "stale", DiagnosticStatus.WARN, stale,
            f"{stale} of {received} frames skipped {window}: the model is slower than the camera; "
            "use a smaller model (difiisr-rtv-s-x4, or bicubic), crop, a lower resolution or a GPU",
        ),
    )  # fmt: skip
    return [Finding(kind, level, text) for kind, level, is_so, text in found if is_so]


def verdict(found: Sequence[Finding], summary: Summary) -> tuple[bytes, str]:
    """Return the level of the worst finding, and all of them in words, the worst first."""
    total = summary.total
    if found:
        ranked = sorted(found, key=lambda finding: finding.level, reverse=True)
        return ranked[0].level, "; ".join(finding.text for finding in ranked)
    if summary.waiting:
        return DiagnosticStatus.OK, "waiting for a subscriber of the result"
    if total["published"]:
        return DiagnosticStatus.OK, f"{summary.rate_out:.1f} Hz"
    return (
        DiagnosticStatus.OK,
        "computing the first frame" if summary.pending else "waiting for an image",
    )


def stream_values(summary: Summary) -> dict[str, str]:
    """Return the numbers as they stand in the diagnostic message."""
    total = summary.total
    p50, p90, p99, upscaling = (
        f"{1e3 * seconds:.1f}" for seconds in (*summary.latency, summary.upscaling)
    )
    return {
        "rate in (Hz)": f"{summary.rate_in:.2f}",
        "rate out (Hz)": f"{summary.rate_out:.2f}",
        "latency p50 (ms)": p50,
        "latency p90 (ms)": p90,
        "latency p99 (ms)": p99,
        UPSCALING: upscaling,
        "frames received": str(total["received"]),
        "frames published": str(total["published"]),
        "frames idle": str(total["idle"]),
        "frames pending": str(summary.pending),
        "frames lost before": str(total["lost"]),
        "withheld by the camera": str(total["withheld"]),
        **{f"dropped {reason}": str(total[reason]) for reason in get_args(Reason)},
        "last error": next(filter(None, reversed([*summary.errors.values()])), ""),
    }


def camera_values(stream: Stream) -> dict[str, str]:
    """Return what the stream and its last frame showed; temperatures are measured ones, in counts.

    How many results are plain bicubic, and why the last is, stands there before the first frame.
    """
    values = {"plain bicubic": str(stream.fallbacks), "why plain bicubic": stream.last_fallback}
    if (scene := stream.seen) is None:
        return values
    counts = {
        "noise": scene.noise,
        "span": scene.span,
        "pattern rows": scene.pattern.rows,
        "pattern columns": scene.pattern.columns,
        "pattern pixels": scene.pattern.pixels,
        "coldest measured": scene.coldest,
        "hottest measured": scene.hottest,
        "range from": scene.range.lo,
        "range to": scene.range.hi,
    }
    return {
        **{f"{name} (counts)": f"{value:.6g}" for name, value in counts.items()},
        "noise (% of span)": f"{scene.noise_percent:.2f}",
        "invalid pixels": str(scene.invalid_count),
        **event_values(stream.events),
        **values,
    }


def event_values(events: StreamEvents) -> dict[str, str]:
    """Return what has happened in the stream; see :class:`~difiisr_models.events.Event`."""
    event, last = events.event, events.last
    return {
        "event": event.kind,
        "event since (s)": "" if events.since_ns is None else f"{events.since_ns / 1e9:.3f}",
        **{f"events {kind}": str(n) for kind, n in events.counts.items() if kind != "normal"},
        "last event": last.kind,
        "last event gain": f"{last.gain:.4g}",
        "last event offset (counts)": f"{last.offset:.6g}",
        "last event pause (s)": f"{last.pause:.3f}",
    }


def model_values(upscaler: Upscaler) -> dict[str, str]:
    """Return what is loaded, what runs it and why not something faster, and memory.

    Memory is what of this process is resident and, on a GPU, what torch holds there, in MB.
    """
    values = {
        "model": upscaler.name,
        "backend": upscaler.backend,
        "precision": upscaler.runtime.precision,
        "device": upscaler.device,
        **{f"measured {name} (ms)": f"{ms:.1f}" for name, ms in upscaler.measured.items()},
        **{f"passed over {backend}": reason for backend, reason in upscaler.passed_over},
        "weights sha256": upscaler.weights_sha256,
        "memory (MB)": f"{psutil.Process().memory_info().rss / 1e6:.0f}",
    }
    if upscaler.device.startswith("cuda"):
        values["GPU memory (MB)"] = f"{torch.cuda.memory_reserved(upscaler.device) / 1e6:.0f}"
    return values


def status_message(
    name: str, hardware_id: str, level: bytes, text: str, values: dict[str, str]
) -> DiagnosticStatus:
    """Return the message of these fields."""
    pairs = [KeyValue(key=key, value=value) for key, value in values.items()]
    return DiagnosticStatus(
        level=level, name=name, message=text, hardware_id=hardware_id, values=pairs
    )


def twin_of(node: Node, topic: str) -> str:
    """That another node has this one's name or publishes on its ``topic``, "" if none does."""
    own = node.get_name(), node.get_namespace()
    if node.get_node_names_and_namespaces().count(own) > 1:
        return (
            f"another node is named {node.get_fully_qualified_name()}: services and parameters "
            "reach either, each frame is answered twice; end one, or give it another name or "
            "namespace"
        )
    if (count := node.count_publishers(topic)) > 1:
        return f"{count} nodes publish {topic}: each frame is answered {count} times; end one"
    return ""
