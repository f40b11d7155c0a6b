"""``difiisr train-detector``: a small detector for thermal frames, trained and exported as ONNX."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import Parameter
from safetensors.torch import load_file, save_file

from difiisr_models.backends.selection import resolve_device
from difiisr_models.files import write_json
from difiisr_ros.commands.arguments import Duration, Threads, check_run
from difiisr_training.data.annotations import read_annotations
from difiisr_training.recipes import centre_network
from difiisr_training.recipes.detector_training import (
    DetectorConfig,
    detector_scores,
    fit_detector,
    load_frames,
)


def train_detector(
    data: Path,
    /,
    *,
    annotations: Path,
    out: Path,
    val_data: Path | None = None,
    val_annotations: Path | None = None,
    init: Path | None = None,
    resume: bool = False,
    budget: Duration = math.inf,
    config: Annotated[DetectorConfig, Parameter(name="*")] = DetectorConfig(),
    device: str = "auto",
    threads: Threads = 0,
) -> None:
    """Train a small object detector on high-resolution thermal frames and export it as ONNX.

    With it difiisr evaluate judges the frames of every model.

    Args:
        data: folder of images.
        annotations: their boxes: COCO or HIT-UAV JSON, or a folder of Pascal VOC.
        out: folder of the run.
        val_data: images that choose the best weights.
        val_annotations: their boxes.
        init: start from these weights (.safetensors).
        resume: go on with the run in --out.
        budget: wall-clock limit, e.g. 20m or 2h.
        device: auto, cpu, cuda or cuda:N.
        threads: of the CPU; 0: all.
    """
    if (val_data is None) != (val_annotations is None):
        raise ValueError("--val-data and --val-annotations go together")
    check_run(out, resume)
    if threads:
        torch.set_num_threads(threads)
    truth = read_annotations(annotations)
    frames, val_frames = load_frames(data, truth), []
    if val_data and val_annotations:
        val_truth = read_annotations(val_annotations)
        if val_truth.classes != truth.classes:
            found = f"{val_annotations} has the classes {', '.join(val_truth.classes)}"
            raise ValueError(f"{found}, {annotations} has {', '.join(truth.classes)}")
        val_frames = load_frames(val_data, val_truth)
    network, iteration = fit_detector(
        config,
        truth.classes,
        frames,
        val_frames,
        out,
        initial=load_file(init) if init else None,
        device=str(resolve_device(device)),
        budget_s=budget,
    )
    weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    save_file(weights, out / "detector.safetensors")
    write_json(out / "config.json", {"classes": truth.classes, **dataclasses.asdict(config)})
    path = centre_network.export_detector(network, truth.classes, out / "detector.onnx")
    print(f"{path}: {iteration} of {config.iterations} iterations on {len(frames)} frames")
    if val_frames:
        judged = detector_scores(network, val_frames, truth.classes)
        scores = [judged[name] for name in ("map", "map50")]
        mean, mean50 = ("no" if score is None else f"{score:.1%}" for score in scores)
        print(f"validation, {len(val_frames)} frames: {mean} mAP@.5:.95, {mean50} mAP@.5")
