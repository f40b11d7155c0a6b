"""``difiisr fleet``: many recordings, on one machine or a cluster."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from cyclopts import App, Parameter

from difiisr_models import Camera, FrameSettings, Runtime, Stream, load_upscaler
from difiisr_models.files import sha256_file
from difiisr_models.frame_model import BICUBIC
from difiisr_models.weights import find_weights_folder, read_manifest
from difiisr_ros.bags import frames_of
from difiisr_ros.commands.answers import Answer, answers
from difiisr_ros.commands.arguments import CameraOptions, FrameOptions, RuntimeOptions, as_asked
from difiisr_ros.commands.fleet_report import fleet_page, write_picture
from difiisr_ros.commands.fleet_work import Cluster, ClusterOptions, do_all, write_result
from difiisr_ros.fleet_jobs import FleetFolder, Job, Make, find_jobs
from difiisr_ros.replay import replay as replay_bag

_NOTES = 10  # of a job

fleet = App(name="fleet")
fleet.command(
    "difiisr_ros.commands.fleet_evaluate:fleet_evaluate",
    name="evaluate",
    help="judge models on many recordings",
)


@dataclass(frozen=True)
class Replay:
    """What is made of each recording; every worker gets it.

    Attributes:
        model: name, or path of weights.
        image_topic: default: the only image topic.
        sr_topic: topic of the results; default: sr beside the image topic.
        only_sr: do not copy the other topics.
        warm_up: frames before a slice that its stream sees; default: all, which makes the results
            those of the whole recording to the bit
    """

    model: str = "difiisr-rt-x4"
    image_topic: str | None = None
    sr_topic: str | None = None
    only_sr: bool = False
    warm_up: Annotated[int, Ge(0)] | None = None
    runtime: RuntimeOptions = Runtime()
    settings: FrameOptions = FrameSettings()
    camera: CameraOptions = Camera()

    @property
    def threads(self) -> int:
        """Of a worker."""
        return self.runtime.threads

    @property
    def device(self) -> str:
        """As asked for."""
        return self.runtime.device

    def product(self) -> dict[str, Any]:
        """All that a result depends on, for a job's name."""
        files = {}
        if self.model not in BICUBIC:
            files = read_manifest(find_weights_folder(self.model))["files"]
        named = {"engine": self.runtime.engine, "calibration": self.camera.calibration}
        hashes = {f"{k}_sha256": path and sha256_file(Path(path)) for k, path in named.items()}
        return {"verb": "replay", **asdict(self), "files": files, **hashes}

    def load(self) -> Make:
        """Load the model."""
        upscaler = load_upscaler(self.model, runtime=self.runtime, settings=self.settings)

        def make(job: Job, source: Path, folder: Path) -> dict[str, Any]:
            stream = Stream()
            report = replay_bag(
                source, folder, upscaler, image_topic=self.image_topic, sr_topic=self.sr_topic,
                only_sr=self.only_sr, first=job.first, frames=job.frames, warm_up=self.warm_up,
                camera=self.camera, stream=stream,
            )  # fmt: skip
            row = {
                "topic": report.image_topic,
                "frames_in": report.frames_in,
                "frames_out": report.frames_out,
                "refused": len(report.malformed),
                "fault": "; ".join(report.faults),
                "events": sum(n for kind, n in stream.events.counts.items() if kind != "normal"),
                "notes": [*report.warnings, *report.malformed][:_NOTES],
                "model": self.model,
                "backend": upscaler.backend,
                "device": upscaler.device,
            }
            if seen := stream.seen:
                row |= {"noise": seen.noise, "noise_percent": seen.noise_percent}
                row |= {"span": seen.span, "invalid_pixels": seen.invalid_count}
            frames = frames_of(folder, report.sr_topic, choose=lambda count: [count // 2])
            write_picture(folder, [counts for _, counts in frames])
            page = fleet_page([row | {"job": folder.name, "input": job.path, "folder": "."}])
            (folder / "report.html").write_text(page, encoding="utf-8")
            return row

        return make


@fleet.command
@answers
def replay(
    inputs: list[str],
    /,
    *,
    out: str,
    slice_frames: Annotated[int, Ge(0)] = 0,
    task: Annotated[Replay, Parameter(name="*")] = Replay(),
    cluster: ClusterOptions = Cluster(),
) -> Answer:
    """Super-resolve many recordings; what is done already is not done again.

    Args:
        inputs: recordings, folders of recordings, patterns, or .txt files with one of these in
            each line; paths, or URIs as s3://BUCKET/PATH.
        out: folder or URI for bags/, fleet.parquet and report.html.
        slice_frames: cut longer recordings into slices of so many frames, done side by side; 0:
            do not.
    """
    # Workers have one thread where none is asked for, and paths that hold in any folder
    runtime, known = task.runtime, task.camera.calibration
    model = os.path.expanduser(task.model)
    engine = runtime.engine and os.path.abspath(runtime.engine)
    task = replace(
        task,
        model=os.path.abspath(model) if os.sep in model else model,
        runtime=as_asked(replace(runtime, engine=engine, threads=runtime.threads or 1)),
        camera=replace(task.camera, calibration=known and os.path.abspath(known)),
    )
    return do_all(find_jobs(inputs, out), out, task, cluster, slice_frames)


@fleet.command
@answers
def report(folders: list[str], /, *, out: str) -> Answer:
    """Write one fleet.parquet and report.html about the folders of several runs.

    Args:
        folders: OUT of each run.
        out: folder for the two files.
    """
    rows = {}
    for folder in folders:
        for row in FleetFolder(folder).result():
            place = f"{folder.rstrip('/')}/{row['folder']}" if row["folder"] else ""
            is_local = place and "://" not in folder + out
            rows[row["job"]] = row | {"folder": os.path.relpath(place, out) if is_local else place}
    write_result(FleetFolder(out), list(rows.values()))
    return Answer({"jobs": list(rows.values())}, f"{out}: fleet.parquet, report.html")
