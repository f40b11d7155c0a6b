"""Training of the detector: one loop, resumable to the bit, bounded in wall-clock time."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from difiisr_training.detection.average_precision import Precision, average_precision
from difiisr_training.detection.network import MULTIPLE, CentreDetector, PeakScores
from difiisr_training.detection.peaks import Detections, decode_peaks
from difiisr_training.detection.samples import Augmentation, LabelledFrame, draw_batch
from difiisr_training.detection.targets import detection_loss
from difiisr_training.stop_signal import StopOnSignal

CHECKPOINT_NAME = "checkpoint.pt"
STATISTICS_NAME = "statistics.jsonl"


@dataclass(frozen=True)
class DetectorConfig:
    """Settings of a run.

    Attributes:
        classes: names, in the order of the detector's outputs.
        width: channels of the network at half resolution.
        iterations: optimiser steps of the whole schedule.
        batch: samples per step.
        optimiser: ``"adamw"``, or ``"sgd"`` with momentum 0.9.
        lr: largest learning rate; it warms up over 100 steps and falls in a cosine to zero.
        weight_decay: of the optimiser.
        ema: memory of the moving average that is judged and exported.
        seed: of the first weights and of all samples.
        validate_every: steps between two checkpoints, and judgements on the validation frames.
        augmentation: of the samples.
    """

    classes: tuple[str, ...]
    width: int = 20
    iterations: int = 3000
    batch: int = 8
    optimiser: str = "adamw"
    lr: float = 2e-3
    weight_decay: float = 1e-4
    ema: float = 0.995
    seed: int = 0
    validate_every: int = 500
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        if self.optimiser not in ("adamw", "sgd"):
            raise ValueError(f"optimiser must be adamw or sgd, got {self.optimiser}")
        if not self.classes or min(self.iterations, self.batch, self.validate_every) < 1:
            raise ValueError("needs a class, and 1 or more iterations, samples and steps")


@dataclass
class TrainState:
    """Everything that a resumed run needs.

    Attributes:
        network: what is trained.
        ema: its moving average.
        optimiser: with its moments.
        iteration: steps done.
        best: the averaged weights that did best on the validation frames; ``None`` before any.
        best_map: their mAP@.5:.95.
    """

    network: CentreDetector
    ema: CentreDetector
    optimiser: torch.optim.Optimizer
    iteration: int = 0
    best: dict[str, torch.Tensor] | None = None
    best_map: float = -1.0

    def result(self) -> CentreDetector:
        """The network to export: the best one on validation, without validation the last."""
        if self.best is not None:
            self.ema.load_state_dict(self.best)
        return self.ema.eval()


def train_detector(
    config: DetectorConfig,
    frames: Sequence[LabelledFrame],
    val_frames: Sequence[LabelledFrame],
    run: Path,
    *,
    initial: dict[str, torch.Tensor] | None = None,
    device: str = "cpu",
    budget_s: float = math.inf,
) -> TrainState:
    """Train until the schedule ends, ``budget_s`` seconds are spent, or Ctrl-C; always saves.

    A run folder that holds a checkpoint is continued: sample i and rate i depend on i alone, so
    the weights are those of an uninterrupted run.

    Args:
        config: the run.
        frames: what is trained on.
        val_frames: what chooses the exported weights; may be empty.
        run: run folder.
        initial: weights that a new run starts from.
        device: where to train.
        budget_s: wall-clock limit.

    Raises:
        ValueError: the checkpoint belongs to other settings.
        FloatingPointError: the loss is not finite any more.
    """
    deadline = time.monotonic() + budget_s
    state = _initial_state(config, initial, device)
    if (run / CHECKPOINT_NAME).exists():
        _load_checkpoint(run / CHECKPOINT_NAME, state, config)
    run.mkdir(parents=True, exist_ok=True)
    progress = tqdm(total=config.iterations, initial=state.iteration, desc="detector", unit="it")
    with progress, StopOnSignal() as stop:
        while state.iteration < config.iterations and time.monotonic() < deadline:
            loss = _step(config, state, frames, device)
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss} at iteration {state.iteration}; lower the learning "
                    f"rate from {config.lr}"
                )
            line = {"iteration": state.iteration, "loss": loss}
            progress.update()
            progress.set_postfix(loss=f"{loss:.3f}", best=f"{max(state.best_map, 0):.3f}")
            if state.iteration % config.validate_every == 0 or state.iteration == config.iterations:
                if val_frames:
                    line |= _judge(state, val_frames, config.classes, device)
                _save_checkpoint(run / CHECKPOINT_NAME, state, config)
            with (run / STATISTICS_NAME).open("a", encoding="utf-8") as statistics:
                statistics.write(json.dumps(line) + "\n")
            if stop.requested:
                progress.write(f"stopped at iteration {state.iteration}; --resume goes on")
                break
    _save_checkpoint(run / CHECKPOINT_NAME, state, config)
    return state


def _judge(
    state: TrainState, frames: Sequence[LabelledFrame], classes: Sequence[str], device: str
) -> dict[str, float | None]:
    """What the average finds in the validation frames; the best weights so far are kept."""
    judged = validate(state.ema, frames, classes, device)
    if judged.map is not None and judged.map > state.best_map:
        state.best_map = judged.map
        state.best = {k: v.clone() for k, v in state.ema.state_dict().items()}
    return {"map": judged.map, "map50": judged.map50}


def validate(
    network: CentreDetector, frames: Sequence[LabelledFrame], classes: Sequence[str], device: str
) -> Precision:
    """Average precision of a network on whole frames."""
    found = [detect(network, frame.picture, device) for frame in frames]
    return average_precision([frame.boxes for frame in frames], found, classes)


@torch.no_grad()
def detect(network: CentreDetector, picture: np.ndarray, device: str = "cpu") -> Detections:
    """Objects in a picture ``(H, W)`` float32 in 0..1 of any size."""
    padded = torch.from_numpy(pad_to_multiple(picture))[None, None].to(device)
    scores, sides = PeakScores(network.eval())(padded)
    return decode_peaks(scores[0].cpu().numpy(), sides[0].cpu().numpy(), picture.shape)


def pad_to_multiple(picture: np.ndarray) -> np.ndarray:
    """Repeat the right and lower border until both sides are multiples of 16."""
    return np.pad(picture, [(0, -side % MULTIPLE) for side in picture.shape], mode="edge")


def learning_rate(iteration: int, config: DetectorConfig) -> float:
    """Linear warm-up over 100 steps, then a cosine from ``lr`` to zero."""
    warm = min(1.0, (iteration + 1) / 100)
    return config.lr * warm * 0.5 * (1 + math.cos(math.pi * iteration / config.iterations))


def _step(
    config: DetectorConfig, state: TrainState, frames: Sequence[LabelledFrame], device: str
) -> float:
    numbers = range(state.iteration * config.batch, (state.iteration + 1) * config.batch)
    images, targets = draw_batch(
        frames, len(config.classes), config.augmentation, config.seed, numbers
    )
    images = images.to(device, memory_format=torch.channels_last)
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(state.iteration, config)
    state.optimiser.zero_grad(set_to_none=True)
    logits, sides = state.network.train()(images)
    loss = detection_loss(logits, sides, targets.to(device))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), 10.0)
    state.optimiser.step()
    state.iteration += 1
    _update_average(state, config.ema)
    return loss.item()


@torch.no_grad()
def _update_average(state: TrainState, decay: float) -> None:
    """ema <- decay ema + (1 - decay) network, buffers included; a shorter memory at first."""
    decay = min(decay, (1 + state.iteration) / (10 + state.iteration))
    ours, theirs = state.ema.state_dict(), state.network.state_dict()
    for name, average in ours.items():
        if average.is_floating_point():
            average.lerp_(theirs[name], 1 - decay)
        else:
            average.copy_(theirs[name])


def _initial_state(
    config: DetectorConfig, initial: dict[str, torch.Tensor] | None, device: str
) -> TrainState:
    torch.manual_seed(config.seed)
    network, ema = (CentreDetector(len(config.classes), config.width) for _ in range(2))
    if initial is not None:
        network.load_state_dict(initial)
    ema.load_state_dict(network.state_dict())
    network, ema = (n.to(device, memory_format=torch.channels_last) for n in (network, ema))
    if config.optimiser == "sgd":
        optimiser = torch.optim.SGD(
            network.parameters(), config.lr, momentum=0.9, weight_decay=config.weight_decay
        )
    else:
        optimiser = torch.optim.AdamW(
            network.parameters(), config.lr, weight_decay=config.weight_decay
        )
    return TrainState(network, ema.requires_grad_(False), optimiser)


def _save_checkpoint(path: Path, state: TrainState, config: DetectorConfig) -> None:
    """Write everything to a temporary sibling, then rename: a crash leaves the old file whole."""
    temporary = path.with_suffix(".tmp")
    torch.save(
        {
            "config": json.dumps(dataclasses.asdict(config)),
            "iteration": state.iteration,
            "network": state.network.state_dict(),
            "ema": state.ema.state_dict(),
            "optimiser": state.optimiser.state_dict(),
            "best": state.best,
            "best_map": state.best_map,
        },
        temporary,
    )
    temporary.replace(path)


def _load_checkpoint(path: Path, state: TrainState, config: DetectorConfig) -> None:
    saved = torch.load(path, map_location="cpu", weights_only=True)
    theirs, ours = json.loads(saved["config"]), json.loads(json.dumps(dataclasses.asdict(config)))
    if differing := sorted(key for key in ours if theirs.get(key) != ours[key]):
        raise ValueError(
            f"{path} was trained with other settings for {', '.join(differing)}; use another "
            "folder, or --init to start from its weights"
        )
    state.network.load_state_dict(saved["network"])
    state.ema.load_state_dict(saved["ema"])
    state.optimiser.load_state_dict(saved["optimiser"])
    state.iteration, state.best = saved["iteration"], saved["best"]
    state.best_map = saved["best_map"]
