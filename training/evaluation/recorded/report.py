"""What was measured on a recording, as data, as files and in words."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difiisr_training.evaluation.recorded.bag import RecordedTopics
from difiisr_training.evaluation.recorded.camera_info import CameraInfoCheck
from difiisr_training.evaluation.recorded.pixels import FrameResult
from difiisr_training.evaluation.recorded.timing import Drops, Spread, StreamTiming


@dataclass(frozen=True)
class Consistency:
    """|D(SR) - LR| in counts over all compared frames, D = antialiased bicubic /4."""

    frames: int
    mean: float
    max: float


@dataclass(frozen=True)
class OfflineComparison:
    """The recorded results against a run of ``model`` on this machine; differences in counts.

    ``lost_results``: frames without a recorded result that the node processed all the same, as
    the pixels of the results after them show.
    """

    model: str
    weights_sha256: str
    backend: str
    device: str
    settings: dict[str, Any]
    frames: int
    exact: int
    exact_share: float | None
    difference_mean: float | None
    difference_max: float | None
    lost_results: int


@dataclass(frozen=True)
class DetectionTiming:
    """Detections on the results, by stamp; ``missing``: results without detections."""

    timing: StreamTiming
    missing: int
    after_sr_ms: Spread | None
    after_camera_ms: Spread | None


@dataclass(frozen=True)
class RecordedReport:
    """Everything measured; times in ms unless named otherwise.

    Attributes:
        bag: the recording.
        camera_bag: the recording of the camera, where it is another.
        topics: what was compared.
        camera: timing of the camera's topic.
        sr: timing of the result's topic.
        drops: camera frames without a result.
        latency_ms: from the log time of the camera's message to that of the result.
        stamp_latency_ms: from the header stamp to the log time of the result.
        clock_offset_ms: from the camera's header stamps to its log times: what the two clocks and
            the transport of the camera differ by.
        consistency: how well the results, scaled down, agree with the camera.
        offline: comparison with an offline run; ``None``: not run.
        mismatches: how many results have which fault.
        camera_info: ``None`` where none is recorded.
        detections: ``None`` where none are recorded.
        node: the node's own last diagnostics, if recorded.
        notes: what limits the numbers above.
        fault: what is wrong with the recording, or "".
        frames: one entry for each camera frame and each result without.
    """

    bag: str
    camera_bag: str | None
    topics: RecordedTopics
    camera: StreamTiming
    sr: StreamTiming
    drops: Drops
    latency_ms: Spread | None
    stamp_latency_ms: Spread | None
    clock_offset_ms: Spread | None
    consistency: Consistency | None
    offline: OfflineComparison | None
    mismatches: dict[str, int]
    camera_info: CameraInfoCheck | None
    detections: DetectionTiming | None
    node: dict[str, str]
    notes: tuple[str, ...]
    fault: str
    frames: tuple[FrameResult, ...]


def write_json(report: RecordedReport, path: Path) -> None:
    """Everything but the single frames."""
    values = dataclasses.asdict(report)
    del values["frames"]
    path.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_csv(rows: Sequence[FrameResult], path: Path) -> None:
    """One line for each frame; what was not measured is empty."""
    names = [field.name for field in dataclasses.fields(FrameResult)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for row in rows:
            values = [getattr(row, name) for name in names[:-1]]
            writer.writerow(["" if v is None else v for v in values] + [" ".join(row.faults)])


def summary_lines(report: RecordedReport) -> list[str]:
    """The most important numbers in words, one line each."""
    drops, consistency, offline = report.drops, report.consistency, report.offline

    def hertz(timing: StreamTiming) -> str:
        return "rate unknown" if timing.rate is None else f"{timing.rate:.2f} Hz"

    lines = [
        f"camera {report.topics.image}: {report.camera.messages} messages, {hertz(report.camera)}, "
        f"{len(report.camera.gaps)} gaps",
        f"result {report.topics.sr}: {report.sr.messages} messages, {hertz(report.sr)}, "
        f"{report.sr.duplicates} duplicates, {report.sr.out_of_order} out of order",
        f"dropped {drops.total} of {drops.frames} frames: {drops.before_first} before the first "
        f"result, {drops.between} between, {drops.after_last} after the last",
    ]
    for name, times in (
        ("latency, camera to result", report.latency_ms),
        ("latency, stamp to result", report.stamp_latency_ms),
    ):
        if times is not None:
            lines.append(
                f"{name}: p50 {times.p50:.1f}, p90 {times.p90:.1f}, p99 {times.p99:.1f}, "
                f"max {times.max:.1f} ms"
            )
    if consistency is not None:
        lines.append(
            f"consistency |D(SR) - LR|: mean {consistency.mean:.3g}, "
            f"max {consistency.max:.3g} counts"
        )
    if offline is not None and offline.frames:
        lines.append(
            f"offline {offline.model}: {offline.exact} of {offline.frames} frames bit-exact, "
            f"difference mean {offline.difference_mean:.3g}, "
            f"max {offline.difference_max:.3g} counts"
        )
    if report.mismatches:
        lines.append("faults: " + ", ".join(f"{n} x {k}" for k, n in report.mismatches.items()))
    if report.camera_info is not None:
        info = report.camera_info
        lines.append(f"camera_info: {info.right} of {info.messages} right")
    return lines
