"""Training of a recurrent network on clips: one loop to read, resumable to the bit.

The network sees each clip as a stream would show it: its own last estimate, after the consistency
step, warped by the motion that was found between measured frames.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from tqdm import tqdm

from difiisr_models.compact import CompactConfig, CompactNetwork
from difiisr_models.consistency import noise_aware_consistency
from difiisr_models.diffusion import (
    exponential_schedule,
    latent_input_scale,
    prior_sample,
    q_sample,
    stream_seed,
)
from difiisr_models.model_loading import save_compact
from difiisr_models.noise import denoise
from difiisr_models.recurrence import no_past, past_planes
from difiisr_models.resample import PHASES, pack, upsample
from difiisr_training.checkpoints import (
    CHECKPOINT_NAME,
    STATISTICS_NAME,
    VALIDATION_NAME,
    StopOnSignal,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
    update_ema,
    write_journal,
)
from difiisr_training.config import Count, OptimiserConfig, RunName, Share
from difiisr_training.data.clips import Clip, ClipConfig, Clips
from difiisr_training.data.images import ImageSource, LoadFrames
from difiisr_training.losses import distance
from difiisr_training.networks import start_from
from difiisr_training.train import learning_rate

_RAW_WEIGHT = 0.25  # of the estimate before the consistency step, so that it stays one
_FEWEST = 2  # frames of a clip
_RIDGE = 1e-5  # of the mean power of what the detail head reads

log = logging.getLogger(__name__)


@dataclass(frozen=True, config={"extra": "forbid"})
class Stage:
    """A part of the schedule: ``batch`` clips of ``frames`` each, up to iteration ``until``."""

    until: Count
    batch: Count
    frames: Annotated[int, Ge(_FEWEST)]


@dataclass(frozen=True, config={"extra": "forbid"})
class SequenceConfig:
    """A whole run; folders are relative to the data root.

    Attributes:
        name: of the model and of the run's folder.
        stills: whose frames are panned over.
        recordings: folders of recordings, one folder of images each.
        stages: in order; the last one ends the schedule.
        network: sizes of the network; it is recurrent.
        clips: how clips are drawn.
        optimiser: see :class:`OptimiserConfig`.
        past_rate: learning rate of the new convolution, times that of the rest.
        norm: what estimates are compared with x_0 by, see ``config.TrainConfig``.
        last_step_share: frames trained at t = T; the rest is uniform over 1..T.
        seed: of data, noise and initial weights.
        checkpoint_every: iterations between checkpoints.
        log_every: iterations between lines of statistics.
        validate_every: iterations between validations; 0 = none.
    """

    name: RunName
    stills: tuple[ImageSource, ...]
    recordings: tuple[str, ...]
    stages: tuple[Stage, ...]
    network: CompactConfig = field(default_factory=lambda: CompactConfig(recurrent=True))
    clips: ClipConfig = field(default_factory=ClipConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    past_rate: Annotated[float, Ge(0)] = 3.0
    norm: Literal["l1", "l2", "psnr"] = "psnr"
    last_step_share: Share = 0.9
    seed: int = 0
    checkpoint_every: Count = 200
    log_every: Count = 20
    validate_every: Annotated[int, Ge(0)] = 0

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
    validate: Callable[[nn.Module, int], dict[str, float]] | None = None,
    budget_s: float = math.inf,
) -> bool:
    """Train until the schedule ends, ``budget_s`` seconds are spent, or Ctrl-C; always saves.

    A run folder that holds a checkpoint is continued: everything random depends on the iteration
    alone, so the weights are those of an uninterrupted run.

    Args:
        config: the run.
        data: root that the recordings lie under.
        load: gives the frames of the stills.
        run: run folder.
        initial: network whose weights a new run starts from, see ``networks.start_from``.
        validate: called with the moving average.
        budget_s: wall-clock limit.

    Returns:
        whether the schedule is at its end.

    Raises:
        FloatingPointError: the loss is not finite any more; the last checkpoint is kept.
        KeyboardInterrupt: a signal ended it; all is saved.
    """
    deadline = time.monotonic() + budget_s
    torch.manual_seed(config.seed)
    network, ema = CompactNetwork(config.network), CompactNetwork(config.network)
    if initial is not None:
        start_from(network, initial)
    ema.load_state_dict(network.state_dict())
    ema.requires_grad_(False)
    new = [p for name, p in network.named_parameters() if name.startswith("stem_past")]
    old = [p for name, p in network.named_parameters() if not name.startswith(("stem_p", "detail"))]
    network.detail_head.requires_grad_(False)
    optimiser = torch.optim.AdamW(
        [{"params": old, "rate": 1.0}, {"params": new, "rate": config.past_rate}],
        weight_decay=config.optimiser.weight_decay,
    )
    parts = {"network": network, "ema": ema, "optimiser": optimiser}
    iteration, path = 0, run / CHECKPOINT_NAME
    if path.exists():
        iteration = load_checkpoint(path, asdict(config), parts)["iteration"]
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
    roots = [data / folder for folder in config.recordings]
    clips = Clips(config.stills, roots, load, config.clips, config.seed)

    losses, started = [], time.monotonic()
    progress = tqdm(total=config.iterations, initial=iteration, desc=config.name, unit="it")
    with progress, StopOnSignal() as stop:
        while iteration < config.iterations:
            stage = config.stage_of(iteration)
            # Numbers are not used twice: the batch of no stage is larger than 64.
            drawn = [clips.draw(64 * iteration + k, stage.frames) for k in range(stage.batch)]
            rate = learning_rate(iteration, config.optimiser, config.iterations)
            for group in optimiser.param_groups:
                group["lr"] = rate * group["rate"]
            optimiser.zero_grad(set_to_none=True)
            loss = clip_loss(network, drawn, config, iteration)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(
                    f"the loss is {losses[-1]} at iteration {iteration}; the last checkpoint in "
                    f"{run} is kept. Lower the learning rate"
                )
            loss.backward()
            if config.optimiser.grad_clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), config.optimiser.grad_clip)
            optimiser.step()
            first = iteration if config.optimiser.ema_warmup else math.inf
            update_ema(ema, network, config.optimiser.ema, first)
            iteration += 1
            progress.update()

            if iteration % config.log_every == 0:
                mean, speed = float(np.mean(losses)), len(losses) / (time.monotonic() - started)
                values = {"loss": mean, "lr": rate, "it_per_s": speed}
                write_journal(run, STATISTICS_NAME, iteration, values)
                progress.set_postfix(loss=f"{mean:.4f}")
                losses, started = [], time.monotonic()
            is_over = time.monotonic() > deadline or stop.requested
            if iteration % config.checkpoint_every == 0 or is_over:
                save_checkpoint(path, asdict(config), parts, iteration=iteration)
            if validate and config.validate_every and iteration % config.validate_every == 0:
                write_journal(run, VALIDATION_NAME, iteration, validate(ema, iteration))
            if is_over:
                break
    save_checkpoint(path, asdict(config), parts, iteration=iteration)
    if stop.requested:
        raise KeyboardInterrupt(stop.requested)  # `train A && train B` must not go on
    return iteration == config.iterations


def export_sequence_run(
    run: Path, folder: Path, teacher: CompactNetwork | None = None, clips: Iterable[Clip] = ()
) -> None:
    """Write the moving average of a run's checkpoint as a weights folder.

    ``teacher`` and ``clips``: of :func:`refit_detail`, which is left out without them.
    """
    saved = read_checkpoint(run / CHECKPOINT_NAME)
    network = CompactNetwork(CompactConfig(**saved["config"]["network"]))
    network.load_state_dict(saved["ema"])
    if teacher is not None:
        share = refit_detail(network, teacher, clips)
        log.info("the detail head keeps %.0f %% of the energy of its teacher's", 100 * share)
    name, *_ = (saved["config"].pop(key) for key in ("name", "network"))
    training = {"iterations": saved["iteration"]} | saved["config"]
    save_compact(network, folder, {"name": name, "training": training})


@torch.no_grad()
def refit_detail(network: CompactNetwork, teacher: CompactNetwork, clips: Iterable[Clip]) -> float:
    """Fit the detail head to what ``teacher`` adds to the same frames, by least squares, in place.

    Training moves the features that the head reads. Returns the share of the energy that is kept.
    """
    head, features = network.detail_head, []
    hook = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    schedule, size = exponential_schedule(), 9 * network.config.channels + 1
    gram, moment = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, PHASES).double()
    energy, t, rng = 0.0, torch.tensor([schedule.steps - 1]), torch.Generator().manual_seed(0)
    for clip in clips:
        sigma, before = clip.sigma.view(1, 1, 1, 1), None
        for lr, flow in zip(clip.lr[:, None], clip.flow[:, None], strict=True):
            past = no_past(lr, sigma)
            if before is not None:
                past = past_planes(before, flow, lr, sigma)
            eps, noise = torch.randn(1, PHASES, *lr.shape[-2:], generator=rng), float(sigma)
            details = []
            for net, shown, told in (
                (network, lr, (past,)),
                (teacher, denoise(lr, noise), (past,) * teacher.config.recurrent),
            ):
                y = upsample(shown)
                x_t = prior_sample(y, eps, schedule) * latent_input_scale(schedule.steps, schedule)
                mean, detail = net.estimates(x_t, y, shown, t, *told)
                before = noise_aware_consistency(mean, lr, noise) if net is network else before
                details.append(detail[0].flatten(1).T.double())
            taps = F.unfold(features.pop(), 3, padding=1)[0].T.double()
            taps = torch.cat((taps, torch.ones(len(taps), 1).double()), dim=1)
            gram, moment = gram + taps.T @ taps, moment + taps.T @ details[1]
            energy += float(details[1].square().sum())
    hook.remove()
    ridge = _RIDGE * gram.diagonal().mean() * torch.eye(size).double()
    found = torch.linalg.solve(gram + ridge, moment)
    head.weight.copy_(found[:-1].T.reshape(head.weight.shape))
    head.bias.copy_(found[-1])
    left = energy - 2 * float((found * moment).sum()) + float((found * (gram @ found)).sum())
    return 1 - left / max(energy, 1e-12)


def clip_loss(
    network: CompactNetwork, clips: list[Clip], config: SequenceConfig, iteration: int
) -> Tensor:
    """Mean distance of the estimate to x_0 over all frames, the first included, before and after
    the consistency step; the gradient goes through time.
    """
    hr, lr, flow = (torch.stack([getattr(c, k) for c in clips], dim=1) for k in Clip._fields[:3])
    sigma = torch.stack([clip.sigma for clip in clips])[..., None, None]
    rng = torch.Generator().manual_seed(stream_seed(config.seed, iteration))
    schedule, loss, before = exponential_schedule(), torch.zeros(()), None
    for frame in range(len(hr)):
        x0, y, measured = pack(hr[frame]), upsample(lr[frame]), lr[frame]
        if before is None:
            past = no_past(measured, sigma)
        else:
            past = past_planes(before, flow[frame], measured, sigma)
        is_last = torch.rand((), generator=rng) < config.last_step_share
        t = schedule.steps
        if not is_last:
            t = int(torch.randint(1, schedule.steps + 1, (), generator=rng))
        eps = torch.randn(len(x0), PHASES, *measured.shape[-2:], generator=rng)
        x_t = q_sample(x0, y, schedule.eta_at(t), eps, schedule.kappa)
        scaled = x_t * latent_input_scale(t, schedule)
        mean, _ = network.estimates(scaled, y, measured, torch.tensor([t - 1]), past)
        before = torch.cat(
            [
                noise_aware_consistency(mean[k : k + 1], measured[k : k + 1], float(sigma[k]))
                for k in range(len(mean))
            ]
        )
        for estimate, weight in ((before, 1.0), (mean, _RAW_WEIGHT)):
            loss = loss + weight * distance(estimate, x0, config.norm).mean()
    return loss / len(hr)
