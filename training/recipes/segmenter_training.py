"""Fine-tuning of SegFormer, the segmenter that judges super-resolved frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le, MultipleOf
from pydantic.dataclasses import dataclass
from torch import Tensor

from difiisr_training.data.annotations import IGNORED, read_labels
from difiisr_training.data.images import as_picture, read_counts
from difiisr_training.evaluation.segformer import INPUT_MULTIPLE, class_logits, class_names
from difiisr_training.recipes.reader_training import ReaderConfig, shuffled_place, train_reader
from difiisr_training.train import TrainState

if TYPE_CHECKING:
    from transformers import SegformerForSemanticSegmentation


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig(ReaderConfig):
    """Settings of a run; the defaults are the paper's: AdamW, 25,000 iterations, batch 8.

    Attributes:
        crop: side of the samples in pixels, a multiple of 32
    """

    iterations: Annotated[int, Ge(1)] = 25_000
    lr: Annotated[float, Gt(0), Le(1)] = 6e-5
    weight_decay: Annotated[float, Ge(0), Le(1)] = 0.01
    ema: Annotated[float, Ge(0), Le(1)] = 0.0
    validate_every: Annotated[int, Ge(1)] = 1000
    crop: Annotated[int, Gt(0), MultipleOf(INPUT_MULTIPLE)] = 512


def fit_segmenter(
    config: SegmenterConfig,
    model: SegformerForSemanticSegmentation,
    pairs: Sequence[tuple[Path, Path]],
    run: Path,
    *,
    device: str = "auto",
    budget_s: float = math.inf,
) -> tuple[SegformerForSemanticSegmentation, TrainState]:
    """Train ``model`` on pairs of image and label map; see ``train_reader``."""

    def loss_of(network: SegformerForSemanticSegmentation, numbers: range) -> Tensor:
        pictures, labels = draw_crops(pairs, config.crop, config.seed, numbers)
        logits = class_logits(network, pictures.to(network.device))
        return F.cross_entropy(logits, labels.to(network.device), ignore_index=IGNORED)

    return train_reader(
        config, class_names(model), model, run, loss_of=loss_of, device=device, budget_s=budget_s
    )


def draw_crops(
    pairs: Sequence[tuple[Path, Path]], crop: int, seed: int, numbers: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Samples of the given numbers, mirrored or not; a function of the arguments.

    Returns:
        Pictures ``(B, 1, S, S)`` in 0..1 and labels ``(B, S, S)`` int64. Beyond the borders of a
        smaller image the picture is its border, and the labels are 255, which nobody judges.
    """
    pictures, labels = [], []
    for number in numbers:
        rng = np.random.default_rng([seed, number])
        image, label = pairs[shuffled_place(len(pairs), seed, number)]
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
