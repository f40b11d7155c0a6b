"""``difiisr recorded``: what a running node really did, from its recording."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from difiisr_models import FrameSettings, Runtime, load_upscaler
from difiisr_models.files import replaced, write_json, write_text
from difiisr_ros.commands import arguments
from difiisr_ros.commands.answers import Answer, answers
from difiisr_ros.commands.recorded_frames import read_recording
from difiisr_ros.commands.recorded_measures import judge
from difiisr_training.evaluation.figures import svg_of
from difiisr_training.evaluation.report import fill_template

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_RESULT, _BAD = "#228833", "#cc3311"


@answers
def recorded(
    bag: Path,
    /,
    *,
    out: Path,
    topic: str | None = None,
    sr_topic: str | None = None,
    camera_bag: Path | None = None,
    model: Annotated[str, Parameter(name=("--model", "--models"))] = "difiisr-rt-x4",
    runtime: arguments.RuntimeOptions = Runtime(),
    settings: arguments.FrameOptions = FrameSettings(),
    camera: arguments.KnownCamera = arguments.AskedCamera(),
) -> Answer:
    """Say what a running node really did: rate, latency, drops, gaps, consistency, exactness.

    Writes recorded.html, recorded.json and recorded_per_frame.csv. The exit code is 2 when the
    recording was not readable to its end, or held damaged messages.

    Args:
        bag: rosbag2 with camera and results, folder or storage file.
        out: folder for the three files.
        topic: camera topic; by default the only image topic that is no result.
        sr_topic: result topic; by default the only one named .../sr or .../sr/image_raw.
        camera_bag: the recording that holds the camera, where BAG does not; latency cannot be
            measured then.
        model: of the offline run, name or path; none leaves it out.
        runtime: of the offline run.
        settings: as the node had them.
        camera: as the node had it.
    """
    upscaler = None
    if model != "none":
        upscaler = load_upscaler(model, runtime=arguments.as_asked(runtime), settings=settings)
    recording = read_recording(bag, camera_bag, (topic, sr_topic), upscaler, camera.known)
    values = judge(recording)
    with replaced(out / "recorded_per_frame.csv") as beside:
        recording.frames.to_csv(beside)
    write_text(out / "recorded.html", _page(values, recording.frames))
    write_json(out / "recorded.json", values)
    files = f"written to {out}: recorded.html, recorded.json, recorded_per_frame.csv"
    if values["fault"]:
        print(f"difiisr: the recording is damaged: {values['fault']}", file=sys.stderr)
    return Answer(values, "\n".join([*_summary(values), files]), 2 if values["fault"] else 0)


def _summary(values: dict[str, Any]) -> Iterator[str]:
    """The most important of ``recorded.json`` in words, one line each, and the notes."""
    for name, topic, key in (("camera", "image", "camera"), ("result", "sr", "sr")):
        timing = values[key]
        rate = "rate unknown" if timing["rate"] is None else f"{timing['rate']:.2f} Hz"
        yield (
            f"{name} {values['topics'][topic]}: {timing['messages']} messages, {rate}, "
            f"{len(timing['gaps'])} gaps, {timing['duplicates']} duplicates, "
            f"{timing['out_of_order']} out of order"
        )
    sentences = {
        "drops": "dropped {total} of {frames} frames: {before_first} before the first result, "
        "{between} between, {after_last} after the last",
        "latency_ms": "latency, camera to result: p50 {p50:.1f}, p90 {p90:.1f}, p99 {p99:.1f}, "
        "max {max:.1f} ms",
        "stamp_latency_ms": "latency, stamp to result: p50 {p50:.1f}, p90 {p90:.1f}, "
        "p99 {p99:.1f}, max {max:.1f} ms",
        "consistency": "consistency |D(SR) - LR|: mean {mean:.3g}, max {max:.3g} counts",
        "offline": "offline {model}: {exact} of {frames} frames bit-exact, difference mean "
        "{difference_mean:.3g}, max {difference_max:.3g} counts",
        "camera_info": "camera_info: {right} of {messages} right",
    }
    for name, sentence in sentences.items():
        if values[name] and values[name].get("frames") != 0:
            yield sentence.format(**values[name])
    if values["mismatches"]:
        yield "faults: " + ", ".join(f"{n} x {k}" for k, n in values["mismatches"].items())
    yield from (f"note: {note}" for note in values["notes"])


def _page(values: dict[str, Any], frames: pd.DataFrame) -> str:
    """``recorded.html``: opens offline, alone; the same report gives the same bytes."""
    filters = {
        "number": lambda value, digits: "-" if value is None else f"{value:.{digits}f}",
        "counts": lambda value: "-" if value is None else f"{value:.3g}",
    }
    plot = svg_of(_plot(frames), "recorded")
    return fill_template(Path(__file__).with_suffix(".html.j2"), filters, report=values, plot=plot)


def _plot(frames: pd.DataFrame) -> Figure:
    """Latency and the time between stamps over time; a dropped frame is a mark at the bottom."""
    from matplotlib.figure import Figure

    seconds = ((frames.index - frames.index.min()) / 1e9).to_series(frames.index)
    logged = {"camera": frames.camera_logged, "result": frames.sr_logged}
    shown = {"latency, ms": (logged["result"] - logged["camera"]).dropna() / 1e6}
    for name, times in logged.items():
        shown[f"between {name}s, ms"] = 1e3 * seconds[times.notna()].diff().dropna()
    figure = Figure(figsize=(9, 6), layout="constrained")
    for axes, (label, values) in zip(figure.subplots(3, sharex=True), shown.items(), strict=True):
        axes.plot(seconds[values.index], values.astype(float), ".-", color=_RESULT, lw=0.8, ms=4)
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        axes.set_ylim(bottom=0)
    dropped = seconds[frames.sr_logged.isna()]
    figure.axes[0].plot(dropped, 0 * dropped, "|", color=_BAD, ms=14, mew=2)
    axes.set_xlabel("header stamp, s after the first")
    return figure
