"""What a robot really did: a recording of a camera and of the results that a node made of it."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from difiisr_models import Upscaler, load_upscaler
from difiisr_training.evaluation.recorded.bag import (
    CAMERA_INFO_TYPE,
    RecordedBag,
    RecordedTopics,
    choose_topics,
    match_frames,
)
from difiisr_training.evaluation.recorded.camera_info import check_camera_infos
from difiisr_training.evaluation.recorded.offline import OfflineRun
from difiisr_training.evaluation.recorded.page import write_page
from difiisr_training.evaluation.recorded.pixels import FrameResult, compare_frames
from difiisr_training.evaluation.recorded.report import (
    Consistency,
    DetectionTiming,
    OfflineComparison,
    RecordedReport,
    summary_lines,
    write_csv,
    write_json,
)
from difiisr_training.evaluation.recorded.timing import (
    Drops,
    Spread,
    find_drops,
    first_times,
    latencies_ms,
    spread,
    stream_timing,
)

CLOCK_TOLERANCE_MS = 5000.0  # camera stamps further from their log times are of another clock


def evaluate_recorded(
    bag: Path,
    out: Path,
    *,
    model: str | None = "difiisr-rt-x4",
    image_topic: str | None = None,
    sr_topic: str | None = None,
    detections_topic: str | None = None,
    camera_bag: Path | None = None,
    device: str = "auto",
    backend: str = "auto",
    **settings: object,
) -> RecordedReport:
    """Measure a recording and write ``recorded.json``, ``recorded_per_frame.csv``, ``.html``.

    A terminal shows a progress bar.

    Args:
        bag: rosbag2 folder or storage file with the result and, usually, the camera.
        out: folder for the three files; made if missing.
        model: what the offline run uses, a name or path for ``load_upscaler``; ``None``: no run.
        image_topic: by default the only image topic that is no result.
        sr_topic: by default the only one named ``.../sr`` or ``.../sr/image_raw``.
        detections_topic: any topic with a header; by default the only Detection2DArray topic.
        camera_bag: the recording that holds the camera, where ``bag`` does not; latency cannot be
            measured then.
        device: of the offline run.
        backend: of the offline run.
        settings: fields of ``UpscalerSettings``: those that the node had.

    Raises:
        FileNotFoundError: there is no recording.
        ValueError: it cannot be opened, a topic is not there or not clear, a setting not allowed.
    """
    upscaler = None
    if model is not None:
        upscaler = load_upscaler(model, device=device, backend=backend, **settings)
    with ExitStack() as stack:
        results = stack.enter_context(RecordedBag(bag))
        camera = results if camera_bag is None else stack.enter_context(RecordedBag(camera_bag))
        topics = choose_topics(
            camera.connections, results.connections, image_topic, sr_topic, detections_topic
        )
        report = _measure(bag, camera_bag, camera, results, topics, upscaler)
    out.mkdir(parents=True, exist_ok=True)
    write_json(report, out / "recorded.json")
    write_csv(report.frames, out / "recorded_per_frame.csv")
    write_page(report, out / "recorded.html")
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """``difiisr evaluate BAG --recorded``; 2 when the recording was not readable to its end."""
    parser = argparse.ArgumentParser(
        prog="difiisr evaluate --recorded",
        description="Measure what a node recorded: rate, latency, drops, consistency, and the "
        "difference from an offline run of the same model.",
    )
    parser.add_argument("bag", metavar="BAG", type=Path, help="rosbag2 with camera and results")
    parser.add_argument("--recorded", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, required=True, help="folder for recorded.html, .json")
    parser.add_argument("--topic", help="camera topic (default: the only one that is no result)")
    parser.add_argument("--sr-topic", help="result topic (default: the only .../sr)")
    parser.add_argument(
        "--detections-topic", help="detections on the results (default: the only Detection2DArray)"
    )
    parser.add_argument("--camera-bag", type=Path, help="where the camera lies, if not in BAG")
    parser.add_argument(
        "--model",
        "--models",
        default="difiisr-rt-x4",
        help="of the offline run, name or path; none leaves it out (%(default)s)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N (%(default)s)")
    parser.add_argument("--backend", default="auto", help="what runs the network (%(default)s)")
    for name, kind, default in (
        ("steps", int, 1),
        ("fidelity", float, 1.0),
        ("seed", int, 0),
        ("consistency", float, 1.0),
        ("tile", int, 0),
        ("overlap", int, 32),
    ):
        parser.add_argument(
            f"--{name}", type=kind, default=default, help="as the node had it (%(default)s)"
        )
    options = parser.parse_args(argv)
    report = evaluate_recorded(
        options.bag,
        options.out,
        model=None if options.model == "none" else options.model,
        image_topic=options.topic,
        sr_topic=options.sr_topic,
        detections_topic=options.detections_topic,
        camera_bag=options.camera_bag,
        device=options.device,
        backend=options.backend,
        steps=options.steps,
        fidelity=options.fidelity,
        seed=None if options.seed < 0 else options.seed,
        consistency=options.consistency,
        tile=options.tile,
        overlap=options.overlap,
    )
    print("\n".join([*summary_lines(report), *(f"note: {note}" for note in report.notes)]))
    print(f"written to {options.out}: recorded.html, recorded.json, recorded_per_frame.csv")
    if report.fault:
        print(f"difiisr: the recording is damaged: {report.fault}", file=sys.stderr)
    return 2 if report.fault else 0


def _measure(
    bag: Path,
    camera_bag: Path | None,
    camera: RecordedBag,
    results: RecordedBag,
    topics: RecordedTopics,
    upscaler: Upscaler | None,
) -> RecordedReport:
    frames, answers = camera.times(topics.image), results.times(topics.sr)
    if not len(answers.stamps):
        raise ValueError(f"no readable message on {topics.sr} in {bag}")
    found = results.times(topics.detections)
    taken, given, detected = first_times(*frames), first_times(*answers), first_times(*found)
    pairs = match_frames(
        camera.messages(topics.image), results.messages(topics.sr), frames.stamps, answers.stamps
    )
    run = OfflineRun(upscaler) if upscaler is not None else None
    compared = compare_frames(pairs, len(answers.stamps), run)
    rows = _rows(taken, given, detected, compared)
    timing, drops = stream_timing(*answers), find_drops(frames.stamps, answers.stamps)
    offset = spread((frames.logged - frames.stamps) / 1e6)
    one_clock = offset is not None and abs(offset.p50) <= CLOCK_TOLERANCE_MS
    stamped = spread((answers.logged - answers.stamps) / 1e6)
    latency = spread(latencies_ms(taken, given)) if camera_bag is None else None
    offline = _offline_summary(upscaler, rows, run.lost) if upscaler is not None else None
    node = results.node_status()
    detections = None
    if topics.detections:
        detections = DetectionTiming(
            timing=stream_timing(*found),
            missing=len(given.keys() - detected.keys()),
            after_sr_ms=spread(latencies_ms(given, detected)),
            after_camera_ms=spread(latencies_ms(taken, detected)) if latency else None,
        )
    return RecordedReport(
        bag=str(bag),
        camera_bag=str(camera_bag) if camera_bag else None,
        topics=topics,
        camera=stream_timing(*frames),
        sr=timing,
        drops=drops,
        latency_ms=latency,
        stamp_latency_ms=stamped if one_clock and camera_bag is None else None,
        clock_offset_ms=offset,
        consistency=_consistency_summary(rows),
        offline=offline,
        mismatches=dict(Counter(fault for row in rows for fault in row.faults)),
        camera_info=check_camera_infos(
            camera.parsed(topics.image_info, CAMERA_INFO_TYPE),
            results.parsed(topics.sr_info, CAMERA_INFO_TYPE),
        ),
        detections=detections,
        node=node,
        notes=(
            *_timing_notes(camera_bag, latency, offset, one_clock),
            *_exactness_notes(offline, drops, node),
        ),
        fault="; ".join(dict.fromkeys([*results.faults, *camera.faults])),
        frames=rows,
    )


def _rows(
    taken: dict[int, int],
    given: dict[int, int],
    detected: dict[int, int],
    compared: dict[int, FrameResult],
) -> tuple[FrameResult, ...]:
    return tuple(
        dataclasses.replace(
            compared.get(stamp, FrameResult(stamp)),
            camera_logged=taken.get(stamp),
            sr_logged=given.get(stamp),
            detections_logged=detected.get(stamp),
        )
        for stamp in sorted({*taken, *given})
    )


def _consistency_summary(rows: Sequence[FrameResult]) -> Consistency | None:
    measured = [row for row in rows if row.consistency_mean is not None]
    if not measured:
        return None
    return Consistency(
        frames=len(measured),
        mean=float(np.mean([row.consistency_mean for row in measured])),
        max=max(row.consistency_max for row in measured),
    )


def _offline_summary(
    upscaler: Upscaler, rows: Sequence[FrameResult], lost: int
) -> OfflineComparison:
    compared = [row for row in rows if row.exact is not None]
    exact = sum(row.exact for row in compared)
    return OfflineComparison(
        model=upscaler.name,
        weights_sha256=upscaler.weights_sha256,
        backend=upscaler.backend,
        device=upscaler.device,
        settings=dataclasses.asdict(upscaler.settings),
        frames=len(compared),
        exact=exact,
        exact_share=exact / len(compared) if compared else None,
        difference_mean=float(np.mean([r.difference_mean for r in compared])) if compared else None,
        difference_max=max((r.difference_max for r in compared), default=None),
        lost_results=lost,
    )


def _timing_notes(
    camera_bag: Path | None, latency: Spread | None, offset: Spread | None, one_clock: bool
) -> list[str]:
    if camera_bag is not None:
        return ["camera and results lie in two recordings: latency cannot be measured"]
    if latency is None:
        return ["no result has the stamp of a camera frame: latency cannot be measured"]
    notes = []
    if latency.max == 0:
        notes.append(
            "every result lies at the very time of its camera frame: this recording was made "
            "offline, and its latency says nothing about the node"
        )
    if not one_clock:
        notes.append(
            f"the camera's stamps are {offset.p50 / 1e3:.1f} s from the clock of the recording "
            "(a played bag, or clocks that are not synchronised): latency from the stamps is not "
            "measured"
        )
    return notes


def _exactness_notes(
    offline: OfflineComparison | None, drops: Drops, node: dict[str, str]
) -> list[str]:
    """What the offline run shows, and why results may rightly differ from it."""
    if offline is None or not offline.frames:
        return []
    notes = []
    if offline.lost_results:
        notes.append(
            f"{offline.lost_results} frames without a result were processed by the node, as the "
            "results after them show: their results were lost on the way to the recorder"
        )
    if offline.exact == offline.frames:
        return notes
    notes.append(
        "the node's range may have followed frames from before the recording began; the results "
        "then differ until the tracked range has caught up (5 % of the way with each frame)"
    )
    if drops.between:
        said = f" ({node['dropped stale']} by its own count)" if "dropped stale" in node else ""
        notes.append(
            f"{drops.between} frames between the first and the last result have none: some may "
            f"have been dropped as stale{said}, the results of others lost on the way to the "
            "recorder; a mixture of both in one gap is not recognised"
        )
    sha = node.get("weights sha256")
    if sha is not None and sha != offline.weights_sha256:
        notes.append(f"the node ran other weights: {sha[:12] or 'none'} ({node.get('model')})")
    where = (node.get("backend"), node.get("device"))
    if sha is not None and where != (offline.backend, offline.device):
        notes.append(
            f"the node ran {where[0]} on {where[1]}, the offline run {offline.backend} on "
            f"{offline.device}: sums are rounded differently"
        )
    if sha is None:
        notes.append(
            "no diagnostics of the node are recorded: its model, backend and device are not known"
        )
    notes.append("the node's settings are not recorded: give those it had (steps, fidelity, ...)")
    return notes
