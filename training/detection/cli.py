"""``difiisr train-detector``: a small detector for thermal frames, trained and exported as ONNX."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from difiisr_models.backends.selection import resolve_device
from difiisr_training.cli import parse_duration
from difiisr_training.detection.annotations import read_annotations
from difiisr_training.detection.onnx_detector import export_detector
from difiisr_training.detection.samples import Augmentation, load_frames
from difiisr_training.detection.training import (
    CHECKPOINT_NAME,
    DetectorConfig,
    train_detector,
    validate,
)

ONNX_NAME, WEIGHTS_NAME, CONFIG_NAME = "detector.onnx", "detector.safetensors", "config.json"


def main(argv: Sequence[str]) -> int:
    """Train a detector and export it; returns the exit code."""
    options = _parser().parse_args(list(argv))
    if (options.val_data is None) != (options.val_annotations is None):
        raise ValueError("--val-data and --val-annotations go together")
    if (options.out / CHECKPOINT_NAME).exists() and not options.resume:
        raise ValueError(f"{options.out} holds a run: --resume goes on with it, or choose another")
    if options.threads:
        torch.set_num_threads(options.threads)
    truth = read_annotations(options.annotations)
    frames = load_frames(options.data, truth)
    val_frames = []
    if options.val_data:
        val_truth = read_annotations(options.val_annotations)
        if val_truth.classes != truth.classes:
            raise ValueError(
                f"{options.val_annotations} has the classes {', '.join(val_truth.classes)}, "
                f"{options.annotations} has {', '.join(truth.classes)}"
            )
        val_frames = load_frames(options.val_data, val_truth)
    config = DetectorConfig(
        classes=truth.classes,
        width=options.width,
        iterations=options.iterations,
        batch=options.batch,
        optimiser=options.optimiser,
        lr=options.lr,
        seed=options.seed,
        validate_every=options.validate_every,
        augmentation=Augmentation(size=options.crop, blur=options.blur),
    )
    state = train_detector(
        config,
        frames,
        val_frames,
        options.out,
        initial=load_file(options.init) if options.init else None,
        device=str(resolve_device(options.device)),
        budget_s=options.budget,
    )
    network = state.result().cpu()
    save_file(
        {name: value.contiguous() for name, value in network.state_dict().items()},
        options.out / WEIGHTS_NAME,
    )
    text = json.dumps(dataclasses.asdict(config), indent=2)
    (options.out / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
    path = export_detector(network, config.classes, options.out / ONNX_NAME)
    print(f"{path}: {state.iteration} of {config.iterations} iterations on {len(frames)} frames")
    if val_frames:
        judged = validate(network, val_frames, config.classes, "cpu")
        print(f"validation, {judged.images} frames: {_percent(judged.map)} mAP@.5:.95, ", end="")
        print(f"{_percent(judged.map50)} mAP@.5")
    return 0


def _percent(value: float | None) -> str:
    return "no" if value is None else f"{100 * value:.1f} %"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="difiisr train-detector",
        description="Train a small object detector on high-resolution thermal frames and export it "
        "as ONNX; difiisr evaluate lets it judge the frames of every model.",
    )
    parser.add_argument("data", type=Path, help="folder of images")
    parser.add_argument(
        "--annotations",
        type=Path,
        required=True,
        help="their boxes: COCO or HIT-UAV JSON, or a folder of Pascal VOC",
    )
    parser.add_argument("--val-data", type=Path, help="images that choose the best weights")
    parser.add_argument("--val-annotations", type=Path, help="their boxes")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--init", type=Path, help="start from these weights (.safetensors)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument(
        "--budget", type=parse_duration, default=math.inf, help="wall-clock limit, e.g. 20m or 2h"
    )
    parser.add_argument("--iterations", type=int, default=3000, help="steps (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="crops per step (%(default)s)")
    parser.add_argument("--crop", type=int, default=288, help="their side in pixels (%(default)s)")
    parser.add_argument("--width", type=int, default=20, help="of the network (%(default)s)")
    parser.add_argument("--optimiser", choices=("adamw", "sgd"), default="adamw")
    parser.add_argument(
        "--lr", type=float, default=2e-3, help="learning rate (%(default)s; the paper: sgd, 0.01)"
    )
    parser.add_argument(
        "--blur",
        type=float,
        default=0.0,
        help="share of blurred samples: a judge that forgives blur (%(default)s: HR as it is)",
    )
    parser.add_argument("--validate-every", type=int, default=500, help="steps (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N (%(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU (0: all)")
    return parser
