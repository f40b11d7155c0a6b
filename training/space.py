"""The space that diffusion runs in: packed pixels (compact model) or latents (published model)."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difiisr_models.compact import CompactNetwork
from difiisr_models.resample import SCALE, pack, unpack, upsample
from difiisr_models.swin_unet import SwinUNet
from difiisr_models.vq_autoencoder import VQAutoencoder


class DiffusionSpace(Protocol):
    """Between one-channel images in [-1, 1] and the x_0, y that the diffusion works on."""

    def encode(self, hr: Tensor) -> Tensor:
        """``(B, 1, 4h, 4w)`` -> x_0 ``(B, C, h, w)``."""
        ...

    def shift_target(self, lr: Tensor) -> Tensor:
        """``(B, 1, h, w)`` -> y ``(B, C, h, w)``, the upsampled frame in this space."""
        ...

    def estimates(
        self, network: nn.Module, scaled: Tensor, y: Tensor, lr: Tensor, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Posterior mean and perceptual sample of x_0, both ``(B, C, h, w)``.

        ``scaled`` is x_t / sqrt(kappa^2 eta_t + 1), ``index (B,)`` the step counted from 0. A
        network without a fidelity knob returns the same tensor twice.
        """
        ...

    def decode(self, x0: Tensor) -> Tensor:
        """x_0 ``(B, C, h, w)`` -> ``(B, 1, 4h, 4w)``, with gradient."""
        ...


class PackedSpace:
    """Pixels themselves, 4x4 of them as channels: the compact network."""

    def encode(self, hr: Tensor) -> Tensor:
        """See :class:`DiffusionSpace`."""
        return pack(hr)

    def shift_target(self, lr: Tensor) -> Tensor:
        """See :class:`DiffusionSpace`."""
        return upsample(lr)

    def estimates(
        self, network: CompactNetwork, scaled: Tensor, y: Tensor, lr: Tensor, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :class:`DiffusionSpace`."""
        mean, detail = network.estimates(scaled, y, lr, index)
        return mean, mean + detail

    def decode(self, x0: Tensor) -> Tensor:
        """See :class:`DiffusionSpace`."""
        return unpack(x0)


class LatentSpace:
    """Latents of the frozen autoencoder: the published network, fed three equal channels."""

    def __init__(self, autoencoder: VQAutoencoder) -> None:
        self._autoencoder = autoencoder.eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, hr: Tensor) -> Tensor:
        """See :class:`DiffusionSpace`."""
        return self._autoencoder.encode(hr.expand(-1, 3, -1, -1))

    @torch.no_grad()
    def shift_target(self, lr: Tensor) -> Tensor:
        """See :class:`DiffusionSpace`."""
        return self.encode(F.interpolate(lr, scale_factor=float(SCALE), mode="bicubic"))

    def estimates(
        self, network: SwinUNet, scaled: Tensor, y: Tensor, lr: Tensor, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :class:`DiffusionSpace`."""
        x0 = network(scaled, index, lr.expand(-1, 3, -1, -1))
        return x0, x0

    def decode(self, x0: Tensor) -> Tensor:
        """See :class:`DiffusionSpace`; the gradient passes the quantisation straight through."""
        coder = self._autoencoder
        quantised = x0 + (coder.quantise(x0) - x0).detach()
        return coder.decoder(coder.from_latent(quantised)).mean(dim=1, keepdim=True)
