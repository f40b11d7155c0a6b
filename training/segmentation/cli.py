"""``difiisr train-segmenter``: SegFormer on thermal frames with label maps."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from difiisr_models.backends.selection import resolve_device
from difiisr_training.cli import parse_duration
from difiisr_training.segmentation.labels import pair_with_labels
from difiisr_training.segmentation.segformer import build_segformer, load_segformer
from difiisr_training.segmentation.training import (
    CHECKPOINT_NAME,
    SegmenterConfig,
    train_segmenter,
    validate,
)


def main(argv: Sequence[str]) -> int:
    """Train a segmenter and save it as a ``transformers`` folder; returns the exit code."""
    options = _parser().parse_args(list(argv))
    if (options.val_data is None) != (options.val_labels is None):
        raise ValueError("--val-data and --val-labels go together")
    if (options.out / CHECKPOINT_NAME).exists() and not options.resume:
        raise ValueError(f"{options.out} holds a run: --resume goes on with it, or choose another")
    if options.threads:
        torch.set_num_threads(options.threads)
    config = SegmenterConfig(
        classes=tuple(name.strip() for name in options.classes.split(",")),
        iterations=options.iterations,
        batch=options.batch,
        crop=options.crop,
        lr=options.lr,
        weight_decay=options.weight_decay,
        seed=options.seed,
    )
    torch.manual_seed(config.seed)
    model = (
        load_segformer(options.init, config.classes)
        if options.init
        else build_segformer(config.classes)
    )
    pairs = pair_with_labels(options.data, options.labels)
    device = str(resolve_device(options.device))
    done = train_segmenter(
        config, model, pairs, options.out, device=device, budget_s=options.budget
    )
    model.eval().save_pretrained(options.out)
    print(f"{options.out}: {done} of {config.iterations} iterations on {len(pairs)} images")
    if options.val_data:
        val_pairs = pair_with_labels(options.val_data, options.val_labels)
        judged = validate(model, val_pairs, config.classes, device)
        mean = "no" if judged.miou is None else f"{100 * judged.miou:.1f} %"
        print(f"validation, {judged.images} images: {mean} mIoU")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="difiisr train-segmenter",
        description="Train SegFormer-b1 on thermal frames with label maps; the defaults are the "
        "settings of the paper.",
    )
    parser.add_argument("data", type=Path, help="folder of images (FMB: train/Infrared)")
    parser.add_argument(
        "--labels", type=Path, required=True, help="folder of their label maps (FMB: train/Label)"
    )
    parser.add_argument(
        "--classes", required=True, help="names in the order of the labels 0, 1, .., with commas"
    )
    parser.add_argument("--val-data", type=Path, help="images to judge the result on")
    parser.add_argument("--val-labels", type=Path, help="their label maps")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument(
        "--init", type=Path, help="local SegFormer folder to start from (default: random weights)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument(
        "--budget", type=parse_duration, default=math.inf, help="wall-clock limit, e.g. 20m or 8h"
    )
    parser.add_argument("--iterations", type=int, default=25_000, help="steps (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="crops per step (%(default)s)")
    parser.add_argument("--crop", type=int, default=512, help="their side in pixels (%(default)s)")
    parser.add_argument("--lr", type=float, default=6e-5, help="of AdamW (%(default)s)")
    parser.add_argument("--weight-decay", type=float, default=0.01, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N (%(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU (0: all)")
    return parser
