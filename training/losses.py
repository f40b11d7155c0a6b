"""What a training step minimises: residual-shifting diffusion, guided or not, and distillation.

Notation of the paper; t counts 1..T, ``index`` = t - 1 is what the network is told. All images and
latents are batches ``(B, C, h, w)``; losses are scalars. The diffusion runs in a space: that of
packed pixels (compact model) or of latents (published model).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difiisr_models import diffusion
from difiisr_models.published.vq_autoencoder import VQAutoencoder
from difiisr_models.resample import SCALE, pack, unpack, upsample
from difiisr_training.config import TrainConfig
from difiisr_training.guidance import GuidanceLoss, guide

_ROUNDING = 1e-5  # about the squared error of counts of 8 bit: below it nothing is to be gained


class PackedSpace:
    """Pixels themselves, 4x4 of them as channels: the compact network."""

    def encode(self, hr: Tensor) -> Tensor:
        """``(B, 1, 4h, 4w)`` in [-1, 1] -> x_0 ``(B, C, h, w)``."""
        return pack(hr)

    def shift_target(self, lr: Tensor) -> Tensor:
        """``(B, 1, h, w)`` -> y ``(B, C, h, w)``, the upsampled frame in this space."""
        return upsample(lr)

    def estimates(
        self, network: Any, scaled: Tensor, y: Tensor, lr: Tensor, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Posterior mean and perceptual sample of x_0, both ``(B, C, h, w)``.

        ``scaled`` is x_t / sqrt(kappa^2 eta_t + 1), ``index (B,)`` the step counted from 0.
        """
        mean, detail = network.estimates(scaled, y, lr, index)
        return mean, mean + detail

    def decode(self, x0: Tensor) -> Tensor:
        """x_0 ``(B, C, h, w)`` -> ``(B, 1, 4h, 4w)``, with gradient."""
        return unpack(x0)


class LatentSpace:
    """Latents of the frozen autoencoder: the published network, fed three equal channels."""

    def __init__(self, autoencoder: VQAutoencoder) -> None:
        self._autoencoder = autoencoder.eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, hr: Tensor) -> Tensor:
        """Image -> x_0."""
        return self._autoencoder.encode(hr.expand(-1, 3, -1, -1))

    @torch.no_grad()
    def shift_target(self, lr: Tensor) -> Tensor:
        """Low resolution -> y."""
        return self.encode(F.interpolate(lr, scale_factor=float(SCALE), mode="bicubic"))

    def estimates(
        self, network: nn.Module, scaled: Tensor, y: Tensor, lr: Tensor, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The one estimate, twice."""
        x0 = network(scaled, index, lr.expand(-1, 3, -1, -1))
        return x0, x0

    def decode(self, x0: Tensor) -> Tensor:
        """x_0 -> image; the gradient passes the quantisation straight through."""
        coder = self._autoencoder
        quantised = x0 + (coder.quantise(x0) - x0).detach()
        return coder.decoder(coder.from_latent(quantised)).mean(dim=1, keepdim=True)


class _Batch(NamedTuple):
    hr: Tensor
    lr: Tensor
    x0: Tensor
    y: Tensor


class TrainingLoss(nn.Module):
    """The network under its objective: what data-parallel training wraps and calls."""

    def __init__(
        self,
        network: nn.Module,
        config: TrainConfig,
        space: PackedSpace | LatentSpace,
        guidance_loss: GuidanceLoss | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        """Of ``network`` in the ``space`` of the diffusion.

        ``guidance_loss``: L_g; ``None`` when the guidance is off. ``teacher``: for distillation; it
        is not trained and not saved.
        """
        super().__init__()
        self.network = network
        self._teacher = (teacher,)  # a tuple hides it from parameters() and state_dict()
        self._config, self._space, self._guidance_loss = config, space, guidance_loss
        self._schedule = diffusion.exponential_schedule()

    def forward(self, lr: Tensor, hr: Tensor, index: Tensor, eps: Tensor, guided: bool) -> Tensor:
        """Loss of one batch.

        Args:
            lr: ``(B, 1, h, w)`` in [-1, 1].
            hr: ``(B, 1, 4h, 4w)`` likewise.
            index: ``(B,)`` int64, t - 1 of each sample; a distillation is at t = T.
            eps: ``(B, C, h, w)`` noise, shaped like x_0.
            guided: whether the guidance acts at this iteration.
        """
        # The precision is the network's: y, which it adds to, and x_0 keep all their bits.
        with torch.autocast(lr.device.type, enabled=False):
            batch = _Batch(hr, lr, self._space.encode(hr), self._space.shift_target(lr))
        guided = guided and self._guidance_loss is not None
        if self._teacher[0] is None:
            return self.diffusion_loss(batch, index, eps, guided)
        last = torch.full_like(index, self._schedule.steps - 1)
        return self.distillation_loss(batch, last, eps, guided)

    def diffusion_loss(self, batch: _Batch, index: Tensor, eps: Tensor, guided: bool) -> Tensor:
        """|x_0 - mean|, plus perceptual_weight times the same for the perceptual estimate, guided.

        A network with one estimate has the second part alone, unless perceptual_weight is 0.
        """
        weight, kappa = self._config.perceptual_weight, self._schedule.kappa
        eta = self._eta_of(index).to(eps)
        x_t = diffusion.q_sample(batch.x0, batch.y, eta, eps, kappa)
        x_t.requires_grad_(guided)  # Eq. 9 needs the gradient with respect to x_t
        scaled = x_t / (kappa**2 * eta + 1).sqrt()
        mean, sample = self._space.estimates(self.network, scaled, batch.y, batch.lr, index)
        if weight == 0:
            return self._distance(mean, batch.x0)
        target, penalty, is_only = batch.x0, sample.new_zeros(()), mean is sample
        if guided:
            sample, target, penalty = self._guide(x_t, sample, target, batch, index)
        perceptual = weight * (self._distance(sample, target) + penalty)
        return perceptual if is_only else self._distance(mean, batch.x0) + perceptual

    def distillation_loss(self, batch: _Batch, last: Tensor, eps: Tensor, guided: bool) -> Tensor:
        """SinSR's consistency-preserving distillation to one step, at t = T.

        |f(x_T) - teacher(x_T)|^2 + |f^{-1}(teacher(x_T)) - x_T|^2 + |f(f^{-1}(x_0)) - x_0|^2: the
        teacher's full deterministic result from the same noise, the learned inverse (the student
        told index 0 predicts x_T; its input is scaled as ``inverse_scaled_at`` says), and the
        ground truth reached through that inverse. They shape the fidelity-0 estimate f, weighted by
        perceptual_weight beside the loss of the mean at t = T; a network with one estimate has them
        alone.
        """
        steps, scaled_at = self._schedule.steps, self._config.inverse_scaled_at
        teacher = self._teacher[0]
        assert teacher is not None, "a distillation has one"

        def estimates(network: nn.Module, x: Tensor, t: int, told: int) -> tuple[Tensor, Tensor]:
            """Both of x, scaled as at t, by a network that is told an index."""
            scaled = x * diffusion.latent_input_scale(t, self._schedule)
            index = torch.full_like(last, told)
            return self._space.estimates(network, scaled, batch.y, batch.lr, index)

        def inverse(x0: Tensor) -> Tensor:
            return estimates(self.network, x0, steps if scaled_at == "last" else 1, 0)[1]

        x_T = diffusion.prior_sample(batch.y, eps, self._schedule)
        with torch.no_grad():
            target = x_T
            for t in range(steps, 0, -1):
                x0 = estimates(teacher, target, t, t - 1)[1]
                target = diffusion.deterministic_step(target, x0, batch.y, t, self._schedule)
        x_T = x_T.requires_grad_(guided)
        mean, forward = estimates(self.network, x_T, steps, steps - 1)
        matched = (forward - target).square().mean()
        if guided:
            f, h, penalty = self._guide(x_T, forward, target, batch, last)
            matched = (f - h).square().mean() + penalty
        inverted = (inverse(target) - x_T.detach()).square().mean()
        with torch.no_grad():
            x_T_of_truth = inverse(batch.x0)
        _, truth = estimates(self.network, x_T_of_truth, steps, steps - 1)
        distilled = matched + inverted + (truth - batch.x0).square().mean()
        if mean is forward:
            return distilled
        return self._distance(mean, batch.x0) + self._config.perceptual_weight * distilled

    def _distance(self, estimate: Tensor, target: Tensor) -> Tensor:
        return distance(estimate, target, self._config.norm).mean()

    def _guide(
        self, x_t: Tensor, x0: Tensor, target: Tensor, batch: _Batch, index: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Guide the samples whose t is among the configured ones; see :func:`guidance.guide`."""
        guidance, guidance_loss = self._config.guidance, self._guidance_loss
        assert guidance_loss is not None, "only then is a batch guided"
        steps = guidance.timesteps or range(1, self._schedule.steps + 1)
        acts = torch.isin(index + 1, torch.tensor(steps, device=index.device)).to(x0)

        def loss(estimate: Tensor) -> Tensor:
            # In half precision most of this gradient would be lost: it is of the order 1 / pixels.
            with torch.autocast(estimate.device.type, enabled=False):
                sr = self._space.decode(estimate.float())
                return guidance_loss(sr, batch.hr.float()) * acts

        return guide(x_t, x0, target, batch.y, self._eta_of(index).to(x_t), loss, guidance)

    def _eta_of(self, index: Tensor) -> Tensor:
        """eta_t of each sample, ``(B, 1, 1, 1)`` float32."""
        eta = torch.from_numpy(self._schedule.eta).float().to(index.device)
        return eta[index].view(-1, 1, 1, 1)


def distance(a: Tensor, b: Tensor, norm: str) -> Tensor:
    """How far ``a`` is from ``b``, for each sample: ``(B, C, h, w)`` -> ``(B,)``.

    "l1": mean |a - b|; "l2": mean (a - b)^2; "psnr": its decimal logarithm, -PSNR / 10.
    """
    difference = a - b
    if norm == "l1":
        return difference.abs().mean(dim=(1, 2, 3))
    squared = difference.square().mean(dim=(1, 2, 3))
    return (squared + _ROUNDING).log10() if norm == "psnr" else squared


def build_loss(
    config: TrainConfig,
    device: torch.device,
    *,
    autoencoder: VQAutoencoder | None = None,
    vgg: Path | None = None,
    sam: Path | None = None,
    teacher: nn.Module | None = None,
) -> Callable[[nn.Module], TrainingLoss]:
    """What the run minimises, as a function of its network.

    ``vgg`` and ``sam`` are files, see :class:`difiisr_training.guidance.GuidanceLoss`; ``teacher``
    is the frozen network to distil. ValueError: the run needs what is not given, or has no use for
    a teacher.
    """
    if (config.stage == "distillation") != (teacher is not None):
        wanted = "has no teacher" if teacher else "needs a teacher, --teacher RUN"
        raise ValueError(f"stage {config.stage!r} {wanted}")
    space: PackedSpace | LatentSpace = PackedSpace()
    if config.published is not None:
        if autoencoder is None:
            raise ValueError("the published network needs --autoencoder DIR: it works in latents")
        space = LatentSpace(autoencoder.to(device))
    is_guided = config.guidance.kind != "none"
    loss = GuidanceLoss(config.guidance, vgg, sam).to(device) if is_guided else None
    return partial(TrainingLoss, config=config, space=space, guidance_loss=loss, teacher=teacher)
