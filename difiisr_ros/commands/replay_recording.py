"""``difiisr replay``: every frame of a recording super-resolved, without ROS."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from difiisr_models import FrameSettings, Runtime, load_upscaler
from difiisr_ros.commands import arguments
from difiisr_ros.commands.answers import Answer, answers
from difiisr_ros.replay import ReplayOptions
from difiisr_ros.replay import replay as replay_bag

SHOWN_FRAMES = 10  # refused frames that are listed; all are counted


@answers
def replay(
    in_bag: Path,
    out_bag: Path,
    /,
    *,
    model: str = "difiisr-rt-x4",
    options: Annotated[ReplayOptions, Parameter(name="*")] = ReplayOptions(),
    runtime: arguments.RuntimeOptions = Runtime(),
    settings: arguments.FrameOptions = FrameSettings(),
    camera: arguments.KnownCamera = arguments.AskedCamera(),
) -> Answer:
    """Super-resolve every frame of a rosbag2 recording, without ROS.

    Args:
        in_bag: rosbag2 folder or storage file, mcap or sqlite3.
        out_bag: rosbag2 folder to make, mcap.
        model: name, or path of weights.

    The exit code is 2 of a recording that is damaged, too.
    """
    upscaler = load_upscaler(model, runtime=arguments.as_asked(runtime), settings=settings)
    report = replay_bag(in_bag, out_bag, upscaler, options, camera=camera.known)
    for line in [*report.warnings, *report.malformed[:SHOWN_FRAMES]]:
        print(f"warning: {line}", file=sys.stderr)
    facts: dict[str, Any] = {"frames_in": report.frames_in, "frames_out": report.frames_out}
    facts |= {"topic": report.sr_topic, "refused": report.malformed, "faults": report.faults}
    repeated = f", {report.repeated} repeated" if report.repeated else ""
    text = (
        f"{out_bag}: {report.frames_out} of {report.frames_in} frames of {report.image_topic} "
        f"on {report.sr_topic}, {len(report.malformed)} refused{repeated}; events: {report.events}"
    )
    for fault in report.faults:
        print(f"damaged: {fault}", file=sys.stderr)
    if report.faults:
        print(f"difiisr: {in_bag} is damaged; what was readable is in {out_bag}", file=sys.stderr)
    if not report.frames_out:
        print("difiisr: no frame could be super-resolved", file=sys.stderr)
    code = 2 if report.faults or report.malformed else 0
    return Answer(facts, text, code if report.frames_out else 1)
