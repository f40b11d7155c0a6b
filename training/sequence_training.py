"""Training of a recurrent network on clips: what is drawn, and the loss.

The network sees each clip as a stream would show it: its own last estimate, after the consistency
step, warped by the motion that was found between measured frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator
from annotated_types import Ge
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from difiisr_models.compact import CompactConfig, CompactNetwork
from difiisr_models.consistency import noise_aware_consistency
from difiisr_models.diffusion import (
    exponential_schedule,
    latent_input_scale,
    q_sample,
    stream_seed,
)
from difiisr_models.model_loading import save_compact
from difiisr_models.recurrence import no_past, past_planes
from difiisr_models.resample import PHASES, pack, upsample
from difiisr_training.checkpoints import CHECKPOINT_NAME, read_checkpoint
from difiisr_training.config import Count, RunConfig
from difiisr_training.data.clips import Clip, ClipConfig, Clips
from difiisr_training.data.images import ImageSource, LoadFrames, Share
from difiisr_training.losses import distance
from difiisr_training.train import TrainingTask, Validate, run_task

_RAW_WEIGHT = 0.25  # of the estimate before the consistency step, so that it stays one
_FEWEST = 2  # frames of a clip


@dataclass(frozen=True, config={"extra": "forbid"})
class Stage:
    """A part of the schedule: ``batch`` clips of ``frames`` each, up to iteration ``until``."""

    until: Count
    batch: Count
    frames: Annotated[int, Ge(_FEWEST)]


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class SequenceConfig(RunConfig):
    """A run on clips; folders are relative to the data root.

    Attributes:
        stills: whose frames are panned over.
        recordings: folders of recordings, one folder of images each.
        stages: in order; the last one ends the schedule.
        network: sizes of the network; it is recurrent.
        clips: how clips are drawn.
        past_rate: learning rate of the new convolution, times that of the rest.
    """

    stills: tuple[ImageSource, ...]
    recordings: tuple[str, ...]
    stages: tuple[Stage, ...]
    network: CompactConfig = field(default_factory=lambda: CompactConfig(recurrent=True))
    clips: ClipConfig = field(default_factory=ClipConfig)
    past_rate: Annotated[float, Ge(0)] = 3.0
    norm: Literal["l1", "l2", "psnr"] = "psnr"
    last_step_share: Share = 0.9
    checkpoint_every: Count = 200
    log_every: Count = 20

    @property
    def iterations(self) -> int:
        """Length of the schedule."""
        return self.stages[-1].until

    def stage_of(self, iteration: int) -> Stage:
        """The stage that an iteration below ``iterations`` belongs to."""
        return next(stage for stage in self.stages if iteration < stage.until)


def train_on_sequences(
    config: SequenceConfig,
    data: Path,
    load: LoadFrames,
    run: Path,
    *,
    initial: nn.Module | None = None,
    validate: Validate | None = None,
    budget_s: float = math.inf,
) -> bool:
    """Train on clips; those of an iteration depend on its number alone. See ``train.run_task``.

    Args:
        config: the run.
        data: root that the recordings lie under.
        load: gives the frames of the stills.
        run: run folder.
        initial: as of ``run_task``, like ``validate`` and ``budget_s``.

    Returns:
        whether the schedule is at its end; KeyboardInterrupt if a signal ended it. All is saved.
    """

    def groups(network: nn.Module) -> list[dict[str, Any]]:
        named = dict(network.named_parameters())
        network.detail_head.requires_grad_(False)
        new = [value for name, value in named.items() if name.startswith("stem_past")]
        old = [p for name, p in named.items() if not name.startswith(("stem_p", "detail"))]
        return [{"params": old, "rate": 1.0}, {"params": new, "rate": config.past_rate}]

    roots = [data / folder for folder in config.recordings]
    clips = Clips(config.stills, roots, load, config.clips, config.seed)

    def inputs(first: int) -> Iterator[tuple[list[Clip], int]]:
        for iteration in range(first, config.iterations):
            stage = config.stage_of(iteration)
            # Numbers are not used twice: the batch of no stage is larger than 64.
            numbers = range(64 * iteration, 64 * iteration + stage.batch)
            yield [clips.draw(number, stage.frames) for number in numbers], iteration

    task = TrainingTask(
        lambda: CompactNetwork(config.network), groups, partial(ClipLoss, config=config), inputs
    )
    state = run_task(config, task, run, Accelerator(cpu=True), initial, validate, budget_s)
    if state.interrupted:
        raise KeyboardInterrupt(state.interrupted)  # `train A && train B` must not go on
    return state.iteration == config.iterations


def export_sequence_run(run: Path, folder: Path) -> None:
    """Write the moving average of a run's checkpoint as a weights folder."""
    saved = read_checkpoint(run / CHECKPOINT_NAME)
    network = CompactNetwork(CompactConfig(**saved["config"]["network"]))
    network.load_state_dict(saved["ema"])
    name, *_ = (saved["config"].pop(key) for key in ("name", "network"))
    training = {"iterations": saved["iteration"]} | saved["config"]
    save_compact(network, folder, {"name": name, "training": training})


class ClipLoss(nn.Module):
    """Mean distance of the estimate to x_0 over all frames, the first included, before and after
    the consistency step; the gradient goes through time.
    """

    def __init__(self, network: CompactNetwork, config: SequenceConfig) -> None:
        super().__init__()
        self.network, self._config = network, config

    def forward(self, clips: list[Clip], iteration: int) -> Tensor:
        """Loss of the clips of an iteration, which alone its noise depends on."""
        hr, lr, flow = (
            torch.stack([getattr(c, k) for c in clips], dim=1) for k in Clip._fields[:3]
        )
        sigma = torch.stack([clip.sigma for clip in clips])[..., None, None]
        rng = torch.Generator().manual_seed(stream_seed(self._config.seed, iteration))
        schedule, loss, before = exponential_schedule(), torch.zeros(()), None
        for frame in range(len(hr)):
            x0, y, measured = pack(hr[frame]), upsample(lr[frame]), lr[frame]
            past = no_past(measured, sigma)
            if before is not None:
                past = past_planes(before, flow[frame], measured, sigma)
            is_last = torch.rand((), generator=rng) < self._config.last_step_share
            t = schedule.steps
            if not is_last:
                t = int(torch.randint(1, schedule.steps + 1, (), generator=rng))
            eps = torch.randn(len(x0), PHASES, *measured.shape[-2:], generator=rng)
            x_t = q_sample(x0, y, schedule.eta_at(t), eps, schedule.kappa)
            scaled = x_t * latent_input_scale(t, schedule)
            mean, _ = self.network.estimates(scaled, y, measured, torch.tensor([t - 1]), past)
            each = zip(mean.split(1), measured.split(1), map(float, sigma), strict=True)
            before = torch.cat([noise_aware_consistency(*one) for one in each])
            for estimate, weight in ((before, 1.0), (mean, _RAW_WEIGHT)):
                loss = loss + weight * distance(estimate, x0, self._config.norm).mean()
        return loss / len(hr)
