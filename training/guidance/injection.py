"""Gradient guidance in residual-shifting form (DifIISR, Eq. 5-9): L_g acts through the noise.

With x_t = (1 - eta_t) x_0 + eta_t y + kappa sqrt(eta_t) eps, Eq. 9 reads

    eps' = eps + rho kappa sqrt(eta_t) g,    g = grad_{x_t} L_g(x_0_hat(x_t)),

and Eq. 5 turns eps' into

    x_0' = x_0_hat - rho c_t g,              c_t = kappa^2 eta_t / (1 - eta_t)    (0.0016 .. 197).

Two choices are left open, and they matter more than rho:

What x_0_hat(x_t) depends on. Through the network (``gradient_path="network"``), Tweedie's formula
gives d E[x_0 | x_t] / d x_t = Cov[x_0 | x_t] / c_t, so that for a good denoiser the correction is
rho Cov[x_0 | x_t] grad_{x_0} L_g: a step of the size of what is still unknown. With eps held fixed
(``"fixed_noise"``, the public reference) only Eq. 5 is differentiated, d x_0_hat / d x_t =
1 / (1 - eta_t), and the correction is rho c_t / (1 - eta_t) grad_{x_0} L_g: 9900 rho at t = T = 15.

What is corrected, under the squared error (``norm: l2``). Let f be the network's x_0 and h what it
is trained towards, with g a constant.
``corrects="prediction"`` (paper and public reference) minimises |f - rho c_t g - h|^2: f is pulled
towards h + rho c_t g, *up* the gradient of L_g. With fixed noise its gradient is exactly that of
|f - h|^2 minus 2 rho c_t / (1 - eta_t) L_g(f). ``corrects="target"`` minimises
|f - (h - rho c_t g)|^2: f is pulled *down* the gradient, the objective plus the same term. A
sampler that corrects its own estimates by Eq. 9 as written moves down too. Under ``norm: l1`` the
network receives sign(f - h + rho c_t g): a small correction acts only where it flips a sign.

L_g is a mean over N pixels and its gradient of order 1 / N. With weights of 0.01 and rho = 1 the
correction of 128 x 128 crops, measured on the compact model and relative to the error of x_0, is
at t = T 0.00004 to 0.0001 (network) or 6 to 12 (fixed noise), at t = 8 below 0.00005 or 0.002.
Choose rho accordingly.

The public reference (github.com/zirui0625/DifIISR) in addition: acts at t = T alone, inside the
distillation and after 200,000 iterations; decodes x_0_hat and compares it with the high-resolution
image; takes the mean of L_g over the batch, so that g shrinks with the batch size (here every
sample has its own L_g); corrects the teacher's result too, at the end of its sampling, with
rho g in place of rho kappa sqrt(eta) g (down the gradient); and guides nothing at inference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from difiisr_models.schedule import exponential_schedule


@dataclass(frozen=True)
class GuidanceConfig:
    """How L_g = weight_visual L_visual + weight_perceptual L_perceptual acts (Tables 3 and 4).

    ``weight_pattern`` adds a term of our own.

    Attributes:
        kind: which losses L_g has.
        mode: "gradient" injects the gradient of L_g (Eq. 9), "sum" adds L_g to the objective.
        corrects: what the injected gradient corrects, see the module's text.
        gradient_path: what x_0_hat depends on x_t through, see the module's text.
        weight_visual: weight of the spectral loss.
        weight_perceptual: weight of the VGG and SAM losses.
        weight_pattern: weight of the loss that forbids a pattern of the 4x4 blocks, see
            :mod:`difiisr_training.guidance.pattern_loss`; for every kind but "none".
        rho: strength of the injection.
        start_iteration: first iteration that is guided.
        timesteps: the t in 1..T that are guided; empty = all.
        vgg: feature map phi_l, see :mod:`difiisr_training.guidance.perceptual_loss`.
        sam: what S is, see :mod:`difiisr_training.guidance.sam_loss`.
    """

    kind: Literal["none", "visual", "perceptual", "both"] = "none"
    mode: Literal["gradient", "sum"] = "gradient"
    corrects: Literal["prediction", "target"] = "prediction"
    gradient_path: Literal["network", "fixed_noise"] = "network"
    weight_visual: float = 0.01
    weight_perceptual: float = 0.01
    weight_pattern: float = 0.0
    rho: float = 1.0
    start_iteration: int = 0
    timesteps: tuple[int, ...] = ()
    vgg: Literal["vgg16_relu3_3", "vgg19_relu5_4", "vgg19_relu3_1", "vgg19_scales"] = (
        "vgg16_relu3_3"
    )
    sam: Literal["masks", "features"] = "masks"

    def __post_init__(self) -> None:
        steps = exponential_schedule().steps
        if wrong := [t for t in self.timesteps if not 1 <= t <= steps]:
            raise ValueError(f"guidance timesteps are counted 1..{steps}, got {wrong}")
        names = "weight_visual", "weight_perceptual", "weight_pattern", "rho", "start_iteration"
        for name in names:
            if getattr(self, name) < 0:
                raise ValueError(f"guidance {name} must be 0 or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class Guided:
    """What a training step compares, and what it adds.

    Attributes:
        prediction: x_0 with gradient to the network.
        target: what it is compared with.
        penalty: scalar to add to the objective; 0 unless mode is "sum".
    """

    prediction: Tensor
    target: Tensor
    penalty: Tensor


def predicted_noise(x_t: Tensor, x0: Tensor, y: Tensor, eta: Tensor, kappa: float) -> Tensor:
    """eps that x_t holds if x_0 is right: (x_t - (1 - eta_t) x_0 - eta_t y) / (kappa sqrt(eta_t)).

    Images are ``(B, C, h, w)``, ``eta (B, 1, 1, 1)`` in (0, 1).
    """
    return (x_t - (1 - eta) * x0 - eta * y) / (kappa * eta.sqrt())


def x0_from_noise(x_t: Tensor, eps: Tensor, y: Tensor, eta: Tensor, kappa: float) -> Tensor:
    """Eq. 5: x_0_hat = (x_t - kappa sqrt(eta_t) eps - eta_t y) / (1 - eta_t)."""
    return (x_t - kappa * eta.sqrt() * eps - eta * y) / (1 - eta)


def guidance_gradient(loss_per_sample: Tensor, x_t: Tensor) -> Tensor:
    """g = grad_{x_t} L_g, each sample's own: ``(B,)`` and ``(B, C, h, w)`` -> ``(B, C, h, w)``.

    The result is a constant; the graph behind the loss is kept for the training step. Multiplied
    by the number of pixels on its way, it is not too small for a network in fp16.
    """
    scale = 2.0 ** round(math.log2(x_t[0].numel()))  # a power of 2 changes no bit in float32
    (gradient,) = torch.autograd.grad(scale * loss_per_sample.sum(), x_t, retain_graph=True)
    return gradient / scale


def inject(
    x_t: Tensor,
    x0: Tensor,
    y: Tensor,
    eta: Tensor,
    kappa: float,
    rho: float,
    gradient: Tensor,
) -> Tensor:
    """Eq. 9, then Eq. 5: the x_0 of eps' = eps + rho kappa sqrt(eta_t) g.

    Equal to x_0 - rho kappa^2 eta_t / (1 - eta_t) g; differentiable with respect to ``x0``.
    """
    eps = predicted_noise(x_t, x0, y, eta, kappa)
    eps = eps + rho * kappa * eta.sqrt() * gradient
    return x0_from_noise(x_t, eps, y, eta, kappa)


def guide(
    x_t: Tensor,
    x0: Tensor,
    target: Tensor,
    y: Tensor,
    eta: Tensor,
    kappa: float,
    loss: Callable[[Tensor], Tensor],
    acts: Tensor,
    config: GuidanceConfig,
) -> Guided:
    """Apply the guidance to one training step.

    Args:
        x_t: ``(B, C, h, w)``; must require grad for ``gradient_path="network"``.
        x0: the network's estimate, with its graph.
        target: what it is trained towards.
        y: the upsampled frame.
        eta: ``(B, 1, 1, 1)``, eta_t of each sample.
        kappa: noise scale.
        loss: L_g as a function of x_0, ``(B, C, h, w)`` -> ``(B,)``.
        acts: ``(B,)``, 1 for the samples that are guided, 0 for the others.
        config: settings.
    """
    if config.mode == "sum":
        return Guided(x0, target, (loss(x0) * acts).mean())
    if config.gradient_path == "network":
        gradient = guidance_gradient(loss(x0) * acts, x_t)
    else:
        eps = predicted_noise(x_t, x0, y, eta, kappa).detach()
        free = x_t.detach().requires_grad_()
        gradient = guidance_gradient(loss(x0_from_noise(free, eps, y, eta, kappa)) * acts, free)
    penalty = x0.new_zeros(())
    if config.corrects == "prediction":
        return Guided(inject(x_t, x0, y, eta, kappa, config.rho, gradient), target, penalty)
    corrected = inject(x_t, target, y, eta, kappa, config.rho, gradient).detach()
    return Guided(x0, corrected, penalty)
