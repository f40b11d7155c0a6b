"""``difiisr train-detector`` and ``train-segmenter``: what reads super-resolved frames, trained."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import Parameter
from safetensors.torch import load_file, save_file

from difiisr_models.backends.selection import resolve_device
from difiisr_models.files import write_json
from difiisr_ros.commands.arguments import Duration, Threads
from difiisr_training.checkpoints import CHECKPOINT_NAME
from difiisr_training.data.annotations import pair_with_labels, read_annotations
from difiisr_training.evaluation import segformer
from difiisr_training.recipes import centre_network, detector_training, segmenter_training
from difiisr_training.recipes.detector_training import DetectorConfig
from difiisr_training.recipes.segmenter_training import SegmenterConfig


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
    _prepare(out, resume, threads)
    truth = read_annotations(annotations)
    frames, val_frames = detector_training.load_frames(data, truth), []
    if val_data and val_annotations:
        val_truth = read_annotations(val_annotations)
        if val_truth.classes != truth.classes:
            found = f"{val_annotations} has the classes {', '.join(val_truth.classes)}"
            raise ValueError(f"{found}, {annotations} has {', '.join(truth.classes)}")
        val_frames = detector_training.load_frames(val_data, val_truth)
    network, iteration = detector_training.fit_detector(
        config, truth.classes, frames, val_frames, out,
        initial=load_file(init) if init else None, device=str(resolve_device(device)),
        budget_s=budget,
    )  # fmt: skip
    weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    save_file(weights, out / "detector.safetensors")
    write_json(out / "config.json", {"classes": truth.classes, **asdict(config)})
    path = centre_network.export_detector(network, truth.classes, out / "detector.onnx")
    print(f"{path}: {iteration} of {config.iterations} iterations on {len(frames)} frames")
    if val_frames:
        judged = detector_training.detector_scores(network, val_frames, truth.classes)
        scores = f"{_share(judged['map'])} mAP@.5:.95, {_share(judged['map50'])} mAP@.5"
        print(f"validation, {len(val_frames)} frames: {scores}")


def train_segmenter(
    data: Path,
    /,
    *,
    labels: Path,
    classes: str,
    out: Path,
    val_data: Path | None = None,
    val_labels: Path | None = None,
    init: Path | None = None,
    resume: bool = False,
    budget: Duration = math.inf,
    config: Annotated[SegmenterConfig, Parameter(name="*")] = SegmenterConfig(),
    device: str = "auto",
    threads: Threads = 0,
) -> None:
    """Train SegFormer-b1 on thermal frames with label maps; the defaults are the paper's settings.

    The result is a folder as transformers reads it.

    Args:
        data: folder of images (FMB: train/Infrared).
        labels: folder of their label maps (FMB: train/Label).
        classes: names in the order of the labels 0, 1, .., with commas.
        out: folder of the run.
        val_data: images to judge the result on.
        val_labels: their label maps.
        init: local SegFormer folder to start from (default: random weights).
        resume: go on with the run in --out.
        budget: wall-clock limit, e.g. 20m or 8h.
        device: auto, cpu, cuda or cuda:N.
        threads: of the CPU; 0: all.
    """
    if (val_data is None) != (val_labels is None):
        raise ValueError("--val-data and --val-labels go together")
    names = [name.strip() for name in classes.split(",")]
    if len(names) < 2:
        raise ValueError(f"--classes needs two names or more, got {classes}")
    _prepare(out, resume, threads)
    pairs = pair_with_labels(data, labels)
    torch.manual_seed(config.seed)
    model = segformer.load_segformer(init, names) if init else segformer.build_segformer(names)
    model.to(resolve_device(device))
    model, iteration = segmenter_training.fit_segmenter(config, model, pairs, out, budget_s=budget)
    model.save_pretrained(out)
    print(f"{out}: {iteration} of {config.iterations} iterations on {len(pairs)} images")
    if val_data and val_labels:
        val_pairs = pair_with_labels(val_data, val_labels)
        miou = segmenter_training.segmenter_scores(model, val_pairs, names)["miou"]
        print(f"validation, {len(val_pairs)} images: {_share(miou)} mIoU")


def _prepare(out: Path, resume: bool, threads: int) -> None:
    """Raise a ValueError where ``out`` holds a training run that nobody asked to resume."""
    if (out / CHECKPOINT_NAME).exists() and not resume:
        raise ValueError(f"{out} holds a run: --resume goes on with it, or choose another")
    if threads:
        torch.set_num_threads(threads)


def _share(score: float | None) -> str:
    return "no" if score is None else f"{score:.1%}"
