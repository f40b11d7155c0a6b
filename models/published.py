"""The published DifIISR model on one-channel tiles: pad, encode, sample, decode, average."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from difiisr_models import diffusion
from difiisr_models.schedule import Schedule, respace
from difiisr_models.swin_unet import SwinUNet
from difiisr_models.vq_autoencoder import VQAutoencoder
from torch import Tensor, nn

ShapedNoise = Callable[[int, tuple[int, ...]], Tensor]
"""``noise(k, shape)`` -> the k-th standard normal draw of a sampling run; k = 0 is x_T's."""


def reflect_index(size: int, padded: int) -> Tensor:
    """(padded,) int64 source index of each position of an axis padded at its end.

    Reflects about the first and last pixel as often as needed; one pixel alone is repeated.
    """
    period = max(2 * (size - 1), 1)
    index = torch.arange(padded) % period
    return torch.where(index < size, index, period - index)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """(B, C, h, w) -> (B, C, h', w'): reflected below and right up to multiples of ``multiple``."""
    for dim in (2, 3):
        size = x.shape[dim]
        padded = -(-size // multiple) * multiple
        if padded > size:
            x = x.index_select(dim, reflect_index(size, padded).to(x.device))
    return x


class PublishedModel(nn.Module):
    """Swin-UNet and VQ autoencoder, sampled in the latent space.

    Args:
        unet: the denoiser.
        autoencoder: its codec; its factor is the scale.
        schedule: all T levels that the denoiser was trained with.
        autocast: dtype of the networks' convolutions and products (torch.bfloat16 or
            torch.float16), or None for float32 throughout. The sampler's own arithmetic, norms,
            softmax and code distances are float32 always.
    """

    def __init__(
        self,
        unet: SwinUNet,
        autoencoder: VQAutoencoder,
        schedule: Schedule,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.autoencoder = autoencoder
        self.schedule = schedule
        self.autocast = autocast

    @property
    def scale(self) -> int:
        """Output side over input side (4)."""
        return self.autoencoder.config.factor

    @torch.inference_mode()
    def super_resolve(self, lr_tile: Tensor, noise: ShapedNoise, steps: int = 1) -> Tensor:
        """Raise a batch of tiles by the scale.

        Args:
            lr_tile: (B, 1, h, w) float32, the range of interest at [-1, 1]; any h, w >= 1.
            noise: draws for latents of shape (B, 3, h', w'), h' and w' being h and w raised to
                multiples of the UNet's stride (64).
            steps: 1 as published for DifIISR, T for ResShift's full chain, or any in between.

        Returns:
            (B, 1, 4h, 4w) float32, not clamped. If half precision overflows, the batch is
            computed again in float32.

        Raises:
            ValueError: the tile has not one channel, or ``steps`` is outside 1..T.
        """
        if lr_tile.ndim != 4 or lr_tile.shape[1] != 1:
            raise ValueError(f"expected tiles (B, 1, h, w), got {tuple(lr_tile.shape)}")
        h, w = lr_tile.shape[2:]
        lq = pad_to_multiple(lr_tile.float(), self.unet.config.stride).expand(-1, 3, -1, -1)
        image = self._generate(lq, noise, steps, self.autocast)
        if self.autocast is not None and not bool(torch.isfinite(image).all()):
            image = self._generate(lq, noise, steps, None)
        return image.mean(dim=1, keepdim=True)[:, :, : h * self.scale, : w * self.scale]

    def _generate(
        self, lq: Tensor, noise: ShapedNoise, steps: int, autocast: torch.dtype | None
    ) -> Tensor:
        """(B, 3, h, w) -> (B, 3, 4h, 4w) float32."""
        with nullcontext() if autocast is None else torch.autocast(lq.device.type, autocast):
            return self.autoencoder.decode(self.sample_latent(lq, noise, steps)).float()

    def sample_latent(self, lq: Tensor, noise: ShapedNoise, steps: int) -> Tensor:
        """Encode the bicubic image and sample x_0.

        Args:
            lq: (B, 3, h, w) in [-1, 1], h and w multiples of the UNet's stride.
            noise: draws of the latent's shape.
            steps: 1..T.

        Returns:
            (B, 3, h, w) float32 latent before quantisation.
        """
        schedule = respace(self.schedule, steps)
        image = F.interpolate(
            lq, scale_factor=float(self.scale), mode="bicubic", align_corners=False
        )
        y = self.autoencoder.encode(image).float()

        def denoise(x_t: Tensor, t: int) -> Tensor:
            step = torch.full((lq.shape[0],), int(schedule.timesteps[t - 1]), device=lq.device)
            return self.unet(x_t * diffusion.latent_input_scale(t, schedule), step, lq).float()

        return diffusion.sample(denoise, y, schedule, lambda k: noise(k, tuple(y.shape)).to(y))
