"""The training loop: one function to read, resumable to the bit, bounded in wall-clock time.

Runs on one device or, under `torchrun` or `accelerate launch`, on many: every process takes its
slice of each batch, so the gradient is that of one process with the whole batch.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from difiisr_models.diffusion import stream_seed
from difiisr_models.schedule import exponential_schedule
from difiisr_training.config import OptimiserConfig, TrainConfig, as_dict, from_dict
from difiisr_training.data.crops import open_crops
from difiisr_training.journal import STATISTICS_NAME, VALIDATION_NAME, Journal
from difiisr_training.networks import build_network, read_checkpoint, start_from
from difiisr_training.objectives import Batch, Objective, diffusion_loss, distillation_loss
from difiisr_training.stop_signal import StopOnSignal

CHECKPOINT_NAME = "checkpoint.pt"

Validate = Callable[[nn.Module, int], dict[str, float]]
"""Scores the moving average at an iteration; draws no random number of the training."""


@dataclass
class TrainState:
    """Everything that a resumed run needs, and whether a signal ended this part of it."""

    network: nn.Module
    ema: nn.Module
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None = None
    iteration: int = 0
    interrupted: bool = False


class TrainingLoss(nn.Module):
    """The network under its objective: what data-parallel training wraps and calls."""

    def __init__(self, network: nn.Module, teacher: nn.Module | None, objective: Objective) -> None:
        """``teacher``: for distillation; it is not trained and not saved."""
        super().__init__()
        self.network = network
        self._teacher = (teacher,)  # a tuple hides it from parameters() and state_dict()
        self._objective = objective

    def forward(
        self, lr: Tensor, hr: Tensor, clean: Tensor, index: Tensor, eps: Tensor, guided: bool
    ) -> Tensor:
        """Loss of one batch of images; ``index`` and ``eps`` as in :func:`diffusion_loss`."""
        # The precision is the network's: y, which it adds to, and x_0 keep all their bits.
        with torch.autocast(lr.device.type, enabled=False):
            batch = Batch.of(lr, hr, clean, self._objective.space)
        (teacher,) = self._teacher
        if teacher is None:
            return diffusion_loss(self.network, batch, index, eps, self._objective, guided)
        return distillation_loss(self.network, teacher, batch, eps, self._objective, guided)


def train(
    config: TrainConfig,
    objective: Objective,
    data: Path,
    run: Path,
    *,
    accelerator: Accelerator,
    teacher: nn.Module | None = None,
    initial: nn.Module | None = None,
    validate: Validate | None = None,
    tensorboard: bool = False,
    budget_s: float = math.inf,
    workers: int = 0,
) -> TrainState:
    """Train until the schedule ends, ``budget_s`` seconds are spent, or Ctrl-C; always saves.

    A run folder that holds a checkpoint is continued: sample i, noise i and rate i depend on i
    alone, so the weights are those of an uninterrupted run.

    Args:
        config: the run.
        objective: what is minimised, see :func:`difiisr_training.networks.build_objective`.
        data: folder that the sources lie in.
        run: run folder.
        accelerator: device, precision and processes.
        teacher: the frozen network to distil.
        initial: network whose weights a new run starts from, see
            :func:`difiisr_training.networks.start_from`.
        validate: called every ``validate_every`` iterations and at the end of the schedule.
        tensorboard: write event files too.
        budget_s: wall-clock limit of this call; it ends after the iteration in which it is spent.
        workers: processes that load samples, per training process.

    Raises:
        ValueError: the checkpoint belongs to other settings, the batch cannot be shared equally, or
            a teacher is given or missing against ``config.stage``.
        FloatingPointError: the loss or the weights are not finite any more; they are not saved.
    """
    if (config.stage == "distillation") != (teacher is not None):
        raise ValueError(f"stage {config.stage!r} {'has no' if teacher else 'needs a'} teacher")
    deadline = time.monotonic() + budget_s
    state = _initial_state(config, initial)
    state.scaler = accelerator.scaler
    if (run / CHECKPOINT_NAME).exists():
        load_checkpoint(run / CHECKPOINT_NAME, state, config)
    elif accelerator.is_main_process:
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.json").write_text(json.dumps(as_dict(config), indent=2) + "\n")
    state.ema.to(accelerator.device)
    loss_module = TrainingLoss(state.network, teacher, objective)
    loss_module, state.optimiser = accelerator.prepare(loss_module, state.optimiser)
    batches = _batches(config, data, state.iteration, workers, accelerator)
    progress = tqdm(
        total=config.iterations, initial=state.iteration, desc=config.name, unit="it",
        disable=not accelerator.is_main_process,
    )  # fmt: skip
    journal = Journal(run, tensorboard) if accelerator.is_main_process else None
    losses, waited, started = [], 0.0, time.monotonic()
    with progress, StopOnSignal() as stop:
        asked = time.monotonic()
        for lr, hr, clean in batches:
            waited += time.monotonic() - asked
            rate = learning_rate(state.iteration, config.optimiser, config.iterations)
            images = [x.to(accelerator.device, non_blocking=True) for x in (lr, hr, clean)]
            losses.append(training_step(state, loss_module, images, rate, config, accelerator))
            state.iteration += 1
            progress.update()
            if state.iteration % config.log_every == 0:
                loss = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
                if not math.isfinite(loss):
                    raise _diverged(f"the loss is {loss}", state, run)
                elapsed = time.monotonic() - started
                if journal:
                    speed = {"it_per_s": len(losses) / elapsed, "data_wait": waited / elapsed}
                    values = {"loss": loss, "lr": rate, **speed}
                    journal.write(STATISTICS_NAME, state.iteration, values)
                progress.set_postfix(loss=f"{loss:.4f}")
                losses, waited, started = [], 0.0, time.monotonic()
            if state.iteration % config.checkpoint_every == 0:
                _save(run, state, config, accelerator)
            if journal and validate and _validates_at(state.iteration, config):
                journal.write(
                    VALIDATION_NAME, state.iteration, validate(state.ema, state.iteration)
                )
            if _any_process(stop.requested or time.monotonic() > deadline, accelerator):
                break
            asked = time.monotonic()
    _save(run, state, config, accelerator)
    state.interrupted = stop.requested
    accelerator.wait_for_everyone()
    return state


def training_step(
    state: TrainState,
    loss_module: nn.Module,
    images: list[Tensor],
    rate: float,
    config: TrainConfig,
    accelerator: Accelerator,
) -> Tensor:
    """One optimiser step on one batch ``[lr, hr, clean]``; returns the detached loss.

    Of the steps t a share ``last_step_share`` is t = T, the one that one-step sampling uses.
    """
    size = tuple(images[1].shape[-2:])
    index, eps = draw_steps_and_noise(config, state.iteration, size, accelerator.device)
    own = _own_slice(config.batch, accelerator)
    index, eps = index[own], eps[own]
    guided = config.guidance.kind != "none" and state.iteration >= config.guidance.start_iteration
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    state.optimiser.zero_grad(set_to_none=True)
    with accelerator.autocast():
        loss = loss_module(*images, index, eps, guided)
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(state.network.parameters(), config.optimiser.grad_clip)
    state.optimiser.step()
    update_ema(state.ema, state.network, config.optimiser.ema, state.iteration)
    return loss.detach()


def draw_steps_and_noise(
    config: TrainConfig, iteration: int, hr_size: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """t - 1 ``(B,)`` and eps ``(B, C, h, w)`` of the whole batch: a function of the iteration.

    Drawn where they are used (a CPU takes longer for the noise than a GPU for the whole step), so
    that a GPU's draws are not a CPU's.
    """
    rng = torch.Generator(device).manual_seed(stream_seed(config.seed, iteration))
    steps, where = exponential_schedule().steps, {"generator": rng, "device": device}
    index = torch.randint(steps, (config.batch,), **where)
    last = torch.rand(config.batch, **where) < config.last_step_share
    channels, shrink = (16, 4) if config.published is None else (3, 4)
    size = (config.batch, channels, *(side // shrink for side in hr_size))
    return torch.where(last, steps - 1, index), torch.randn(size, **where)


def learning_rate(iteration: int, config: OptimiserConfig, iterations: int) -> float:
    """Linear warm-up, then a cosine from ``lr`` to ``final_lr_share * lr``."""
    warm = min(1.0, (iteration + 1) / max(1, config.warmup))
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, iteration / iterations)))
    return config.lr * warm * (config.final_lr_share + (1 - config.final_lr_share) * cosine)


@torch.no_grad()
def update_ema(ema: nn.Module, network: nn.Module, decay: float, iteration: int) -> None:
    """ema <- decay ema + (1 - decay) network, with a shorter memory in the first iterations."""
    decay = min(decay, (1 + iteration) / (10 + iteration))
    for average, value in zip(ema.parameters(), network.parameters(), strict=True):
        average.lerp_(value, 1 - decay)


def save_checkpoint(path: Path, state: TrainState, config: TrainConfig) -> None:
    """Write everything to a temporary sibling, then rename: a crash leaves the old file whole."""
    temporary = path.with_suffix(".tmp")
    torch.save(
        {
            "config": as_dict(config),
            "iteration": state.iteration,
            "network": state.network.state_dict(),
            "ema": state.ema.state_dict(),
            "optimiser": state.optimiser.state_dict(),
            "scaler": state.scaler.state_dict() if state.scaler else None,
        },
        temporary,
    )
    temporary.replace(path)


def load_checkpoint(path: Path, state: TrainState, config: TrainConfig) -> None:
    """Restore ``state`` in place.

    Raises:
        ValueError: the file is damaged, or was written with other settings; the text names them.
    """
    saved = read_checkpoint(path)
    ours, theirs = as_dict(config), as_dict(from_dict(saved["config"], str(path)))
    differing = sorted(k for k in ours if theirs[k] != ours[k])
    if differing:
        raise ValueError(
            f"{path} was trained with other settings for {', '.join(differing)}; "
            "use another run folder, or --init to start from its weights"
        )
    state.network.load_state_dict(saved["network"])
    state.ema.load_state_dict(saved["ema"])
    state.optimiser.load_state_dict(saved["optimiser"])
    if state.scaler:
        state.scaler.load_state_dict(saved["scaler"])
    state.iteration = saved["iteration"]


def _save(run: Path, state: TrainState, config: TrainConfig, accelerator: Accelerator) -> None:
    """Write the checkpoint, unless the weights, which all processes have, are not finite."""
    if not all(weight.isfinite().all() for weight in state.network.parameters()):
        raise _diverged("the weights hold NaN or infinity", state, run)
    if accelerator.is_main_process:
        save_checkpoint(run / CHECKPOINT_NAME, state, config)


def _diverged(what: str, state: TrainState, run: Path) -> FloatingPointError:
    return FloatingPointError(
        f"{what} before iteration {state.iteration}; the last checkpoint in {run} is kept. "
        "Lower the learning rate or use fp32"
    )


def _initial_state(config: TrainConfig, initial: nn.Module | None) -> TrainState:
    torch.manual_seed(config.seed)
    network, ema = build_network(config), build_network(config)
    if initial is not None:
        start_from(network, initial)
    ema.load_state_dict(network.state_dict())
    network, ema = (n.to(memory_format=torch.channels_last) for n in (network, ema))
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=config.optimiser.lr, weight_decay=config.optimiser.weight_decay
    )
    return TrainState(network, ema.requires_grad_(False), optimiser)


def _batches(
    config: TrainConfig, data: Path, first_iteration: int, workers: int, accelerator: Accelerator
) -> DataLoader:
    samples = config.iterations * config.batch
    dataset = open_crops(config.sources, data, config.crops, config.seed, samples)
    own = _own_slice(config.batch, accelerator)
    firsts = config.batch * np.arange(first_iteration, config.iterations)
    numbers = firsts[:, None] + np.arange(own.start, own.stop)
    return DataLoader(
        Subset(dataset, numbers.ravel()),
        own.stop - own.start,
        num_workers=workers,
        pin_memory=accelerator.device.type == "cuda",
    )


def _validates_at(iteration: int, config: TrainConfig) -> bool:
    every = config.validate_every
    return every > 0 and (iteration % every == 0 or iteration == config.iterations)


def _own_slice(batch: int, accelerator: Accelerator) -> slice:
    """This process's samples of each batch."""
    processes, rank = accelerator.num_processes, accelerator.process_index
    if batch % processes:
        raise ValueError(f"a batch of {batch} cannot be shared equally by {processes} processes")
    share = batch // processes
    return slice(rank * share, (rank + 1) * share)


def _any_process(stop: bool, accelerator: Accelerator) -> bool:
    """Whether any process wants to stop, so that all stop after the same iteration."""
    if accelerator.num_processes == 1:
        return stop
    flag = torch.tensor(float(stop), device=accelerator.device)
    return accelerator.reduce(flag, "sum").item() > 0
