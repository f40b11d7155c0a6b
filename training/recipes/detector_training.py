"""Training of the small detector that judges super-resolved frames: samples and schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, MultipleOf
from PIL import Image
from pydantic.dataclasses import dataclass
from torch import Tensor

from difiisr_training.data.annotations import Annotations, Boxes, images_by_name, pair_names
from difiisr_training.data.images import as_picture, read_counts
from difiisr_training.evaluation.detectors import MULTIPLE
from difiisr_training.evaluation.task_scores import average_precision
from difiisr_training.recipes.centre_network import (
    CentreDetector,
    detect,
    detection_loss,
    draw_targets,
)
from difiisr_training.recipes.reader_training import ReaderConfig, shuffled_place, train_reader
from difiisr_training.train import TrainState

_VISIBLE = 0.4  # an object of which less is left after cropping becomes an ignored region
_GRADIENT_NORM = 10.0
_WARMUP = 100

LabelledFrame = tuple[np.ndarray, Boxes]
"""A picture ``(H, W)`` float32 in 0..1 and the objects in it."""


@dataclass(frozen=True, kw_only=True)
class DetectorConfig(ReaderConfig):
    """Settings of a run; the rate warms up over 100 steps.

    Attributes:
        width: channels of the network at half resolution
        crop: side of the samples in pixels, a multiple of 16
        scales: smallest and largest zoom of the samples
        gain: contrast of the samples is multiplied by a factor between 1/gain and gain
        offset: largest shift of their brightness, as a share of white
    """

    iterations: Annotated[int, Ge(1)] = 3000
    lr: Annotated[float, Gt(0), Le(1)] = 2e-3
    weight_decay: Annotated[float, Ge(0), Le(1)] = 1e-4
    ema: Annotated[float, Ge(0), Le(1)] = 0.995
    validate_every: Annotated[int, Ge(1)] = 500
    width: Annotated[int, Ge(1)] = 20
    crop: Annotated[int, Gt(0), MultipleOf(MULTIPLE)] = 288
    scales: tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)]] = (0.75, 1.35)
    gain: Annotated[float, Ge(1)] = 1.3
    offset: Annotated[float, Ge(0)] = 0.1

    def __post_init__(self) -> None:
        if self.scales[0] > self.scales[1]:
            raise ValueError(f"scales: the smallest comes first, got {self.scales}")


def load_frames(folder: Path, annotations: Annotations) -> list[LabelledFrame]:
    """Read the annotated images of a folder, by name; ValueError if it holds none."""
    named = images_by_name(folder)
    boxes = pair_names(list(named), annotations.images)
    if not boxes:
        first = next(iter(annotations.images), "none")
        raise ValueError(f"{folder} holds no annotated image; the annotations name e.g. {first}")
    return [(as_picture(read_counts(named[name])), found) for name, found in boxes.items()]


def fit_detector(
    config: DetectorConfig,
    classes: Sequence[str],
    frames: Sequence[LabelledFrame],
    val_frames: Sequence[LabelledFrame],
    run: Path,
    *,
    initial: CentreDetector | None = None,
    device: str = "auto",
    budget_s: float = math.inf,
) -> tuple[CentreDetector, TrainState]:
    """Train a detector on ``frames``; ``val_frames``, if any, choose its weights.

    A new run starts from the weights of ``initial``. See ``train_reader`` for all else.
    """

    def loss_of(network: CentreDetector, numbers: range) -> Tensor:
        samples = []
        for number in numbers:
            picture, boxes = frames[shuffled_place(len(frames), config.seed, number)]
            rng = np.random.default_rng([config.seed, number])
            picture, boxes = augment(picture, boxes, config, rng)
            targets = draw_targets(boxes, len(classes), picture.shape)
            samples.append((torch.from_numpy(picture)[None], *targets))
        where = next(network.parameters()).device
        images, *stacked = (torch.stack(each).to(where) for each in zip(*samples, strict=True))
        return detection_loss(*network.maps(images), stacked)

    def judge(network: CentreDetector) -> dict[str, float]:
        scores = detector_scores(network, val_frames, classes)
        return {name: scores[name] or 0.0 for name in ("map", "map50")}

    torch.manual_seed(config.seed)
    network = initial or CentreDetector(len(classes), config.width)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stubs
    return train_reader(
        config, classes, network, run, loss_of=loss_of, judge=judge if val_frames else None,
        warmup=_WARMUP, gradient_norm=_GRADIENT_NORM, device=device, budget_s=budget_s,
    )  # fmt: skip


def detector_scores(
    network: CentreDetector, frames: Sequence[LabelledFrame], classes: Sequence[str]
) -> dict[str, Any]:
    """Precision of a network on whole frames; see ``average_precision``."""
    found = [detect(network, picture) for picture, _ in frames]
    return average_precision([boxes for _, boxes in frames], found, classes)


def augment(
    picture: np.ndarray, boxes: Boxes, config: DetectorConfig, rng: np.random.Generator
) -> LabelledFrame:
    """One sample: ``(S, S)`` float32 in 0..1 and its boxes. Outside of the frame there is grey."""
    size, scale = config.crop, np.exp(rng.uniform(*np.log(config.scales)))
    left, top = (rng.uniform(*sorted((0, n - size / scale))) for n in reversed(picture.shape))
    corner = (1 / scale, 0, left, 0, 1 / scale, top)
    sample = np.array(
        Image.fromarray(picture).transform(
            (size, size), Image.Transform.AFFINE, corner, Image.Resampling.BILINEAR, fillcolor=0.5
        )
    )
    gain = np.exp(rng.uniform(-1, 1) * np.log(config.gain))
    shift = rng.uniform(-1, 1) * config.offset
    sample = ((sample - 0.5) * gain + 0.5 + shift).clip(0, 1).astype(np.float32)
    xywh = (boxes.xywh - [left, top, 0, 0]) * scale
    if rng.random() < 0.5:
        sample = np.ascontiguousarray(sample[:, ::-1])
        xywh[:, 0] = size - xywh[:, 0] - xywh[:, 2]

    corner = xywh[:, :2].clip(0, size)
    extent = (xywh[:, :2] + xywh[:, 2:]).clip(0, size) - corner
    kept = extent.prod(axis=1) > 0
    hidden = extent.prod(axis=1) < _VISIBLE * xywh[:, 2:].prod(axis=1)
    xywh = np.concatenate([corner, extent], axis=1)
    return sample, Boxes(xywh[kept], boxes.classes[kept], (boxes.ignored | hidden)[kept])
