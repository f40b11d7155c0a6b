"""``difiisr train-segmenter``: SegFormer on thermal frames with label maps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import Parameter

from difiisr_models.backends.selection import resolve_device
from difiisr_ros.commands.arguments import Duration, Threads, check_run
from difiisr_training.data.annotations import pair_with_labels
from difiisr_training.evaluation import segformer
from difiisr_training.recipes.segmenter_training import (
    SegmenterConfig,
    fit_segmenter,
    segmenter_scores,
)


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
    check_run(out, resume)
    if threads:
        torch.set_num_threads(threads)
    pairs = pair_with_labels(data, labels)
    torch.manual_seed(config.seed)
    model = segformer.load_segformer(init, names) if init else segformer.build_segformer(names)
    model.to(resolve_device(device))
    model, iteration = fit_segmenter(config, model, pairs, out, budget_s=budget)
    model.save_pretrained(out)
    print(f"{out}: {iteration} of {config.iterations} iterations on {len(pairs)} images")
    if val_data and val_labels:
        val_pairs = pair_with_labels(val_data, val_labels)
        miou = segmenter_scores(model, val_pairs, names)["miou"]
        mean = "no" if miou is None else f"{miou:.1%}"
        print(f"validation, {len(val_pairs)} images: {mean} mIoU")
