"""``difiisr evaluate``: judge models on recordings and images."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Le
from cyclopts import Parameter
from tabulate import tabulate

from difiisr_models import Camera
from difiisr_models.backends.selection import resolve_device
from difiisr_models.radiometry import ZERO_CELSIUS
from difiisr_ros.bags import choose_image_topic, find_recordings, frames_of, open_bag
from difiisr_ros.commands.answers import Answer, answers
from difiisr_ros.commands.arguments import AskedCamera, KnownCamera
from difiisr_ros.commands.environment import environment
from difiisr_training.data.annotations import images_by_name
from difiisr_training.degradations import Kind
from difiisr_training.evaluation import task_scores
from difiisr_training.evaluation.evaluate import judge_models
from difiisr_training.evaluation.inputs import HELD_OUT, InputSet, Selection, image_set
from difiisr_training.evaluation.measures import Judge, Mode, Radiometry
from difiisr_training.evaluation.peers import OutputFolder, Peer, load_peer
from difiisr_training.evaluation.results import (
    PER_FRAME_FILE,
    RESULTS_FILE,
    Results,
    short_names,
    slug,
    write_results,
)


@dataclass(frozen=True)
class Judgement:
    """By what models are judged.

    Attributes:
        models: comma-separated: bicubic, bicubic-consistent, a shipped model, a weights folder, a
            published x4 network's file (.pth, .safetensors), safmn, rlfn, realesrgan; after ours
            @FIDELITY, @steps=N, @consistency=F, @seed=N, @pipeline=published,
            @precision=P.
        mode: reference: the input is high resolution, and low resolution is made of it; camera:
            the input is super-resolved as it is, and judged without reference.
        degradation: how low resolution is made, with reference.
        pan: frames that a recurrent model sees before each image, of a pan that ends there, with
            reference; the other models see the image alone.
        every: use the first of each so many frames.
        limit: frames per set, evenly spaced, in camera mode the first ones; by default all.
        weights: folder of the metrics' and peers' networks.
        metrics: comma-separated, by default all that can be measured. reference: psnr, ssim,
            lpips_squeeze, lpips_alex, lpips_vgg, spectral, consistency, error, kelvin, niqe,
            clip_iqa, musiq; camera: niqe, clip_iqa, musiq, flicker, consistency.
        radiometry: of the counts, e.g. 'kelvin=0.1*counts+173.15'.
        device: auto, cpu, cuda, cuda:N.
    """

    models: str = "bicubic,difiisr-rt-x4"
    mode: Mode = "reference"
    degradation: Kind = "bicubic"
    pan: Annotated[int, Ge(0), Le(100)] = 0
    every: Annotated[int, Ge(1)] = 1
    limit: Annotated[int, Ge(1)] | None = None
    weights: Path | None = None
    metrics: str | None = None
    radiometry: str | None = None
    device: str = "auto"

    def selection(self, last: int = 0) -> Selection:
        """Of the frames of each set; ``last``: so many at the end, 0: all."""
        return Selection(self.every, last, self.limit, spread=self.mode == "reference")

    def networks(self, camera: Camera = Camera()) -> tuple[list[Peer], Judge]:
        """The models, and what judges them; ``camera`` says what counts are without radiometry."""
        torch.backends.cudnn.deterministic = True
        device = str(resolve_device(self.device))
        scale = Radiometry.parse(self.radiometry) if self.radiometry else None
        if scale is None and camera.unit != "counts":
            shift = ZERO_CELSIUS if camera.unit == "celsius" else 0.0
            scale = Radiometry(camera.scale, camera.offset + shift)
        metrics = self.metrics.split(",") if self.metrics else None
        judge = Judge(self.mode, metrics, self.weights, device, scale)
        return [load_peer(name, self.weights, device) for name in self.models.split(",")], judge


@answers
def evaluate(
    inputs: list[str],
    /,
    *,
    out: Path,
    judged_by: Annotated[Judgement, Parameter(name="*")] = Judgement(),
    outputs: Annotated[list[str], Parameter(consume_multiple=True)] = [],  # noqa: B006
    lr: list[str] = [],  # noqa: B006
    masks: list[str] = [],  # noqa: B006
    topic: str | None = None,
    camera: KnownCamera = AskedCamera(),
    data: Path | None = None,
    last: Annotated[int, Ge(0)] = 0,
    detector: Path | None = None,
    annotations: list[str] = [],  # noqa: B006
    segmenter: Path | None = None,
    labels: list[str] = [],  # noqa: B006
    no_report: bool = False,
) -> Answer:
    """Judge models on recordings and images.

    Writes report.html, results.json, per_frame.csv and all frames. What a folder already holds is
    not run again. To measure what a node recorded: difiisr evaluate --recorded, or difiisr
    recorded.

    Args:
        inputs: folders of images (8 or 16 bit), rosbag2 recordings, or sets below --data, as
            hit_uav/test, msrs/test, roadscene/last20.
        out: folder to write.
        outputs: NAME=DIR, results of other methods: an image per frame, under the frame's name.
        lr: [SET=]DIR, your own low resolution instead: an image per frame, under the frame's name,
            a quarter of its size; repeatable. SET is the INPUT that they belong to, which may be
            left out where there is one alone.
        masks: [SET=]DIR, likewise: images that are 0 where a result is not judged (it counts as
            right there, and PSNR is of the other pixels).
        topic: of a recording; by default its only images.
        camera: of the recordings.
        data: root of the sets' folders.
        last: use so many at the end (0: all).
        detector: an ONNX file; judge by detections too, see --annotations.
        annotations: [SET=]FILE, likewise: boxes in the frames: COCO or HIT-UAV JSON, or a folder of
            Pascal VOC files.
        segmenter: a folder; judge by segmentation too.
        labels: [SET=]DIR, label maps of the frames, likewise; without: agreement with the
            segmentation of HR.
        no_report: write no report.html.
    """
    for option, given, reader, network in (
        ("--annotations", annotations, "--detector", detector),
        ("--labels", labels, "--segmenter", segmenter),
    ):
        if given and not network:
            raise ValueError(f"{option} needs {reader}, which reads the frames")
        if network and not network.exists():
            raise FileNotFoundError(f"no file or folder {network}")
    if detector and not annotations:
        raise ValueError("--detector needs --annotations, the boxes in the frames")
    device, mode = str(resolve_device(judged_by.device)), judged_by.mode
    sets = resolve_inputs(inputs, data, topic, judged_by.selection(last), camera.known)
    names = [chosen.name for chosen in sets]
    own, hidden = _of_sets("--lr", lr, names), _of_sets("--masks", masks, names)
    if (own or hidden) and mode != "reference":
        raise ValueError("--lr and --masks are for --mode reference")
    for place, chosen in enumerate(sets):
        pairs, parts = (
            images_by_name(folders[chosen.name]) if chosen.name in folders else {}
            for folders in (own, hidden)
        )
        sets[place] = replace(chosen, lr=pairs, masks=parts)
    boxes = _of_sets("--annotations", annotations, names)
    maps: dict[str, Any] = _of_sets("--labels", labels, names) or dict.fromkeys(names)
    peers, judge = judged_by.networks(camera.known)
    compared: list[Peer | OutputFolder] = [*peers, *map(OutputFolder.parse, outputs)]
    out.mkdir(parents=True, exist_ok=True)
    made = judged_by.degradation
    results = judge_models(sets, compared, judge, out, made, environment(device), judged_by.pan)
    results.command = ["difiisr", *sys.argv[1:]]
    write_results(results, out)  # what a detector refuses must not cost the models' hours
    series = [slug(model.name) for model in compared]
    if detector:
        results.detection = task_scores.judge_detection(out, boxes, series, detector)
        _note_others(results, "detection", "--annotations", boxes)
    if segmenter:
        results.segmentation = task_scores.judge_segmentation(out, maps, series, segmenter, device)
        _note_others(results, "segmentation", "--labels", maps)
    facts = write_results(results, out)
    lines = [*_tables(results)]
    reasons = dict.fromkeys(results.not_run.values())
    for reason in reasons:
        names = [name for name, why in results.not_run.items() if why == reason]
        lines.append(f"not run: {', '.join(names)}: {reason}")
    lines.append(f"{out / RESULTS_FILE}, {out / PER_FRAME_FILE}")
    if not no_report:
        from difiisr_training.evaluation.report import write_report

        lines.append(str(write_report(results, out)))
    return Answer(facts, "\n".join(lines), 2 if results.left_out else 0)


def resolve_inputs(
    given: Iterable[str],
    data: Path | None,
    topic: str | None,
    selection: Selection,
    camera: Camera = Camera(),
) -> list[InputSet]:
    """The sets that a command line names; arguments as of :func:`evaluate`.

    Raises:
        FileNotFoundError: there is no such file, folder or set.
        ValueError: two sets have one name, or a recording has no such topic or several.
    """
    found: dict[str, InputSet] = {}
    for name in given:
        path, end = Path(name), 0
        if not path.exists() and data:
            folder, end = HELD_OUT.get(name, (name, 0))
            path = data / folder
        if not path.exists():
            raise FileNotFoundError(f"no file or folder {path}; the root of sets is --data")
        recordings = find_recordings(path)
        for source in recordings or [path]:
            if recordings:
                title = f"{name}/{source.relative_to(path)}" if len(recordings) > 1 else name
                one = recorded_set(title, source, topic, selection, camera)
            else:
                one = image_set(name, path, selection, end)
            if one.name in found:
                raise ValueError(f"two inputs are called {one.name}; give each once")
            found[one.name] = one
    return list(found.values())


def recorded_set(
    name: str, recording: Path, topic: str | None, selection: Selection, camera: Camera = Camera()
) -> InputSet:
    """A recording as a set; its messages keep their numbers as names."""
    with open_bag(recording) as bag:
        chosen = choose_image_topic(bag, topic)

    def read() -> Iterator[tuple[str, np.ndarray | str]]:
        lost: list[str] = []
        yield from frames_of(
            recording, chosen, choose=selection.choose, skipped=lost.append, camera=camera
        )
        yield from ((f"lost {number}", reason) for number, reason in enumerate(lost, 1))

    return InputSet(name, recording, "bag", read, chosen)


def _of_sets(option: str, given: Sequence[str], sets: Sequence[str]) -> dict[str, Path]:
    """Read ``SET=FILE``, or ``FILE`` where there is one set alone: the file of each named set."""
    files: dict[str, Path] = {}
    for text in given:
        fitting = [name for name in sets if text.startswith(f"{name}=")]
        name = max(fitting, key=len, default=sets[0] if len(sets) == 1 else "")
        path = Path(text.removeprefix(f"{name}=")).expanduser()
        if not name:
            raise ValueError(
                f"{option} {text}: say whose it is, {option} SET=FILE; the sets are called "
                f"{', '.join(sets)}"
            )
        if not path.exists():
            raise FileNotFoundError(f"{option} {text}: no file or folder {path}")
        if name in files:
            raise ValueError(f"{option} is given twice for {name}")
        files[name] = path
    return files


def _note_others(results: Results, part: str, option: str, files: Mapping[str, Any]) -> None:
    """Say which sets were not judged."""
    for name in (chosen.name for chosen in results.sets):
        if name not in files:
            results.not_run[f"{part} on {name}"] = f"no {option} {name}=... was given"


def _tables(results: Results) -> Iterator[str]:
    """A table for each set: a row per metric, and mAP where a detector judged."""
    judged = (results.detection or {"sets": {}})["sets"]
    titles = short_names([chosen.name for chosen in results.sets])
    for title, chosen in zip(titles, results.sets, strict=True):
        models, found = chosen.models, judged.get(slug(chosen.name), {})
        rows = [[name, *(model.mean[name] for model in models)] for name in results.metrics]
        for name, key in (("mAP@.5:.95", "map"), ("mAP@.5", "map50")) if found else ():
            rows.append([name, *(found[slug(model.name)][key] for model in models)])
        rows.append(["seconds a frame", *(model.seconds_per_frame for model in models)])
        shown = [[None if value != value else value for value in row] for row in rows]  # NaN
        heads = ["", *(model.title for model in models)]
        table = tabulate(shown, heads, floatfmt=".4g", missingval="-")
        yield f"\n{title}, {chosen.frames} frames\n{table}"
