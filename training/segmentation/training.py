"""Training of SegFormer: one loop, resumable to the bit, bounded in wall-clock time."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from difiisr_models.diffusion import stream_seed
from difiisr_training.data.images import read_counts
from difiisr_training.detection.samples import as_picture
from difiisr_training.segmentation.iou import IGNORED, Agreement, ConfusionMatrix
from difiisr_training.segmentation.labels import read_labels
from difiisr_training.segmentation.segformer import MULTIPLE, class_logits, segment
from difiisr_training.stop_signal import StopOnSignal

if TYPE_CHECKING:
    from transformers import SegformerForSemanticSegmentation

CHECKPOINT_NAME = "checkpoint.pt"
STATISTICS_NAME = "statistics.jsonl"


@dataclass(frozen=True)
class SegmenterConfig:
    """Settings of a run; the defaults are the paper's: AdamW, 25,000 iterations, batch 8.

    Attributes:
        classes: names, in the order of their labels.
        iterations: optimiser steps.
        batch: crops per step.
        crop: their side in pixels, a multiple of 32.
        lr: learning rate, which falls linearly to zero.
        weight_decay: of AdamW.
        seed: of the first weights and of all crops.
        checkpoint_every: steps between two checkpoints.
    """

    classes: tuple[str, ...]
    iterations: int = 25_000
    batch: int = 8
    crop: int = 512
    lr: float = 6e-5
    weight_decay: float = 0.01
    seed: int = 0
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        if self.crop % MULTIPLE or self.crop <= 0:
            raise ValueError(f"crop must be a multiple of {MULTIPLE}, got {self.crop}")
        if len(self.classes) < 2 or min(self.iterations, self.batch, self.checkpoint_every) < 1:
            raise ValueError("needs two classes, and 1 or more iterations, crops and steps")


def train_segmenter(
    config: SegmenterConfig,
    model: SegformerForSemanticSegmentation,
    pairs: Sequence[tuple[Path, Path]],
    run: Path,
    *,
    device: str = "cpu",
    budget_s: float = math.inf,
) -> int:
    """Train ``model`` in place until the schedule ends, the budget is spent, or Ctrl-C.

    A run folder that holds a checkpoint is continued: crop i, rate i and dropout i depend on i
    alone, so the weights are those of an uninterrupted run.

    Args:
        config: the run.
        model: with the starting weights.
        pairs: image and label map of each frame.
        run: run folder.
        device: where to train.
        budget_s: wall-clock limit.

    Returns:
        The number of iterations done.

    Raises:
        ValueError: the checkpoint belongs to other settings, or an image and its labels differ in
            size.
        FloatingPointError: the loss is not finite any more.
    """
    deadline = time.monotonic() + budget_s
    model.to(device)
    optimiser = torch.optim.AdamW(model.parameters(), config.lr, weight_decay=config.weight_decay)
    iteration = 0
    if (run / CHECKPOINT_NAME).exists():
        iteration = _load_checkpoint(run / CHECKPOINT_NAME, model, optimiser, config)
    run.mkdir(parents=True, exist_ok=True)
    progress = tqdm(total=config.iterations, initial=iteration, desc="segmenter", unit="it")
    with progress, StopOnSignal() as stop:
        while iteration < config.iterations and time.monotonic() < deadline:
            numbers = range(iteration * config.batch, (iteration + 1) * config.batch)
            pictures, labels = draw_batch(pairs, config.crop, config.seed, numbers)
            for group in optimiser.param_groups:
                group["lr"] = config.lr * (1 - iteration / config.iterations)
            torch.manual_seed(stream_seed(config.seed, iteration))  # of dropout
            optimiser.zero_grad(set_to_none=True)
            logits = class_logits(model.train(), pictures.to(device))
            loss = F.cross_entropy(logits, labels.to(device), ignore_index=IGNORED)
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss.item()} at iteration {iteration}; lower the learning "
                    f"rate from {config.lr}, or look for crops without any judged pixel"
                )
            loss.backward()
            optimiser.step()
            iteration += 1
            progress.update()
            progress.set_postfix(loss=f"{loss.item():.3f}")
            with (run / STATISTICS_NAME).open("a", encoding="utf-8") as statistics:
                line = {"iteration": iteration, "loss": loss.item()}
                statistics.write(json.dumps(line) + "\n")
            if iteration % config.checkpoint_every == 0:
                _save_checkpoint(run / CHECKPOINT_NAME, model, optimiser, iteration, config)
            if stop.requested:
                progress.write(f"stopped at iteration {iteration}; --resume goes on")
                break
    _save_checkpoint(run / CHECKPOINT_NAME, model, optimiser, iteration, config)
    return iteration


def validate(
    model: SegformerForSemanticSegmentation,
    pairs: Sequence[tuple[Path, Path]],
    classes: Sequence[str],
    device: str = "cpu",
) -> Agreement:
    """Agreement of a model with the labels of whole images."""
    matrix = ConfusionMatrix(len(classes))
    for image, labels in tqdm(pairs, desc="validation", unit="image"):
        matrix.add(read_labels(labels), segment(model, read_counts(image), device))
    return matrix.agreement(classes)


def draw_batch(
    pairs: Sequence[tuple[Path, Path]], crop: int, seed: int, numbers: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Crops of the given numbers, mirrored at random: a function of the arguments.

    Returns:
        Pictures ``(B, 1, S, S)`` in 0..1 and labels ``(B, S, S)`` int64. Beyond the borders of a
        smaller image the picture is its border, and the labels are :data:`IGNORED`.

    Raises:
        ValueError: an image and its labels differ in size.
    """
    pictures, labels = [], []
    for number in numbers:
        rng = np.random.default_rng([seed, number])
        epoch, place = divmod(number, len(pairs))
        order = np.random.default_rng([seed, epoch, len(pairs)]).permutation(len(pairs))
        image, label = pairs[order[place]]
        picture, classes = as_picture(read_counts(image)), read_labels(label)
        if picture.shape != classes.shape:
            raise ValueError(f"{image} is {picture.shape}, its labels {label} {classes.shape}")
        missing = [(0, max(0, crop - side)) for side in picture.shape]
        picture = np.pad(picture, missing, mode="edge")
        classes = np.pad(classes, missing, constant_values=IGNORED)
        top, left = (int(rng.integers(side - crop + 1)) for side in picture.shape)
        step = -1 if rng.random() < 0.5 else 1
        window = np.s_[top : top + crop, left : left + crop]
        pictures.append(torch.from_numpy(picture[window][:, ::step].copy())[None])
        labels.append(torch.from_numpy(classes[window][:, ::step].astype(np.int64)))
    return torch.stack(pictures), torch.stack(labels)


def _save_checkpoint(
    path: Path,
    model: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    iteration: int,
    config: SegmenterConfig,
) -> None:
    """Write everything to a temporary sibling, then rename: a crash leaves the old file whole."""
    temporary = path.with_suffix(".tmp")
    torch.save(
        {
            "config": json.dumps(dataclasses.asdict(config)),
            "iteration": iteration,
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
        },
        temporary,
    )
    temporary.replace(path)


def _load_checkpoint(
    path: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer, config: SegmenterConfig
) -> int:
    saved = torch.load(path, map_location="cpu", weights_only=True)
    theirs, ours = json.loads(saved["config"]), json.loads(json.dumps(dataclasses.asdict(config)))
    if differing := sorted(key for key in ours if theirs.get(key) != ours[key]):
        raise ValueError(
            f"{path} was trained with other settings for {', '.join(differing)}; use another "
            "folder, or --init to start from its weights"
        )
    model.load_state_dict(saved["model"])
    optimiser.load_state_dict(saved["optimiser"])
    return saved["iteration"]
