"""Training of a recurrent network on clips: what is drawn, and the loss.

The network sees each clip as a stream would show it: its own last estimate, after the consistency
step, warped by the motion that was found between measured frames.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from difiisr_models.compact import CompactConfig, CompactNetwork
from difiisr_models.consistency import noise_aware_consistency
from difiisr_models.diffusion import (
    Schedule,
    exponential_schedule,
    latent_input_scale,
    prior_sample,
    q_sample,
    stream_seed,
)
from difiisr_models.noise import denoise
from difiisr_models.recurrence import drawn_to_past, next_weight, no_past, past_planes, settled
from difiisr_models.resample import PHASES, pack, upsample
from difiisr_training.config import Count, RunConfig
from difiisr_training.data.clips import Clip, ClipConfig, Clips
from difiisr_training.data.images import ImageSource, LoadFrames, Share
from difiisr_training.losses import distance
from difiisr_training.train import TrainingTask

_RAW_WEIGHT = 0.25  # of the estimate before the consistency step, so that it stays one
_FEWEST = 2  # frames of a clip
_RIDGE = 1e-5  # of the mean power of what the detail head reads
_LEAST_SHARE = 0.1  # of the energy: what explains less is not scaled up further

log = logging.getLogger(__name__)


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
        precision: of the network alone (autocast); what it is told and gives keeps all its bits.
    """

    stills: tuple[ImageSource, ...]
    recordings: tuple[str, ...]
    stages: tuple[Stage, ...]
    network: CompactConfig = field(default_factory=lambda: CompactConfig(recurrent=True))
    clips: ClipConfig = field(default_factory=ClipConfig)
    past_rate: Annotated[float, Ge(0)] = 3.0
    norm: Literal["l1", "l2", "psnr"] = "psnr"
    precision: Literal["fp32", "bf16"] = "fp32"
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


def clips_task(config: SequenceConfig, clips: Clips) -> TrainingTask:
    """Training on clips; those of an iteration depend on its number alone."""

    def groups(network: nn.Module) -> list[dict[str, Any]]:
        named = dict(network.named_parameters())
        network.detail_head.requires_grad_(False)
        new = [value for name, value in named.items() if name.startswith("stem_past")]
        old = [p for name, p in named.items() if not name.startswith(("stem_p", "detail"))]
        return [{"params": old, "rate": 1.0}, {"params": new, "rate": config.past_rate}]

    def inputs(first: int) -> Iterator[tuple[list[Clip], int]]:
        for iteration in range(first, config.iterations):
            stage = config.stage_of(iteration)
            # Numbers are not used twice: the batch of no stage is larger than 64.
            numbers = range(64 * iteration, 64 * iteration + stage.batch)
            yield [clips.draw(number, stage.frames) for number in numbers], iteration

    def build() -> nn.Module:
        network = CompactNetwork(config.network)
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stubs

    return TrainingTask(build, partial(ClipLoss, config=config), inputs, groups)


def clips_of(config: SequenceConfig, data: Path, load: LoadFrames) -> Clips:
    """What a run is trained on.

    ``data``: root that the recordings lie under; ``load``: gives the frames of the stills.
    """
    roots = [data / folder for folder in config.recordings]
    return Clips(config.stills, roots, load, config.clips, config.seed)


@torch.no_grad()
def fit_detail(network: CompactNetwork, teacher: CompactNetwork, clips: Iterable[Clip]) -> float:
    """Fit the detail head by least squares to what ``teacher`` adds to the same frames, in place.

    Training moves the features that the head reads. The teacher is shown frames without noise, as
    it is in a stream. Each frame counts the same, however little detail it has. A mean of what may
    be there has less energy than each of it: the head is then scaled to that of the teacher's.
    Returns the share of the energy that the fit explains.
    """
    head, features = network.detail_head, []
    hook = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    schedule, size = exponential_schedule(), 9 * network.config.channels + 1
    gram, moment = torch.zeros(size, size).double(), torch.zeros(size, PHASES).double()
    energy, t, rng = 0.0, torch.tensor([schedule.steps - 1]), torch.Generator().manual_seed(0)
    for clip in clips:
        sigma, before = clip.sigma.view(1, 1, 1, 1), None
        for lr, flow in zip(clip.lr[:, None], clip.flow[:, None], strict=True):
            past = _past(before, flow, lr, sigma)
            eps = torch.randn(1, PHASES, *lr.shape[-2:], generator=rng)
            quiet = denoise(lr, float(sigma))
            _, wanted = teacher.estimates(*_at_the_last_step(quiet, eps, schedule), t)
            mean, _ = network.estimates(*_at_the_last_step(lr, eps, schedule), t, past)
            mean = mean + drawn_to_past(mean, past, lr)
            before = (
                noise_aware_consistency(mean, lr, float(sigma), settled(past)),
                next_weight(past),
            )
            taps = F.unfold(features.pop(), 3, padding=1)[0].T.double()
            taps = torch.cat((taps, torch.ones(len(taps), 1).double()), dim=1)
            detail = wanted[0].flatten(1).T.double()
            level = detail.square().mean().sqrt() + _RIDGE
            taps, detail = taps / level, detail / level
            gram, moment = gram + taps.T @ taps, moment + taps.T @ detail
            energy += float(detail.square().sum())
    hook.remove()
    ridge = _RIDGE * gram.diagonal().mean() * torch.eye(size).double()
    found = torch.linalg.solve(gram + ridge, moment)
    left = energy - 2 * float((found * moment).sum()) + float((found * (gram @ found)).sum())
    share = 1 - left / max(energy, 1e-12)
    found /= max(share, _LEAST_SHARE) ** 0.5
    assert head.bias is not None, "it is made with one"
    head.weight.copy_(found[:-1].T.reshape(head.weight.shape))
    head.bias.copy_(found[-1])
    log.info("the detail head gives %.0f %% of the energy of its teacher's", 100 * share)
    return share


def _past(before: tuple[Tensor, Tensor] | None, flow: Tensor, lr: Tensor, sigma: Tensor) -> Tensor:
    """The planes of a frame; ``before``: the last estimate and its weight."""
    return no_past(lr, sigma) if before is None else past_planes(*before, flow, lr, sigma)


def _at_the_last_step(lr: Tensor, eps: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
    """x_T (scaled), the bicubic image and the frame itself, as networks take them."""
    y = upsample(lr)
    return prior_sample(y, eps, schedule) * latent_input_scale(schedule.steps, schedule), y, lr


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
            past = _past(before, flow[frame], measured, sigma)
            is_last = torch.rand((), generator=rng) < self._config.last_step_share
            t = schedule.steps
            if not is_last:
                t = int(torch.randint(1, schedule.steps + 1, (), generator=rng))
            eps = torch.randn(len(x0), PHASES, *measured.shape[-2:], generator=rng)
            x_t = q_sample(x0, y, schedule.eta_at(t), eps, schedule.kappa)
            scaled = x_t * latent_input_scale(t, schedule)
            with torch.autocast("cpu", torch.bfloat16, self._config.precision == "bf16"):
                mean, _ = self.network.estimates(scaled, y, measured, torch.tensor([t - 1]), past)
            gates = settled(past).split(1)
            nearer = mean + drawn_to_past(mean, past, measured)
            each = zip(nearer.split(1), measured.split(1), map(float, sigma), gates, strict=True)
            result = torch.cat([noise_aware_consistency(*one) for one in each])
            before = result, next_weight(past)
            for estimate, weight in ((result, 1.0), (mean, _RAW_WEIGHT)):
                loss = loss + weight * distance(estimate, x0, self._config.norm).mean()
        return loss / len(hr)
