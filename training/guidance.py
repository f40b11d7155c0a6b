"""L_g of DifIISR (Eq. 10-12), and its gradient in the predicted noise (Eq. 5-9).

With x_t = (1 - eta_t) x_0 + eta_t y + kappa sqrt(eta_t) eps, Eq. 9 reads

    eps' = eps + rho kappa sqrt(eta_t) g,    g = grad_{x_t} L_g(x_0_hat(x_t)),

and Eq. 5 turns eps' into x_0' = x_0_hat - rho c_t g, c_t = kappa^2 eta_t / (1 - eta_t), which is
0.0016 .. 197. Two choices are left open, and they matter more than rho:

What x_0_hat(x_t) depends on. Through the network (``gradient_path="network"``), Tweedie's formula
gives d E[x_0 | x_t] / d x_t = Cov[x_0 | x_t] / c_t, so that for a good denoiser the correction is
rho Cov[x_0 | x_t] grad_{x_0} L_g: a step of the size of what is still unknown. With eps held fixed
(``"fixed_noise"``, the public reference) only Eq. 5 is differentiated, d x_0_hat / d x_t =
1 / (1 - eta_t), and the correction is rho c_t / (1 - eta_t) grad_{x_0} L_g: 9900 rho at t = T = 15.

What is corrected, under the squared error (``norm: l2``). Let f be the network's x_0 and h what it
is trained towards, with g a constant. ``corrects="prediction"`` (paper and public reference)
minimises |f - rho c_t g - h|^2: f is pulled towards h + rho c_t g, *up* the gradient of L_g; with
fixed noise its gradient is exactly that of |f - h|^2 minus 2 rho c_t / (1 - eta_t) L_g(f).
``corrects="target"`` minimises |f - (h - rho c_t g)|^2: f is pulled *down* the gradient, the
objective plus the same term. A sampler that corrects its own estimates by Eq. 9 moves down too.
Under ``norm: l1`` a small correction acts only where it flips the sign of f - h + rho c_t g.

L_g is a mean over N pixels and its gradient of order 1 / N; docs/algorithm.md has the sizes.

The public reference (github.com/zirui0625/DifIISR) in addition acts at t = T alone, inside the
distillation and after 200,000 iterations; takes the mean of L_g over the batch, so that g shrinks
with the batch size (here every sample has its own L_g); corrects the teacher's result too, down
the gradient (rho g); and guides nothing at inference.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from difiisr_models.diffusion import exponential_schedule
from difiisr_models.resample import pack
from difiisr_training.perceptual import PerceptualLoss, SamLoss, load_sam

_KAPPA = exponential_schedule().kappa
_EPS = 1e-8
_WINDOW = 8  # blocks on a side of a neighbourhood

NotNegative = Annotated[float, Ge(0)]

log = logging.getLogger(__name__)


@dataclass(frozen=True, config={"extra": "forbid"})
class GuidanceConfig:
    """How L_g = weight_visual L_visual + weight_perceptual L_perceptual acts (Tables 3 and 4).

    ``weight_pattern`` adds a term of our own.

    Attributes:
        kind: which losses L_g has.
        mode: "gradient" injects the gradient of L_g (Eq. 9), "sum" adds L_g to the objective.
        corrects: what the injected gradient corrects, see the text of this file.
        gradient_path: what x_0_hat depends on x_t through, see the text of this file.
        weight_visual: weight of the spectral loss.
        weight_perceptual: weight of the VGG and SAM losses.
        weight_pattern: weight of the loss that forbids a pattern of the 4x4 blocks, see
            :func:`pattern_loss`; for every kind but "none".
        rho: strength of the injection.
        start_iteration: first iteration that is guided.
        timesteps: the t in 1..T that are guided; empty = all.
        vgg: feature map phi_l, see :class:`difiisr_training.perceptual.PerceptualLoss`.
        sam: what S is, see :class:`difiisr_training.perceptual.SamLoss`.
    """

    kind: Literal["none", "visual", "perceptual", "both"] = "none"
    mode: Literal["gradient", "sum"] = "gradient"
    corrects: Literal["prediction", "target"] = "prediction"
    gradient_path: Literal["network", "fixed_noise"] = "network"
    weight_visual: NotNegative = 0.01
    weight_perceptual: NotNegative = 0.01
    weight_pattern: NotNegative = 0.0
    rho: NotNegative = 1.0
    start_iteration: Annotated[int, Ge(0)] = 0
    timesteps: tuple[int, ...] = ()
    vgg: Literal["vgg16_relu3_3", "vgg19_relu5_4", "vgg19_relu3_1", "vgg19_scales"] = (
        "vgg16_relu3_3"
    )
    sam: Literal["masks", "features", "raw_features"] = "masks"

    def __post_init__(self) -> None:
        steps = exponential_schedule().steps
        if wrong := [t for t in self.timesteps if not 1 <= t <= steps]:
            raise ValueError(f"guidance timesteps are counted 1..{steps}, got {wrong}")


def predicted_noise(x_t: Tensor, x0: Tensor, y: Tensor, eta: Tensor) -> Tensor:
    """eps that x_t holds if x_0 is right: (x_t - (1 - eta_t) x_0 - eta_t y) / (kappa sqrt(eta_t)).

    Images are ``(B, C, h, w)``, ``eta (B, 1, 1, 1)`` in (0, 1).
    """
    return (x_t - (1 - eta) * x0 - eta * y) / (_KAPPA * eta.sqrt())


def x0_from_noise(x_t: Tensor, eps: Tensor, y: Tensor, eta: Tensor) -> Tensor:
    """Eq. 5: x_0_hat = (x_t - kappa sqrt(eta_t) eps - eta_t y) / (1 - eta_t)."""
    return (x_t - _KAPPA * eta.sqrt() * eps - eta * y) / (1 - eta)


def guidance_gradient(loss_per_sample: Tensor, x_t: Tensor) -> Tensor:
    """g = grad_{x_t} L_g, each sample's own: ``(B,)`` and ``(B, C, h, w)`` -> ``(B, C, h, w)``.

    The result is a constant; the graph behind the loss is kept for the training step. Multiplied
    by the number of pixels on its way, it is not too small for a network in fp16.
    """
    scale = 2.0 ** round(math.log2(x_t[0].numel()))  # a power of 2 changes no bit in float32
    (gradient,) = torch.autograd.grad(scale * loss_per_sample.sum(), x_t, retain_graph=True)
    return gradient / scale


def inject(x_t: Tensor, x0: Tensor, y: Tensor, eta: Tensor, rho: float, gradient: Tensor) -> Tensor:
    """Eq. 9, then Eq. 5: the x_0 of eps' = eps + rho kappa sqrt(eta_t) g.

    Equal to x_0 - rho kappa^2 eta_t / (1 - eta_t) g; differentiable with respect to ``x0``.
    """
    eps = predicted_noise(x_t, x0, y, eta)
    eps = eps + rho * _KAPPA * eta.sqrt() * gradient
    return x0_from_noise(x_t, eps, y, eta)


def guide(
    x_t: Tensor,
    x0: Tensor,
    target: Tensor,
    y: Tensor,
    eta: Tensor,
    loss: Callable[[Tensor], Tensor],
    config: GuidanceConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply the guidance to one training step.

    Args:
        x_t: ``(B, C, h, w)``; must require grad for ``gradient_path="network"``.
        x0: the network's estimate, with its graph.
        target: what it is trained towards.
        y: the upsampled frame.
        eta: ``(B, 1, 1, 1)``, eta_t of each sample.
        loss: L_g as a function of x_0, ``(B, C, h, w)`` -> ``(B,)``; 0 where nothing is guided.
        config: settings.

    Returns:
        what is compared, with what, and a scalar to add, which is 0 unless the mode is "sum".
    """
    if config.mode == "sum":
        return x0, target, loss(x0).mean()
    if config.gradient_path == "network":
        gradient = guidance_gradient(loss(x0), x_t)
    else:
        eps = predicted_noise(x_t, x0, y, eta).detach()
        free = x_t.detach().requires_grad_()
        gradient = guidance_gradient(loss(x0_from_noise(free, eps, y, eta)), free)
    if config.corrects == "prediction":
        x0 = inject(x_t, x0, y, eta, config.rho, gradient)
    else:
        target = inject(x_t, target, y, eta, config.rho, gradient).detach()
    return x0, target, x0.new_zeros(())


def added_weight(rho: float, t: int, pixels: int) -> float:
    """Weight at which L_g, added, does what it does injected with rho at t.

    That is with fixed noise, a corrected target and the mean squared error of ``pixels`` pixels.
    """
    eta = exponential_schedule().eta_at(t)
    return 2 * rho * _KAPPA**2 * eta / (1 - eta) ** 2 / pixels


def spectral_loss(sr: Tensor, hr: Tensor) -> Tensor:
    """L_visual: mean squared difference of normalised log-magnitude spectra (Eq. 11), per sample.

    The phase is dropped, so nothing changes at all when either image is shifted by whole pixels
    (circularly), mirrored through a point, or negated. A gain g on either image is forgotten only
    nearly: exactly where |F| >> 1, as log(1 + g |F|) = log g + log |F| and the mean is taken out,
    and where |F| << 1, as log(1 + g |F|) = g |F| and the variance is taken out, not between. On
    thermal frames in [-1, 1] doubling the contrast costs 0.5 % of what a 3x3 blur does.

    ``(B, C, H, W)`` twice, any unit, float16 to float64 -> ``(B,)`` in [0, 4], float32 or float64.
    """
    if sr.shape != hr.shape:
        raise ValueError(f"images of one shape are compared, got {sr.shape} and {hr.shape}")
    return (log_spectrum(sr) - log_spectrum(hr)).square().mean(dim=(1, 2, 3))


def log_spectrum(image: Tensor) -> Tensor:
    """Eq. 10: log(1 + |FFT(image)|), normalised to zero mean and unit variance per sample."""
    full = image.to(torch.promote_types(image.dtype, torch.float32))
    spectrum = torch.fft.fftshift(torch.fft.fft2(full), dim=(-2, -1))
    log = spectrum.abs().log1p()
    centred = log - log.mean(dim=(1, 2, 3), keepdim=True)
    variance = centred.square().mean(dim=(1, 2, 3), keepdim=True)
    return centred / (variance + _EPS).sqrt()


def pattern_loss(sr: Tensor, hr: Tensor) -> Tensor:
    """Variance over the 16 places of a 4x4 block of their mean error in a neighbourhood.

    Perceptual losses reward texture where the sensor's noise was, and a network without a source
    of chance can only repeat one pattern in every 4x4 block. Noise has no such memory of its place
    in the block: over a neighbourhood the error of each of the 16 places has the same mean.

    A neighbourhood is 8x8 blocks, or all where there are fewer. ``(B, 1, 4h, 4w)`` twice, any unit
    -> ``(B,)`` in that unit squared, 0 when the error is the same everywhere in the block.
    """
    error = pack(sr - hr)
    window = min(_WINDOW, *error.shape[-2:])
    return F.avg_pool2d(error, window).var(dim=1, unbiased=False).mean(dim=(1, 2))


class GuidanceLoss(nn.Module):
    """L_g of images in [-1, 1]: the sum of its losses, each times its weight, per sample."""

    def __init__(
        self, config: GuidanceConfig, vgg: Path | None = None, sam: Path | None = None
    ) -> None:
        """Read the networks that the configuration asks for.

        ``vgg``: weights of the configured VGG; ``sam``: checkpoint of a Segment Anything model. The
        one without its file is left out, and the log says so; ValueError without both.
        """
        super().__init__()
        self._config, self._terms = config, nn.ModuleList()
        if config.kind not in ("perceptual", "both"):
            return
        if vgg is not None:
            self._terms.append(PerceptualLoss(config.vgg, vgg))
        if sam is not None:
            self._terms.append(SamLoss(load_sam(sam), config.sam))
        if not self._terms:
            raise ValueError(
                f"guidance {config.kind!r} needs the weights of a VGG or the checkpoint of a SAM"
            )
        if len(self._terms) == 1:
            given, missing = ("VGG", "SAM checkpoint") if vgg else ("SAM", "VGG weights")
            log.warning("no %s given: L_perceptual is the %s term alone", missing, given)

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """``(B, 1, H, W)`` twice -> ``(B,)``."""
        config, total = self._config, sr.new_zeros(len(sr))
        if config.weight_visual and config.kind in ("visual", "both"):
            total = total + config.weight_visual * spectral_loss(sr, hr)
        if config.weight_pattern:
            total = total + config.weight_pattern * pattern_loss(sr, hr)
        for loss in self._terms:  # their sum is L_perceptual (Eq. 12)
            total = total + config.weight_perceptual * loss(sr, hr)
        return total
