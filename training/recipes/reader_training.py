"""Training of what reads super-resolved frames, in the loop that all networks are trained in.

A small detector of our own and SegFormer. Their samples are functions of their numbers alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from annotated_types import Ge, Gt, Le, MultipleOf
from PIL import Image
from pydantic.dataclasses import dataclass
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from difiisr_models.diffusion import stream_seed
from difiisr_models.files import replaced
from difiisr_training.checkpoints import CHECKPOINT_NAME, VALIDATION_NAME, read_journal
from difiisr_training.config import OptimiserConfig, RunConfig
from difiisr_training.data.annotations import (
    IGNORED,
    Annotations,
    Boxes,
    images_by_name,
    pair_names,
    read_labels,
)
from difiisr_training.data.images import Share, as_picture, read_counts
from difiisr_training.evaluation import readers
from difiisr_training.evaluation.task_scores import average_precision
from difiisr_training.recipes.centre_network import (
    CentreDetector,
    detect,
    detection_loss,
    draw_targets,
)
from difiisr_training.train import TrainingTask, TrainState, train

if TYPE_CHECKING:
    from transformers import SegformerForSemanticSegmentation

BEST_NAME = "best.safetensors"
"""Weights of a run that did best on the validation frames so far."""

LabelledFrame = tuple[np.ndarray, Boxes]
"""A picture ``(H, W)`` float32 in 0..1 and the objects in it."""

_VISIBLE = 0.4  # an object of which less is left after cropping becomes an ignored region

Rate = Annotated[float, Gt(0), Le(1)]
Steps = Annotated[int, Ge(1)]


@dataclass(frozen=True, kw_only=True)
class ReaderConfig:
    """Settings that both readers have; the rate falls in a cosine to zero.

    Attributes:
        iterations: optimiser steps of the whole schedule
        batch: crops per step
        lr: largest learning rate
        weight_decay: of the optimiser
        ema: memory of the moving average that is judged and kept; 0: the weights themselves
        seed: of the first weights and of all samples
        validate_every: steps between two checkpoints, and judgements on the validation frames
    """

    warmup: ClassVar[int] = 0  # iterations in which the rate rises
    gradient_norm: ClassVar[float | None] = None  # longer gradients are cut to it
    iterations: Steps
    batch: Steps = 8
    lr: Rate
    weight_decay: Share
    ema: Share
    seed: Annotated[int, Ge(0)] = 0
    validate_every: Steps


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

    warmup: ClassVar[int] = 100
    gradient_norm: ClassVar[float | None] = 10.0
    iterations: Steps = 3000
    lr: Rate = 2e-3
    weight_decay: Share = 1e-4
    ema: Share = 0.995
    validate_every: Steps = 500
    width: Steps = 20
    crop: Annotated[int, Gt(0), MultipleOf(readers.MULTIPLE)] = 288
    scales: tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)]] = (0.75, 1.35)
    gain: Annotated[float, Ge(1)] = 1.3
    offset: Annotated[float, Ge(0)] = 0.1

    def __post_init__(self) -> None:
        if self.scales[0] > self.scales[1]:
            raise ValueError(f"scales: the smallest comes first, got {self.scales}")


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig(ReaderConfig):
    """Settings of a run; the defaults are the paper's: AdamW, 25,000 iterations, batch 8.

    Attributes:
        crop: side of the samples in pixels, a multiple of 32
    """

    iterations: Steps = 25_000
    lr: Rate = 6e-5
    weight_decay: Share = 0.01
    ema: Share = 0.0
    validate_every: Steps = 1000
    crop: Annotated[int, Gt(0), MultipleOf(readers.INPUT_MULTIPLE)] = 512


@dataclass(frozen=True, kw_only=True)
class _ReaderRun(RunConfig):
    """A run as its checkpoint knows it."""

    iterations: int
    classes: tuple[str, ...]
    settings: dict[str, Any]


class _ReaderLoss(nn.Module):
    def __init__(self, network: nn.Module, loss_of: Callable[[Any, range], Tensor]) -> None:
        super().__init__()
        self.network, self._loss_of = network.train(), loss_of

    def forward(self, numbers: range, seed: int) -> Tensor:
        torch.manual_seed(seed)  # of dropout
        return self._loss_of(self.network, numbers)


def train_reader(
    config: ReaderConfig,
    classes: Sequence[str],
    network: nn.Module,
    run: Path,
    *,
    loss_of: Callable[[Any, range], Tensor],
    judge: Callable[[Any], dict[str, float]] | None = None,
    device: str = "auto",
    budget_s: float = math.inf,
) -> tuple[Any, TrainState]:
    """Train as ``train.train`` does; the average, the best on validation if any, and the state.

    Args:
        config: the run.
        classes: names, in the order of the outputs.
        network: with its first weights; it is left as it is.
        run: folder of the run.
        loss_of: the loss of a network on the samples of these numbers.
        judge: scores of the average on validation frames; the first one chooses the best weights.
        device: "auto" or "cpu".
        budget_s: wall-clock limit.
    """
    optimiser = OptimiserConfig(
        lr=config.lr, final_lr_share=0, warmup=config.warmup, weight_decay=config.weight_decay,
        ema=config.ema, grad_clip=config.gradient_norm,
    )  # fmt: skip
    described = _ReaderRun(
        name="reader", optimiser=optimiser, seed=config.seed, iterations=config.iterations,
        checkpoint_every=config.validate_every, validate_every=config.validate_every, log_every=1,
        classes=tuple(classes), settings=asdict(config),
    )  # fmt: skip

    best = run / BEST_NAME
    if not (run / CHECKPOINT_NAME).is_file():
        best.unlink(missing_ok=True)  # of another run

    def inputs(first: int) -> Iterator[tuple[range, int]]:
        for iteration in range(first, config.iterations):
            start = iteration * config.batch
            yield range(start, start + config.batch), stream_seed(config.seed, iteration)

    def validate(average: nn.Module, _: int) -> dict[str, float]:
        assert judge is not None, "only then is anything validated"
        scores = judge(average)
        name, score = next(iter(scores.items()))
        before = read_journal(run, VALIDATION_NAME) if best.is_file() else []
        if all(score > line[name] for line in before):
            with replaced(best) as beside:
                save_file({k: v.contiguous() for k, v in average.state_dict().items()}, beside)
        return scores

    task = TrainingTask(lambda: copy.deepcopy(network), lambda of: _ReaderLoss(of, loss_of), inputs)
    accelerator = Accelerator(cpu=device == "cpu" or not torch.cuda.is_available())
    state = train(
        described, task, run, accelerator, validate=validate if judge else None, budget_s=budget_s
    )
    if best.is_file():
        state.ema.load_state_dict(load_file(best))
    return state.ema.eval(), state


def shuffled_place(count: int, seed: int, number: int) -> int:
    """Which of ``count`` frames sample ``number`` shows: all once an epoch, in another order."""
    epoch, place = divmod(number, count)
    return int(np.random.default_rng([seed, epoch, count]).permutation(count)[place])


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
        device=device, budget_s=budget_s,
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
        logits = readers.class_logits(network, pictures.to(network.device))
        return F.cross_entropy(logits, labels.to(network.device), ignore_index=IGNORED)

    classes = readers.class_names(model)
    return train_reader(
        config, classes, model, run, loss_of=loss_of, device=device, budget_s=budget_s
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
