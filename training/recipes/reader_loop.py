"""The training loop of detector and segmenter: resumable to the bit, bounded in wall-clock time."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from tqdm import tqdm

from difiisr_models.diffusion import stream_seed
from difiisr_training.checkpoints import (
    CHECKPOINT_NAME,
    STATISTICS_NAME,
    StopOnSignal,
    load_checkpoint,
    save_checkpoint,
    update_ema,
    write_journal,
)


@dataclass(frozen=True, kw_only=True)
class ReaderConfig:
    """Settings that both readers have.

    Attributes:
        iterations: optimiser steps of the whole schedule
        batch: crops per step
        lr: largest learning rate
        weight_decay: of the optimiser
        ema: memory of the moving average that is judged and kept; 0: the weights themselves
        seed: of the first weights and of all samples
        validate_every: steps between two checkpoints, and judgements on the validation frames
    """

    iterations: Annotated[int, Ge(1)]
    batch: Annotated[int, Ge(1)] = 8
    lr: Annotated[float, Gt(0)]
    weight_decay: Annotated[float, Ge(0)]
    ema: Annotated[float, Ge(0), Le(1)]
    seed: Annotated[int, Ge(0)] = 0
    validate_every: Annotated[int, Ge(1)]


def train_reader(
    config: ReaderConfig,
    classes: Sequence[str],
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    run: Path,
    *,
    loss_of: Callable[[Any, range], Tensor],
    rate_at: Callable[[int], float],
    judge: Callable[[Any], dict[str, float | None]] | None = None,
    gradient_norm: float = math.inf,
    budget_s: float = math.inf,
) -> tuple[Any, int]:
    """Train as ``train.run_task`` does; a checkpoint of the same settings and classes is continued.

    Args:
        config: the run.
        classes: names, in the order of the outputs.
        network: with its first weights, on the device where it is trained.
        optimiser: of its parameters.
        run: its folder.
        loss_of: the loss of a network on the samples of these numbers.
        rate_at: learning rate of an iteration.
        judge: scores of the average on validation frames; the first one chooses the best weights.
        gradient_norm: longer gradients are cut to it.
        budget_s: wall-clock limit.

    Returns:
        The average, the best one on validation or without validation the last, and the steps done.
    """
    deadline = time.monotonic() + budget_s
    path, settings = run / CHECKPOINT_NAME, {"classes": list(classes), **asdict(config)}
    average = copy.deepcopy(network).requires_grad_(False)
    parts: dict[str, Any] = {"network": network, "average": average, "optimiser": optimiser}
    reached: dict[str, Any] = {"iteration": 0, "best": None, "best_score": -1.0}
    if path.exists():
        saved = load_checkpoint(path, settings, parts)
        reached = {name: saved[name] for name in reached}
    run.mkdir(parents=True, exist_ok=True)
    iteration = reached["iteration"]
    progress = tqdm(total=config.iterations, initial=iteration, desc="training", unit="it")
    with progress, StopOnSignal() as stop:
        while iteration < config.iterations and time.monotonic() < deadline and not stop.requested:
            for group in optimiser.param_groups:
                group["lr"] = rate_at(iteration)
            torch.manual_seed(stream_seed(config.seed, iteration))  # of dropout
            optimiser.zero_grad(set_to_none=True)
            first = iteration * config.batch
            loss = loss_of(network.train(), range(first, first + config.batch))
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss.item()} at iteration {iteration}; lower the learning rate "
                    f"from {config.lr}, or look for samples that show nothing to learn"
                )
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), gradient_norm)
            optimiser.step()
            iteration += 1
            update_ema(average, network, config.ema, iteration)
            reached["iteration"] = iteration
            scores: dict[str, float | None] = {}
            if iteration % config.validate_every == 0 or iteration == config.iterations:
                scores = judge(average) if judge else {}
                score = next(iter(scores.values()), None)
                if score is not None and score > reached["best_score"]:
                    reached |= {"best": copy.deepcopy(average.state_dict()), "best_score": score}
                save_checkpoint(path, settings, parts, **reached)
            write_journal(run, STATISTICS_NAME, iteration, {"loss": loss.item()} | scores)
            progress.update()
            progress.set_postfix(loss=f"{loss.item():.3f}", **scores)
        if stop.requested:
            progress.write(f"stopped at iteration {iteration}; --resume goes on")
    save_checkpoint(path, settings, parts, **reached)
    if reached["best"] is not None:
        average.load_state_dict(reached["best"])
    return average.eval(), iteration


def shuffled_place(count: int, seed: int, number: int) -> int:
    """Which of ``count`` frames sample ``number`` shows: all once an epoch, in another order."""
    epoch, place = divmod(number, count)
    return int(np.random.default_rng([seed, epoch, count]).permutation(count)[place])
