"""The training loop: one function to read, resumable to the bit, bounded in wall-clock time.

Runs on one device or, under `torchrun` or `accelerate launch`, on many: every process takes its
slice of each batch, so the gradient is that of one process with the whole batch.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from difiisr_models.compact import CompactNetwork, parameter_count
from difiisr_models.diffusion import exponential_schedule, stream_seed
from difiisr_models.files import write_json
from difiisr_models.published.swin_unet import SwinUNet
from difiisr_training import checkpoints
from difiisr_training.config import OptimiserConfig, RunConfig, TrainConfig, from_dict
from difiisr_training.data.images import LoadFrames
from difiisr_training.data.training_pairs import CropDataset

Validate = Callable[[nn.Module, int], dict[str, float]]
"""Scores the moving average at an iteration; draws no random number of the training."""


@dataclass
class TrainState:
    """Everything that a resumed run needs, and which signal ended this part of it (0: none)."""

    network: nn.Module
    ema: nn.Module
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None = None
    iteration: int = 0
    interrupted: int = 0

    def parts(self) -> dict[str, Any]:
        """What has a state, by its name in a checkpoint."""
        return {name: getattr(self, name) for name in ("network", "ema", "optimiser", "scaler")}


@dataclass(frozen=True)
class TrainingTask:
    """What a loop trains: images here, clips in ``sequence_training``.

    Attributes:
        build: makes the network with fresh weights.
        loss_of: wraps the network in what gives the loss of an iteration's inputs.
        inputs: these inputs, a tuple for each iteration from the given one to the last.
        groups: the optimiser's groups of its parameters; a group may have a ``rate`` of its own.
    """

    build: Callable[[], nn.Module]
    loss_of: Callable[[nn.Module], nn.Module]
    inputs: Callable[[int], Iterator[tuple[Any, ...]]]
    groups: Callable[[nn.Module], list[dict[str, Any]]] = lambda of: [{"params": of.parameters()}]


def images_task(
    config: TrainConfig,
    loss_of: Callable[[nn.Module], nn.Module],
    load: LoadFrames,
    accelerator: Accelerator,
    workers: int = 0,
) -> TrainingTask:
    """Training on single images; sample i and noise i depend on i alone.

    ``loss_of``: what is minimised, see ``losses.build_loss``; ``load``: gives the frames of the
    sources; ``workers``: processes that load samples, per training process.
    """
    share, rest = divmod(config.batch, accelerator.num_processes)
    if rest:
        raise ValueError(
            f"a batch of {config.batch} cannot be shared equally by {accelerator.num_processes} "
            "processes"
        )
    own = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)
    device, guidance, length = accelerator.device, config.guidance, config.iterations * config.batch
    samples = CropDataset(config.sources, load, config.crops, config.seed, length)

    def inputs(first: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, bool]]:
        numbers: Any = np.arange(first * config.batch, length).reshape(-1, config.batch)[:, own]
        mine, pinned = Subset(samples, numbers.ravel()), device.type == "cuda"
        batches = DataLoader(mine, share, num_workers=workers, pin_memory=pinned)
        for iteration, (lr, hr) in enumerate(batches, first):
            index, eps = draw_steps_and_noise(config, iteration, hr.shape[-2:], device)
            guided = guidance.kind != "none" and iteration >= guidance.start_iteration
            images = (x.to(device, non_blocking=True) for x in (lr, hr))
            yield *images, index[own], eps[own], guided

    def build() -> nn.Module:
        return build_network(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stubs

    return TrainingTask(build, loss_of, inputs)


def train(
    config: Any,
    task: TrainingTask,
    run: Path,
    accelerator: Accelerator,
    initial: nn.Module | None = None,
    validate: Validate | None = None,
    budget_s: float = math.inf,
) -> TrainState:
    """Train until the schedule ends, ``budget_s`` seconds are spent, or Ctrl-C; always saves.

    A run folder that holds a checkpoint is continued: everything random depends on the iteration
    alone, so the weights are those of an uninterrupted run.

    Args:
        config: the run, a ``RunConfig`` that has ``iterations``.
        task: what is trained.
        run: run folder.
        accelerator: device, precision and processes.
        initial: whose weights a new run starts from, see :func:`start_from`.
        validate: called every ``validate_every`` iterations and at the end of the schedule.
        budget_s: wall-clock limit of this call; it ends after the iteration in which it is spent.

    ValueError: the checkpoint belongs to other settings. FloatingPointError: the loss or the
    weights are not finite any more; they are not saved.
    """
    deadline, is_main = time.monotonic() + budget_s, accelerator.is_main_process
    optimiser, every = config.optimiser, config.validate_every
    state = _begin_or_go_on(config, task, run, initial, accelerator)
    loss_of, state.optimiser = accelerator.prepare(task.loss_of(state.network), state.optimiser)
    progress = tqdm(
        total=config.iterations, initial=state.iteration, desc=config.name, unit="it",
        disable=not is_main,
    )  # fmt: skip

    losses, waited, started = [], 0.0, time.monotonic()
    with progress, checkpoints.StopOnSignal() as stop:
        asked = time.monotonic()
        for inputs in task.inputs(state.iteration):
            waited += time.monotonic() - asked

            # One step.
            rate = learning_rate(state.iteration, optimiser, config.iterations)
            for group in state.optimiser.param_groups:
                group["lr"] = rate * group.get("rate", 1.0)
            state.optimiser.zero_grad(set_to_none=True)
            with accelerator.autocast():
                loss = loss_of(*inputs)
            accelerator.backward(loss)
            if optimiser.grad_clip is not None:
                accelerator.clip_grad_norm_(state.network.parameters(), optimiser.grad_clip)
            state.optimiser.step()
            _update_average(state, optimiser)
            losses.append(loss.detach())
            state.iteration += 1
            progress.update()

            if state.iteration % config.log_every == 0:
                mean = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
                _check(math.isfinite(mean), f"the loss is {mean}", state, run)
                elapsed = time.monotonic() - started
                speed = {"it_per_s": len(losses) / elapsed, "data_wait": waited / elapsed}
                if is_main:
                    values = {"loss": mean, "lr": rate, **speed}
                    checkpoints.write_journal(
                        run, checkpoints.STATISTICS_NAME, state.iteration, values
                    )
                progress.set_postfix(loss=f"{mean:.4f}")
                losses, waited, started = [], 0.0, time.monotonic()
            if state.iteration % config.checkpoint_every == 0:
                _save(run, state, config, accelerator)
            is_last = state.iteration == config.iterations
            if is_main and validate and every and (state.iteration % every == 0 or is_last):
                scores = validate(state.ema, state.iteration)
                checkpoints.write_journal(run, checkpoints.VALIDATION_NAME, state.iteration, scores)
            is_over = bool(stop.requested) or time.monotonic() > deadline
            if accelerator.num_processes > 1:  # all stop after the same iteration
                if is_over:
                    accelerator.set_trigger()
                is_over = accelerator.check_trigger()
            if is_over:
                break
            asked = time.monotonic()
    _save(run, state, config, accelerator)
    state.interrupted = stop.requested
    accelerator.wait_for_everyone()
    return state


def build_network(config: TrainConfig) -> nn.Module:
    """A network with fresh weights: the compact one, or the published UNet if configured."""
    return SwinUNet(config.published) if config.published else CompactNetwork(config.network)


def start_from(network: nn.Module, initial: nn.Module) -> None:
    """Give ``network`` the weights of ``initial``, in place.

    A recurrent network keeps its own weights for the past, which are 0 at first. ValueError: the
    two differ in anything else.
    """
    own = {n: value for n, value in network.state_dict().items() if n.startswith("stem_past")}
    try:
        network.load_state_dict(own | initial.state_dict())
    except RuntimeError as error:
        wanted, given = (
            f"{type(x).__name__} of {parameter_count(x):,} parameters" for x in (network, initial)
        )
        raise ValueError(
            f"the weights to start from, a {given}, are not those of the configured network, a "
            f"{wanted}; --init DIR names those of another"
        ) from error


def make_accelerator(config: TrainConfig, device: str) -> Accelerator:
    """Processes and precision of a run; ``device``: "auto" or "cpu"."""
    # Processes must not wait for the gradient of the fidelity-0 head where it gets none.
    idle_head = config.stage == "diffusion" and config.perceptual_weight == 0
    accelerator = Accelerator(
        # Left to itself without a GPU, accelerate makes every process a run of its own.
        cpu=device == "cpu" or not torch.cuda.is_available(),
        mixed_precision="no" if config.precision == "fp32" else config.precision,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=idle_head)],
    )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise ValueError(
            f"{started} processes were started and {accelerator.num_processes} train together: "
            "start them with torchrun or accelerate launch, on one kind of device"
        )
    return accelerator


def draw_steps_and_noise(
    config: TrainConfig, iteration: int, hr_size: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """t - 1 ``(B,)`` and eps ``(B, C, h, w)`` of the whole batch: a function of the iteration.

    A share ``last_step_share`` of the steps t is t = T, the one that one-step sampling uses. Drawn
    where they are used (a CPU takes longer for the noise than a GPU for the whole step), so that a
    GPU's draws are not a CPU's.
    """
    rng = torch.Generator(device).manual_seed(stream_seed(config.seed, iteration))
    steps, where = exponential_schedule().steps, dict[str, Any](generator=rng, device=device)
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


def _begin_or_go_on(
    config: RunConfig,
    task: TrainingTask,
    run: Path,
    initial: nn.Module | None,
    accelerator: Accelerator,
) -> TrainState:
    """The state of the run folder's checkpoint, or that of a new run, whose folder is made."""
    torch.manual_seed(config.seed)
    network, ema = task.build(), task.build()
    if initial is not None:
        start_from(network, initial)
    ema.load_state_dict(network.state_dict())
    optimiser = torch.optim.AdamW(
        task.groups(network), config.optimiser.lr, weight_decay=config.optimiser.weight_decay
    )
    state = TrainState(network, ema.requires_grad_(False), optimiser, accelerator.scaler)
    path, settings = run / checkpoints.CHECKPOINT_NAME, asdict(config)
    if path.exists():
        saved = checkpoints.read_checkpoint(path)
        theirs = asdict(from_dict(saved["config"], path, type(config)))
        if differing := sorted(key for key in settings if theirs[key] != settings[key]):
            raise ValueError(
                f"{path} was trained with other settings for {', '.join(differing)}; "
                "use another run folder, or --init to start from its weights"
            )
        for name, part in state.parts().items():
            if part is not None:
                part.load_state_dict(saved[name])
        state.iteration = saved["iteration"]
    elif accelerator.is_main_process:
        write_json(run / "config.json", settings)
    state.ema.to(accelerator.device)
    return state


@torch.no_grad()
def _update_average(state: TrainState, config: OptimiserConfig) -> None:
    """ema <- decay ema + (1 - decay) network; buffers of integers are copied."""
    decay = config.ema
    if config.ema_warmup:  # a shorter memory in the first iterations
        decay = min(decay, (1 + state.iteration) / (10 + state.iteration))
    values = state.network.state_dict()
    for name, average in state.ema.state_dict().items():
        if average.is_floating_point():
            average.lerp_(values[name], 1 - decay)
        else:
            average.copy_(values[name])


def _save(run: Path, state: TrainState, config: RunConfig, accelerator: Accelerator) -> None:
    """Write the checkpoint, unless the weights, which all processes have, are not finite."""
    finite = all(weight.isfinite().all() for weight in state.network.parameters())
    _check(finite, "the weights hold NaN or infinity", state, run)
    if accelerator.is_main_process:
        parts = {
            k: None if part is None else part.state_dict() for k, part in state.parts().items()
        }
        content = {"config": asdict(config), **parts, "iteration": state.iteration}
        checkpoints.save_checkpoint(run / checkpoints.CHECKPOINT_NAME, content)


def _check(finite: bool, what: str, state: TrainState, run: Path) -> None:
    if not finite:
        raise FloatingPointError(
            f"{what} before iteration {state.iteration}; the last checkpoint in {run} is kept. "
            "Lower the learning rate or use fp32"
        )
