"""Training of detector and segmenter, in the loop that all networks are trained in."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from accelerate import Accelerator
from annotated_types import Ge, Gt, Le
from pydantic.dataclasses import dataclass
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from difiisr_models.diffusion import stream_seed
from difiisr_models.files import replaced
from difiisr_training.checkpoints import CHECKPOINT_NAME, VALIDATION_NAME, read_journal
from difiisr_training.config import OptimiserConfig, RunConfig
from difiisr_training.train import TrainingTask, TrainState, run_task

BEST_NAME = "best.safetensors"
"""Weights of a run that did best on the validation frames so far."""


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

    iterations: Annotated[int, Ge(1)]
    batch: Annotated[int, Ge(1)] = 8
    lr: Annotated[float, Gt(0), Le(1)]
    weight_decay: Annotated[float, Ge(0), Le(1)]
    ema: Annotated[float, Ge(0), Le(1)]
    seed: Annotated[int, Ge(0)] = 0
    validate_every: Annotated[int, Ge(1)]


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
    warmup: int = 0,
    gradient_norm: float | None = None,
    device: str = "auto",
    budget_s: float = math.inf,
) -> tuple[Any, TrainState]:
    """Train as ``train.run_task`` does, which says what is raised.

    Args:
        config: the run.
        classes: names, in the order of the outputs.
        network: with its first weights; it is left as it is.
        run: folder of the run.
        loss_of: the loss of a network on the samples of these numbers.
        judge: scores of the average on validation frames; the first one chooses the best weights.
        warmup: iterations in which the rate rises.
        gradient_norm: longer gradients are cut to it.
        device: "auto" or "cpu".
        budget_s: wall-clock limit.

    Returns:
        The average, the best one on validation or without validation the last; and the state.
    """
    optimiser = OptimiserConfig(
        lr=config.lr, final_lr_share=0, warmup=warmup, weight_decay=config.weight_decay,
        ema=config.ema, grad_clip=gradient_norm,
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

    task = TrainingTask(
        lambda: copy.deepcopy(network),
        lambda of: [{"params": list(of.parameters())}],
        lambda of: _ReaderLoss(of, loss_of),
        inputs,
    )
    accelerator = Accelerator(cpu=device == "cpu" or not torch.cuda.is_available())
    state = run_task(
        described, task, run, accelerator, validate=validate if judge else None, budget_s=budget_s
    )
    if best.is_file():
        state.ema.load_state_dict(load_file(best))
    return state.ema.eval(), state


def shuffled_place(count: int, seed: int, number: int) -> int:
    """Which of ``count`` frames sample ``number`` shows: all once an epoch, in another order."""
    epoch, place = divmod(number, count)
    return int(np.random.default_rng([seed, epoch, count]).permutation(count)[place])
