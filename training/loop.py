"""The training loop: one function to read, resumable to the bit, bounded in wall-clock time."""

from __future__ import annotations

import json
import math
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from difiisr_models.compact import CompactConfig, CompactNetwork
from difiisr_models.diffusion import q_sample
from difiisr_models.resample import pack, upsample
from difiisr_models.schedule import Schedule, exponential_schedule
from difiisr_training.config import OptimiserConfig, TrainConfig, as_dict
from difiisr_training.crops import CropDataset, crop_side, prepare_frame
from difiisr_training.images import list_images, read_all

CHECKPOINT_NAME = "checkpoint.pt"
STATISTICS_NAME = "statistics.jsonl"


@dataclass
class TrainState:
    """Everything that a resumed run needs."""

    network: CompactNetwork
    ema: CompactNetwork
    optimiser: torch.optim.Optimizer
    iteration: int = 0


def train(
    config: TrainConfig,
    data: Path,
    run: Path,
    device: torch.device,
    budget_s: float,
    workers: int,
) -> TrainState:
    """Train until the schedule ends, ``budget_s`` seconds are spent, or Ctrl-C; always saves.

    A run folder that holds a checkpoint is continued: sample i, noise i and rate i depend on i
    alone, so the weights are those of an uninterrupted run.

    Raises:
        ValueError: the checkpoint belongs to other settings.
    """
    deadline = time.monotonic() + budget_s
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(json.dumps(as_dict(config), indent=2) + "\n")
    state = _initial_state(config, device)
    if (run / CHECKPOINT_NAME).exists():
        load_checkpoint(run / CHECKPOINT_NAME, state, config)
    stop = _StopOnSignal()
    schedule = exponential_schedule()
    batches = _batches(config, data, state.iteration, workers)
    progress = tqdm(total=config.iterations, initial=state.iteration, desc=config.name, unit="it")
    losses, started = [], time.monotonic()
    with (run / STATISTICS_NAME).open("a", encoding="utf-8") as statistics, progress, stop:
        for lr, hr in batches:
            rate = learning_rate(state.iteration, config.optimiser, config.iterations)
            losses.append(training_step(state, lr, hr, rate, schedule, config))
            state.iteration += 1
            progress.update()
            if state.iteration % config.log_every == 0:
                loss = torch.stack(losses).mean().item()
                speed = len(losses) / (time.monotonic() - started)
                line = {"iteration": state.iteration, "loss": loss, "lr": rate, "it_per_s": speed}
                statistics.write(json.dumps(line) + "\n")
                statistics.flush()
                progress.set_postfix(loss=f"{loss:.4f}")
                losses, started = [], time.monotonic()
            if state.iteration % config.checkpoint_every == 0:
                save_checkpoint(run / CHECKPOINT_NAME, state, config)
            if stop.requested or time.monotonic() > deadline:
                break
    save_checkpoint(run / CHECKPOINT_NAME, state, config)
    return state


def training_step(
    state: TrainState, lr: Tensor, hr: Tensor, rate: float, schedule: Schedule, config: TrainConfig
) -> Tensor:
    """One optimiser step on one batch; returns the detached loss.

    The loss is |x_0 - x_0_hat|_1 of the posterior-mean head (fidelity 1), over steps t of which
    ``last_step_share`` are t = T, the step that one-step sampling uses.
    """
    device = next(state.network.parameters()).device
    lr, x0 = lr.to(device), pack(hr.to(device))
    y = upsample(lr)
    rng = torch.Generator().manual_seed((config.seed << 32) + state.iteration)
    index = torch.randint(schedule.steps, (len(x0),), generator=rng)
    last = torch.rand(len(x0), generator=rng) < config.last_step_share
    index = torch.where(last, schedule.steps - 1, index)
    eps = torch.randn(x0.shape, generator=rng).to(device)
    eta = torch.from_numpy(schedule.eta).float()[index].view(-1, 1, 1, 1).to(device)
    x_t = q_sample(x0, y, eta, eps, schedule.kappa)
    scaled = x_t / (schedule.kappa**2 * eta + 1).sqrt()
    prediction = state.network(scaled, y, lr, index.to(device), torch.ones(1, device=device))
    loss = (prediction - x0).abs().mean()

    for group in state.optimiser.param_groups:
        group["lr"] = rate
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(state.network.parameters(), config.optimiser.grad_clip)
    state.optimiser.step()
    update_ema(state.ema, state.network, config.optimiser.ema, state.iteration)
    return loss.detach()


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
        },
        temporary,
    )
    temporary.replace(path)


def load_checkpoint(path: Path, state: TrainState, config: TrainConfig) -> None:
    """Restore ``state`` in place.

    Raises:
        ValueError: the file was written with other settings; the text names them.
    """
    saved = torch.load(path, map_location="cpu", weights_only=True)
    ours = as_dict(config)
    differing = sorted(k for k in ours if saved["config"].get(k) != ours[k])
    if differing:
        raise ValueError(
            f"{path} was trained with other settings for {', '.join(differing)}; "
            "use another run folder, or --init to start from its weights"
        )
    state.network.load_state_dict(saved["network"])
    state.ema.load_state_dict(saved["ema"])
    state.optimiser.load_state_dict(saved["optimiser"])
    state.iteration = saved["iteration"]


def load_weights(path: Path) -> tuple[dict, CompactNetwork, int]:
    """Settings, moving average and iteration of a checkpoint.

    Raises:
        FileNotFoundError: there is none.
    """
    saved = torch.load(path, map_location="cpu", weights_only=True)
    network = CompactNetwork(CompactConfig(**saved["config"]["network"]))
    network.load_state_dict(saved["ema"])
    return saved["config"], network, saved["iteration"]


def _initial_state(config: TrainConfig, device: torch.device) -> TrainState:
    torch.manual_seed(config.seed)
    network = CompactNetwork(config.network)
    ema = CompactNetwork(config.network)
    ema.load_state_dict(network.state_dict())
    network, ema = (n.to(device, memory_format=torch.channels_last) for n in (network, ema))
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=config.optimiser.lr, weight_decay=config.optimiser.weight_decay
    )
    return TrainState(network, ema.requires_grad_(False), optimiser)


def _batches(config: TrainConfig, data: Path, first_iteration: int, workers: int) -> DataLoader:
    groups = []
    for source in config.sources:
        paths = list_images(data / source.folder)
        images, _ = read_all(paths[: len(paths) - source.skip_last])
        frames = [
            frame
            for image in images
            for scale in source.scales
            if (frame := prepare_frame(image, scale, crop_side(config.crops))) is not None
        ]
        groups.append((source.weight, frames))
    length = config.iterations * config.batch
    dataset = CropDataset(groups, config.crops, config.seed, length)
    remaining = Subset(dataset, range(first_iteration * config.batch, length))
    return DataLoader(
        remaining, config.batch, num_workers=workers, pin_memory=torch.cuda.is_available()
    )


class _StopOnSignal:
    """Turns the first Ctrl-C or SIGTERM into a request to stop after the current iteration."""

    requested = False

    def __enter__(self) -> _StopOnSignal:
        self._previous = {
            number: signal.signal(number, self._request)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, *_: object) -> None:
        self.requested = True
