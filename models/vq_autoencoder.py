"""VQGAN f4: the autoencoder of the published model, from images to latents a quarter their size.

Shapes below use B = batch, Z = ``latent_channels``, K = ``codes``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difiisr_models.blocks import GroupNorm

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

    Raises:
        ValueError: a size that no network can have, with the number.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4)
    blocks: int = 2
    latent_channels: int = 3
    codes: int = 8192

    def __post_init__(self) -> None:
        sizes = (self.channels, *self.multipliers, self.blocks, self.latent_channels, self.codes)
        if not self.multipliers or min(sizes) < 1:
            raise ValueError(f"all sizes of an autoencoder must be at least 1, got {self}")
        if self.channels % 32:
            raise ValueError(f"channels must be a multiple of 32, got {self.channels}")

    @property
    def factor(self) -> int:
        """Image side over latent side (4 as published)."""
        return 2 ** (len(self.multipliers) - 1)


def swish(x: Tensor) -> Tensor:
    """x sigmoid(x) in two roundings, as the published network was computed (see ``attend``)."""
    return x * torch.sigmoid(x)


class ResBlock(nn.Module):
    """Two normalised convolutions around an identity, or a 1x1 convolution, as skip."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm_in = GroupNorm(channels_in, EPS)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm_out = GroupNorm(channels_out, EPS)
        self.conv_out = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        same = channels_in == channels_out
        self.skip = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) -> (B, C_out, h, w)."""
        h = self.conv_in(swish(self.norm_in(x)))
        return self.skip(x) + self.conv_out(swish(self.norm_out(h)))


class Attention(nn.Module):
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


class Middle(nn.Module):
    """Residual block, attention, residual block, at the lowest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_in = ResBlock(channels, channels)
        self.attention = Attention(channels)
        self.block_out = ResBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return self.block_out(self.attention(self.block_in(x)))


class EncoderLevel(nn.Module):
    """Residual blocks, then, but at the lowest level, a convolution of stride 2."""

    def __init__(self, channels_in: int, channels: int, blocks: int, down: bool) -> None:
        super().__init__()
        inputs = [channels_in, *[channels] * (blocks - 1)]
        self.blocks = nn.ModuleList(ResBlock(c, channels) for c in inputs)
        self.down = nn.Conv2d(channels, channels, 3, stride=2) if down else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) -> (B, C, h/2, w/2), or (B, C, h, w) at the lowest level."""
        for block in self.blocks:
            x = block(x)
        # One zero row and column, below and to the right only.
        return x if self.down is None else self.down(F.pad(x, (0, 1, 0, 1)))


class DecoderLevel(nn.Module):
    """Residual blocks, then, but at the highest level, doubling and a convolution."""

    def __init__(self, channels_in: int, channels: int, blocks: int, up: bool) -> None:
        super().__init__()
        inputs = [channels_in, *[channels] * (blocks - 1)]
        self.blocks = nn.ModuleList(ResBlock(c, channels) for c in inputs)
        self.up = nn.Conv2d(channels, channels, 3, padding=1) if up else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) -> (B, C, 2h, 2w), or (B, C, h, w) at the highest level."""
        for block in self.blocks:
            x = block(x)
        if self.up is None:
            return x
        return self.up(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Encoder(nn.Module):
    """(B, 3, f h, f w) image -> (B, Z, h, w) features, f = ``config.factor``."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        channels = [config.channels * m for m in (1, *config.multipliers)]
        lowest = len(config.multipliers) - 1
        self.stem = nn.Conv2d(3, config.channels, 3, padding=1)
        self.levels = nn.ModuleList(
            EncoderLevel(channels[i], channels[i + 1], config.blocks, down=i < lowest)
            for i in range(lowest + 1)
        )
        self.middle = Middle(channels[-1])
        self.norm_out = GroupNorm(channels[-1], EPS)
        self.conv_out = nn.Conv2d(channels[-1], config.latent_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        x = self.stem(image)
        for level in self.levels:
            x = level(x)
        return self.conv_out(swish(self.norm_out(self.middle(x))))


class Decoder(nn.Module):
    """(B, Z, h, w) features -> (B, 3, f h, f w) image, f = ``config.factor``."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        # Lowest resolution first: the order in which the levels run.
        channels = [config.channels * m for m in reversed(config.multipliers)]
        highest = len(channels) - 1
        self.stem = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.middle = Middle(channels[0])
        self.levels = nn.ModuleList(
            DecoderLevel(channels[max(i - 1, 0)], channels[i], config.blocks + 1, up=i < highest)
            for i in range(highest + 1)
        )
        self.norm_out = GroupNorm(channels[-1], EPS)
        self.conv_out = nn.Conv2d(channels[-1], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """See the class."""
        x = self.middle(self.stem(z))
        for level in self.levels:
            x = level(x)
        return self.conv_out(swish(self.norm_out(x)))


def nearest_codes(z: Tensor, codebook: Tensor) -> Tensor:
    """Index of the code nearest to each latent pixel; the first of equals.

    Distances are float32, for 1024 codes at a time: 4 KiB per latent pixel.

    Args:
        z: (M, Z) latent pixels.
        codebook: (K, Z).

    Returns:
        (M,) int64 in [0, K).
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
    """Encoder, codebook and decoder; see :class:`VQConfig` for the sizes.

    Norms, attention and code distances run in float32 also under autocast.
    """

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        z = config.latent_channels
        self.encoder = Encoder(config)
        self.to_latent = nn.Conv2d(z, z, 1)
        self.codebook = nn.Parameter(torch.empty(config.codes, z).uniform_(-1.0, 1.0))
        self.from_latent = nn.Conv2d(z, z, 1)
        self.decoder = Decoder(config)

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
