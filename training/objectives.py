"""What a training step minimises: residual-shifting diffusion, guided or not, and distillation.

Notation of the paper; t counts 1..T, ``index`` = t - 1 is what the network is told. All images and
latents are batches ``(B, C, h, w)``; losses are scalars.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from difiisr_models.diffusion import (
    deterministic_step,
    latent_input_scale,
    prior_sample,
    q_sample,
)
from difiisr_models.schedule import Schedule
from difiisr_training.guidance.injection import GuidanceConfig, Guided, guide
from difiisr_training.space import DiffusionSpace

_ROUNDING = 1e-5  # about the squared error of counts of 8 bit: below it nothing is to be gained

GuidanceLoss = Callable[[Tensor, Tensor], Tensor]
"""L_g of (SR, HR) images ``(B, 1, H, W)`` in [-1, 1] -> ``(B,)``."""


@dataclass(frozen=True)
class Batch:
    """One batch in the space of the diffusion."""

    hr: Tensor
    lr: Tensor
    clean: Tensor
    x0: Tensor
    y: Tensor

    @staticmethod
    def of(lr: Tensor, hr: Tensor, clean: Tensor, space: DiffusionSpace) -> Batch:
        """From images ``(B, 1, h, w)``, ``(B, 1, 4h, 4w)`` in [-1, 1] and flags ``(B,)``."""
        return Batch(hr, lr, clean, space.encode(hr), space.shift_target(lr))


@dataclass(frozen=True)
class Objective:
    """Everything a loss needs beside the network and the batch.

    Attributes:
        space: see :class:`DiffusionSpace`.
        schedule: all T levels.
        guidance: how L_g acts.
        guidance_loss: L_g; ``None`` when the guidance is off.
        perceptual_weight: weight of the perceptual estimate's loss beside the mean's.
        norm: "l1", "l2" or "psnr", how estimates are compared with their targets.
        image_teacher: a super-resolver of images in [-1, 1] to imitate, or ``None``.
        teacher_weight: its share in the mean estimate's loss.
    """

    space: DiffusionSpace
    schedule: Schedule
    guidance: GuidanceConfig
    guidance_loss: GuidanceLoss | None
    perceptual_weight: float
    norm: str = "l1"
    image_teacher: Callable[[Tensor], Tensor] | None = None
    teacher_weight: float = 0.0


def diffusion_loss(
    network: nn.Module, batch: Batch, index: Tensor, eps: Tensor, objective: Objective, guided: bool
) -> Tensor:
    """|x_0 - mean|, plus perceptual_weight times the same for the perceptual estimate, guided.

    A network with one estimate has the second part alone, unless perceptual_weight is 0.

    Args:
        network: the denoiser being trained.
        batch: clean data.
        index: ``(B,)`` int64, t - 1 of each sample.
        eps: noise, shaped like ``batch.x0``.
        objective: settings.
        guided: whether the guidance acts at this iteration.
    """
    schedule, space = objective.schedule, objective.space
    eta = eta_of(index, schedule).to(eps)
    x_t = q_sample(batch.x0, batch.y, eta, eps, schedule.kappa)
    acts = guided and objective.guidance_loss is not None
    x_t.requires_grad_(acts)  # Eq. 9 needs the gradient with respect to x_t
    scaled = x_t / (schedule.kappa**2 * eta + 1).sqrt()
    mean, sample = space.estimates(network, scaled, batch.y, batch.lr, index)
    if objective.perceptual_weight == 0:
        return mean_loss(mean, batch, objective)
    guided_to = Guided(sample, batch.x0, sample.new_zeros(()))
    if acts:
        guided_to = apply_guidance(x_t, sample, batch.x0, batch, eta, index, objective)
    error = distance(guided_to.prediction, guided_to.target, objective.norm).mean()
    perceptual = objective.perceptual_weight * (error + guided_to.penalty)
    return perceptual if mean is sample else mean_loss(mean, batch, objective) + perceptual


def distance(a: Tensor, b: Tensor, norm: str) -> Tensor:
    """How far ``a`` is from ``b``, for each sample: ``(B, C, h, w)`` -> ``(B,)``.

    "l1": mean |a - b|; "l2": mean (a - b)^2; "psnr": its decimal logarithm, -PSNR / 10.
    """
    difference = a - b
    if norm == "l1":
        return difference.abs().mean(dim=(1, 2, 3))
    squared = difference.square().mean(dim=(1, 2, 3))
    return (squared + _ROUNDING).log10() if norm == "psnr" else squared


def mean_loss(mean: Tensor, batch: Batch, objective: Objective) -> Tensor:
    """|x_0 - mean|, shared with an image teacher where there is one and the sample is clean."""
    error = distance(mean, batch.x0, objective.norm)
    if objective.image_teacher is None:
        return error.mean()
    with torch.no_grad(), torch.autocast(mean.device.type, enabled=False):
        taught = objective.space.encode(objective.image_teacher(batch.lr))
    share = objective.teacher_weight * batch.clean.to(error)
    return ((1 - share) * error + share * distance(mean, taught, objective.norm)).mean()


def distillation_loss(
    student: nn.Module,
    teacher: nn.Module,
    batch: Batch,
    eps: Tensor,
    objective: Objective,
    guided: bool,
) -> Tensor:
    """SinSR's consistency-preserving distillation to one step, at t = T.

    |f(x_T) - teacher(x_T)|^2 + |f^{-1}(teacher(x_T)) - x_T|^2 + |f(f^{-1}(x_0)) - x_0|^2: the
    teacher's full deterministic result from the same noise, the learned inverse (the student told
    index 0 predicts x_T), and the ground truth reached through that inverse. They shape the
    fidelity-0 estimate f, weighted by perceptual_weight beside the loss of the mean at t = T; a
    network with one estimate has them alone.
    """
    schedule, space = objective.schedule, objective.space
    x_T = prior_sample(batch.y, eps, schedule)
    with torch.no_grad():
        target = _deterministic_sample(teacher, x_T, batch, objective)
    last, first = (torch.full((len(eps),), t - 1, device=eps.device) for t in (schedule.steps, 1))

    def both_at(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        scale = latent_input_scale(int(index[0]) + 1, schedule)
        return space.estimates(student, x * scale, batch.y, batch.lr, index)

    def student_at(x: Tensor, index: Tensor) -> Tensor:
        return both_at(x, index)[1]

    x_T = x_T.requires_grad_(guided and objective.guidance_loss is not None)
    mean, forward = both_at(x_T, last)
    matched = (forward - target).square().mean()
    if x_T.requires_grad:
        eta = eta_of(last, schedule).to(eps)
        guided_to = apply_guidance(x_T, forward, target, batch, eta, last, objective)
        matched = (guided_to.prediction - guided_to.target).square().mean() + guided_to.penalty
    inverse = student_at(target, first)
    with torch.no_grad():
        x_T_of_truth = student_at(batch.x0, first)
    truth = student_at(x_T_of_truth, last)
    inverted = (inverse - x_T.detach()).square().mean()
    distilled = matched + inverted + (truth - batch.x0).square().mean()
    if mean is forward:
        return distilled
    return mean_loss(mean, batch, objective) + objective.perceptual_weight * distilled


def apply_guidance(
    x_t: Tensor,
    x0: Tensor,
    target: Tensor,
    batch: Batch,
    eta: Tensor,
    index: Tensor,
    objective: Objective,
) -> Guided:
    """Guide the samples whose t is among the configured ones; see ``injection.guide``."""
    guidance, space = objective.guidance, objective.space
    acts = torch.ones(len(index), device=index.device)
    if guidance.timesteps:
        steps = torch.tensor(guidance.timesteps, device=index.device)
        acts = torch.isin(index + 1, steps).to(x0)

    def loss(estimate: Tensor) -> Tensor:
        # In half precision most of this gradient would be lost: it is of the order of 1 / pixels.
        with torch.autocast(estimate.device.type, enabled=False):
            return objective.guidance_loss(space.decode(estimate.float()), batch.hr.float())

    kappa = objective.schedule.kappa
    return guide(x_t, x0, target, batch.y, eta, kappa, loss, acts, guidance)


def eta_of(index: Tensor, schedule: Schedule) -> Tensor:
    """eta_t of each sample, ``(B, 1, 1, 1)`` float32."""
    return torch.from_numpy(schedule.eta).float().to(index.device)[index].view(-1, 1, 1, 1)


def _deterministic_sample(
    teacher: nn.Module, x_T: Tensor, batch: Batch, objective: Objective
) -> Tensor:
    """The teacher's result after all T deterministic steps from x_T."""
    schedule, x = objective.schedule, x_T
    for t in range(schedule.steps, 0, -1):
        index = torch.full((len(x),), t - 1, device=x.device)
        scaled = x * latent_input_scale(t, schedule)
        x0 = objective.space.estimates(teacher, scaled, batch.y, batch.lr, index)[1]
        x = deterministic_step(x, x0, batch.y, t, schedule)
    return x
