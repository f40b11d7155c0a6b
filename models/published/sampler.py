"""The published DifIISR model as a frame model: encode, sample in the latent, decode, average."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from difiisr_models.compact import parameter_count
from difiisr_models.diffusion import NoiseSource, Schedule, ancestral_step, prior_sample, respace
from difiisr_models.frame_model import FrameModel
from difiisr_models.plausibility import EstimateLimits
from difiisr_models.published.swin_unet import SwinUNet
from difiisr_models.published.vq_autoencoder import VQAutoencoder
from difiisr_models.resample import pack
from difiisr_models.settings import SMALLEST_OWN_TILE


class PublishedModel(FrameModel):
    """Swin-UNet and VQ autoencoder on one-channel tiles.

    Args:
        unet: the denoiser.
        autoencoder: its codec, on the same device.
        schedule: all T levels that the denoiser was trained with.
        autocast: dtype of the networks' convolutions and products (torch.bfloat16 or
            torch.float16), or None for float32 throughout. The sampler's own arithmetic, norms,
            softmax and code distances are float32 always.
        limits: of its estimates.
    """

    input_limit = 1.0  # of the 8-bit images that the networks were trained with
    own_tile = SMALLEST_OWN_TILE  # as published

    def __init__(
        self,
        unet: SwinUNet,
        autoencoder: VQAutoencoder,
        schedule: Schedule,
        autocast: torch.dtype | None = None,
        limits: EstimateLimits = EstimateLimits(),
    ) -> None:
        self.unet, self.autoencoder = unet, autoencoder
        self.schedule, self.autocast, self.limits = schedule, autocast, limits
        self.multiple = unet.config.stride
        self.max_steps = schedule.steps
        self.noise_channels = autoencoder.config.latent_channels
        self.parameter_count = parameter_count(unet) + parameter_count(autoencoder)

    @torch.inference_mode()
    def super_resolve(
        self,
        lr: Tensor,
        noise: NoiseSource,
        steps: int,
        fidelity: float | Tensor = 1.0,
        past: Tensor | None = None,
    ) -> Tensor:
        """See ``frame_model.FrameModel``: three equal channels in, the mean of three out.

        The sides of ``lr`` are multiples of ``multiple`` (64), its values in [-1, 1]; ``steps`` is
        1 as published for DifIISR, T for ResShift's full chain, or any in between; there is no
        fidelity to choose. If half precision overflows, the batch is computed again in float32.
        """
        with torch.autocast(lr.device.type, self.autocast, self.autocast is not None):
            image = self.generate(lr, noise, steps)
        if self.autocast is not None and not bool(torch.isfinite(image).all()):
            image = self.generate(lr, noise, steps)
        return pack(image)

    def generate(self, lr: Tensor, noise: NoiseSource, steps: int) -> Tensor:
        """Tiles (B, 1, h, w) -> images (B, 1, 4h, 4w) float32, in the precision of the caller."""
        latent = self.sample_latent(lr.expand(-1, 3, -1, -1), noise, steps)
        return self.autoencoder.decode(latent).float().mean(dim=1, keepdim=True)

    def sample_latent(self, lq: Tensor, noise: NoiseSource, steps: int) -> Tensor:
        """``lq (B, 3, h, w)`` in [-1, 1] -> x_0, a float32 latent of its size, unquantised."""
        schedule = respace(self.schedule, steps)
        scale = float(self.autoencoder.config.factor)
        image = F.interpolate(lq, scale_factor=scale, mode="bicubic", align_corners=False)
        y = self.autoencoder.encode(image).float()
        x_t = prior_sample(y, noise(0).to(y), schedule)
        for k, t in enumerate(range(schedule.steps, 0, -1), start=1):
            step = torch.full((lq.shape[0],), int(schedule.timesteps[t - 1]), device=lq.device)
            x0 = self.unet(x_t / input_deviation(t, schedule), step, lq).float()
            if t > 1:
                x_t = ancestral_step(x_t, x0, t, schedule, noise(k).to(y))
        return x0


def input_deviation(t: int, schedule: Schedule) -> float:
    """sqrt(kappa^2 eta_t + 1), rounded as the reference rounds it: float32 at every operation.

    One last bit here, or a product with the inverse, can change which of two equally near codes
    a latent pixel is given.
    """
    eta = torch.tensor(schedule.eta_at(t), dtype=torch.float32)
    return float((eta * schedule.kappa**2 + 1.0).sqrt())
