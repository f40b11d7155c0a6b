"""The published DifIISR model as a frame model, and its authors' own way to run it.

A tile is encoded, sampled in the latent, decoded, and averaged over its three equal channels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from difiisr_models.compact import parameter_count
from difiisr_models.diffusion import NoiseSource, Schedule, ancestral_step, prior_sample, respace
from difiisr_models.frame_model import FrameModel
from difiisr_models.plausibility import EstimateLimits
from difiisr_models.published.swin_unet import SwinUNet
from difiisr_models.published.vq_autoencoder import VQAutoencoder
from difiisr_models.resample import PHASES, pack, unpack
from difiisr_models.settings import SMALLEST_OWN_TILE
from difiisr_models.tiling import Tile, pad_to

CHOP, STRIDE, MULTIPLE = 256, 224, 64
"""Side and distance of tiles, and what sides are padded to a multiple of, low-resolution pixels."""


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


@torch.inference_mode()
def super_resolve_as_published(
    model: FrameModel,
    counts: np.ndarray,
    noise_of: Callable[[list[Tile], tuple[int, ...]], NoiseSource],
    steps: int,
    device: str = "cpu",
) -> np.ndarray:
    """The authors' own way from a frame to its result, to compare with; ours is ``upscaler.py``.

    x / 127.5 - 1 whatever the frame shows, padded by reflection, tiles of 256 every 224, plain
    mean, clipped, rounded. No noise is taken off; nothing makes the result agree with the frame.

    Args:
        model: what super-resolves a tile.
        counts: ``(h, w)`` uint8, or uint16 whose full scale is taken alike; floats have none.
        noise_of: the draws for tiles of a frame of a size, see ``frame_model.FrameModel``.
        steps: diffusion steps.
        device: where the model runs.
    """
    if counts.dtype.kind != "u":
        raise ValueError("pipeline 'published' takes frames of 8 or 16 bit: floats have no scale")
    half = np.float32(np.iinfo(counts.dtype).max / 2)
    frame = torch.from_numpy(counts.astype(np.float32) / half - 1).to(device)[None, None]
    height, width = (side + -side % MULTIPLE for side in counts.shape)
    padded = pad_to(frame, height, width)
    total, count = (torch.zeros(1, n, height, width, device=device) for n in (PHASES, 1))
    for place in published_tiles(height, width):
        noise = noise_of([place], (height, width))
        result = model.super_resolve(place.cut(padded), noise, steps, 1.0)
        place.cut(total)[...] += result
        place.cut(count)[...] += 1
    image = unpack(total / count)[0, 0, : 4 * counts.shape[0], : 4 * counts.shape[1]]
    values = (image.clamp(-1, 1) + 1) * float(half)
    return values.round().cpu().numpy().astype(counts.dtype)


def published_tiles(height: int, width: int) -> list[Tile]:
    """The windows of the reference's chop: every 224 pixels, the last ones flush with the end."""
    rows, columns = (
        [(start, start + CHOP) for start in (*range(0, side - CHOP, STRIDE), side - CHOP)]
        if side > CHOP
        else [(0, side)]
        for side in (height, width)
    )
    return [Tile(*row, *column) for row in rows for column in columns]
