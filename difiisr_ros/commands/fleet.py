"""``difiisr fleet``: many recordings, on one machine or a cluster."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from cyclopts import App

from difiisr_models import Camera, FrameSettings, Runtime, Stream, load_upscaler
from difiisr_models.files import sha256_file
from difiisr_models.upscaler import BICUBIC
from difiisr_models.weights import find_weights_folder, read_manifest
from difiisr_ros.bags import frames_of
from difiisr_ros.commands.arguments import CameraOptions, FrameOptions, RuntimeOptions, as_asked
from difiisr_ros.commands.fleet_report import fleet_page, write_picture
from difiisr_ros.commands.fleet_work import (
    Cluster,
    ClusterOptions,
    Make,
    do_all,
    sliced,
    write_result,
)
from difiisr_ros.fleet import FleetFolder, Job, find_jobs
from difiisr_ros.replay import replay as replay_bag

_NOTES = 10  # of a job

fleet = App(name="fleet")
fleet.command(
    "difiisr_ros.commands.fleet_evaluate:fleet_evaluate",
    name="evaluate",
    help="judge models on many recordings",
)


@fleet.command
def replay(
    inputs: list[str],
    /,
    *,
    out: str,
    model: str = "difiisr-rt-x4",
    image_topic: str | None = None,
    sr_topic: str | None = None,
    only_sr: bool = False,
    slice_frames: Annotated[int, Ge(0)] = 0,
    warm_up: Annotated[int, Ge(0)] | None = None,
    cluster: ClusterOptions = Cluster(),
    runtime: RuntimeOptions = Runtime(),
    settings: FrameOptions = FrameSettings(),
    camera: CameraOptions = Camera(),
) -> int:
    """Super-resolve many recordings; what is done already is not done again.

    Args:
        inputs: recordings, folders of recordings, patterns, or text files with one of these in
            each line; paths, or URIs as s3://BUCKET/PATH.
        out: folder or URI for bags/, fleet.parquet and report.html.
        model: name, or path of weights.
        image_topic: default: the only image topic.
        sr_topic: topic of the results; default: sr beside the image topic.
        only_sr: do not copy the other topics.
        slice_frames: cut longer recordings into slices of so many frames, done side by side; 0:
            do not.
        warm_up: frames before a slice that its stream sees; default: all, which makes the results
            those of the whole recording to the bit.

    Returns:
        0: all frames; 1: none; 2: some.
    """
    engine = runtime.engine and os.path.abspath(runtime.engine)  # workers run in other folders
    known = camera.calibration and os.path.abspath(camera.calibration)
    runtime = replace(as_asked(runtime), threads=runtime.threads or 1, engine=engine)
    camera = replace(camera, calibration=known)
    model = os.path.abspath(os.path.expanduser(model)) if os.sep in model else model
    task = Replay(model, image_topic, sr_topic, only_sr, warm_up, runtime, settings, camera)
    jobs = find_jobs(inputs, out)
    if slice_frames:
        jobs = sliced(jobs, slice_frames, image_topic, cluster)
    return do_all(jobs, out, task, cluster)


@fleet.command
def report(folders: list[str], /, *, out: str) -> None:
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


@dataclass(frozen=True)
class Replay:
    """What ``fleet replay`` makes of a recording: settings that every worker gets."""

    model: str
    image_topic: str | None
    sr_topic: str | None
    only_sr: bool
    warm_up: int | None
    runtime: Runtime
    settings: FrameSettings
    camera: Camera

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
        engine = sha256_file(Path(self.runtime.engine)) if self.runtime.engine else ""
        known = self.camera.calibration and sha256_file(Path(self.camera.calibration))
        hashes = {"engine_sha256": engine, "calibration_sha256": known}
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
                "notes": [*report.warnings, *report.malformed, report.events][:_NOTES],
                "model": self.model,
                "backend": upscaler.backend,
                "device": upscaler.device,
            }
            if seen := stream.summary():
                row |= {"noise": seen.noise, "noise_percent": seen.noise_percent}
                row |= {"span": seen.span, "invalid_pixels": seen.invalid}
            frames = frames_of(folder, report.sr_topic, choose=lambda count: [count // 2])
            write_picture(folder, [counts for _, counts in frames])
            page = fleet_page([row | {"job": folder.name, "input": job.path, "folder": "."}])
            (folder / "report.html").write_text(page, encoding="utf-8")
            return row

        return make
