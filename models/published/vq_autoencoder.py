"""VQGAN f4: the autoencoder of the published model, from images to latents a quarter their size.

Shapes below use B = batch, Z = ``latent_channels``, K = ``codes``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from difiisr_models.published.residual_block import GroupNorm, ResBlock, check_sizes, named

EPS = 1e-6
CODES_AT_ONCE = 1024  # distances in memory at a time: this many per latent pixel
LOGITS_AT_ONCE = 1 << 24  # attention logits in memory at a time, per image


@dataclass(frozen=True)
class VQConfig:
    """Sizes of a :class:`VQAutoencoder`; the defaults are the published model's (55,322,782).

    Attributes:
        channels: features at full resolution, a multiple of 32.
        multipliers: features of each level over ``channels``; each but the first halves the size.
        blocks: residual blocks per level of the encoder (the decoder has one more).
        latent_channels: Z, channels of the latent and of a code.
        codes: K, entries of the codebook.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4)
    blocks: int = 2
    latent_channels: int = 3
    codes: int = 8192

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.channels % 32:
            raise ValueError(f"channels must be a multiple of 32, got {self.channels}")

    @property
    def factor(self) -> int:
        """Image side over latent side (4 as published)."""
        return 2 ** (len(self.multipliers) - 1)


class Swish(nn.Module):
    """x sigmoid(x) in two roundings, as the published network was computed (see ``attend``)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        return x * torch.sigmoid(x)


def _res_block(channels_in: int, channels_out: int) -> ResBlock:
    return ResBlock(channels_in, channels_out, EPS, Swish())


class PixelAttention(nn.Module):
    """Residual single-head attention over all pixels, its products and softmax in float32."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, EPS)
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        normed = self.norm(x)
        q, k, v = (conv(normed).float().flatten(2) for conv in (self.query, self.key, self.value))
        with torch.autocast(x.device.type, enabled=False):
            y = attend(q, k, v)
        return x + self.project(y.reshape(x.shape).to(x.dtype))


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention, (B, C, N) three times -> (B, C, N), N = pixels.

    Logits are formed for so many queries at a time that they take 64 MiB per image. Products are
    in the order of the reference: another order, such as a fused attention's, changes last bits,
    and with them which of two equally near codes a latent pixel is given.
    """
    channels, pixels = key.shape[1:]
    parts = []
    for part in query.split(max(LOGITS_AT_ONCE // pixels, 1), dim=2):
        logits = part.transpose(1, 2) @ key * channels**-0.5
        parts.append(value @ logits.softmax(dim=2).transpose(1, 2))
    return torch.cat(parts, dim=2)


def _middle(channels: int) -> nn.Sequential:
    """What works at the lowest resolution."""
    return named(
        block_in=_res_block(channels, channels),
        attention=PixelAttention(channels),
        block_out=_res_block(channels, channels),
    )


def _level(channels_in: int, channels: int, blocks: int, end: str) -> nn.Sequential:
    """Residual blocks, then half the size (``end``: "down"), twice the size ("up"), or neither."""
    inputs = [channels_in, *[channels] * (blocks - 1)]
    parts: dict[str, nn.Module] = {
        "blocks": nn.Sequential(*(_res_block(c, channels) for c in inputs))
    }
    if end == "down":
        parts["border"] = nn.ZeroPad2d((0, 1, 0, 1))  # below and to the right only
        parts["down"] = nn.Conv2d(channels, channels, 3, stride=2)
    elif end == "up":
        parts["enlarge"] = nn.Upsample(scale_factor=2.0)
        parts["up"] = nn.Conv2d(channels, channels, 3, padding=1)
    return named(**parts)


def _levels(inputs: list[int], outputs: list[int], blocks: int, end: str) -> nn.Sequential:
    """Levels in the order they run; the last is not followed by a change of size."""
    ends = [end] * (len(outputs) - 1) + [""]
    return nn.Sequential(
        *(_level(i, o, blocks, end) for i, o, end in zip(inputs, outputs, ends, strict=True))
    )


def nearest_codes(z: Tensor, codebook: Tensor) -> Tensor:
    """Pixels (M, Z), codebook (K, Z) -> index (M,) int64 of the nearest code, the first of equals.

    Distances are float32, for 1024 codes at a time: 4 KiB per latent pixel.
    """
    with torch.autocast(z.device.type, enabled=False):
        z, codebook = z.float(), codebook.float()
        squares = z.square().sum(dim=1, keepdim=True)
        nearest = torch.zeros(z.shape[0], dtype=torch.int64, device=z.device)
        best = torch.full_like(squares[:, 0], torch.inf)
        for start in range(0, codebook.shape[0], CODES_AT_ONCE):
            part = codebook[start : start + CODES_AT_ONCE]
            distance, index = (squares + part.square().sum(dim=1) - 2 * z @ part.T).min(dim=1)
            nearest = torch.where(distance < best, start + index, nearest)
            best = torch.minimum(distance, best)
    return nearest


class VQAutoencoder(nn.Module):
    """Encoder, codebook and decoder.

    Norms, attention and code distances run in float32 also under autocast.
    """

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config, z, blocks = config, config.latent_channels, config.blocks
        channels = [config.channels * m for m in config.multipliers]
        first, last = channels[0], channels[-1]
        self.encoder = named(
            stem=nn.Conv2d(3, config.channels, 3, padding=1),
            levels=_levels([config.channels, *channels[:-1]], channels, blocks, "down"),
            middle=_middle(last),
            norm_out=GroupNorm(last, EPS),
            swish=Swish(),
            conv_out=nn.Conv2d(last, z, 3, padding=1),
        )
        self.to_latent = nn.Conv2d(z, z, 1)
        self.codebook = nn.Parameter(torch.empty(config.codes, z).uniform_(-1.0, 1.0))
        self.from_latent = nn.Conv2d(z, z, 1)
        channels.reverse()  # lowest resolution first
        self.decoder = named(
            stem=nn.Conv2d(z, last, 3, padding=1),
            middle=_middle(last),
            levels=_levels([last, *channels[:-1]], channels, blocks + 1, "up"),
            norm_out=GroupNorm(first, EPS),
            swish=Swish(),
            conv_out=nn.Conv2d(first, 3, 3, padding=1),
        )

    def encode(self, image: Tensor) -> Tensor:
        """(B, 3, f h, f w) image in [-1, 1] -> (B, Z, h, w) latent before quantisation."""
        return self.to_latent(self.encoder(image))

    def quantise(self, z: Tensor) -> Tensor:
        """(B, Z, h, w) -> (B, Z, h, w): each pixel replaced by its nearest code."""
        b, channels, h, w = z.shape
        index = nearest_codes(z.permute(0, 2, 3, 1).reshape(-1, channels), self.codebook)
        codes = self.codebook[index].reshape(b, h, w, channels).permute(0, 3, 1, 2)
        return z + (codes - z)  # rounded as the published decoder was given its codes

    def decode(self, z: Tensor) -> Tensor:
        """(B, Z, h, w) latent, quantised here -> (B, 3, f h, f w) image around [-1, 1]."""
        return self.decoder(self.from_latent(self.quantise(z)))
