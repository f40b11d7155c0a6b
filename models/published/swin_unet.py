"""The denoiser of ResShift, SinSR and DifIISR: a UNet of residual blocks with Swin stages.

It predicts x_0 from x_t ("xstart"), told the step t and the low-resolution image, which is as
large as the latent. Shapes below use B = batch, C = channels, E = ``swin_channels``, N = tokens of
a window (its side squared), n = number of windows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difiisr_models.diffusion import timestep_embedding
from difiisr_models.published.residual_block import GroupNorm, ResBlock, check_sizes, named

EPS = 1e-5
MASKED = -100.0


@dataclass(frozen=True)
class SwinUNetConfig:
    """Sizes of a :class:`SwinUNet`; the defaults are the published model's (118,593,583).

    Attributes:
        channels: features of the first level, a multiple of 32.
        multipliers: features of each level over ``channels``; each level halves the resolution.
        blocks: residual blocks per level on the way down (one more on the way up).
        swin_channels: features E inside the Swin stages, a multiple of 32 and of ``heads``.
        heads: of the attention.
        swin_depth: Swin blocks per stage; every second one looks through shifted windows.
        mlp_ratio: hidden features of a Swin block's MLP over E.
        window: side of an attention window.
        latent_size: side of the latent that the network was built for. A level whose share of
            it is one window does not shift, whatever size it is given later.
    """

    channels: int = 160
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    blocks: int = 2
    swin_channels: int = 192
    heads: int = 6
    swin_depth: int = 2
    mlp_ratio: int = 4
    window: int = 8
    latent_size: int = 64

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.channels % 32 or self.swin_channels % 32 or self.swin_channels % self.heads:
            raise ValueError(
                "channels and swin_channels must be multiples of 32, swin_channels also of heads, "
                f"got {self}"
            )
        if self.latent_size < self.stride:
            raise ValueError(
                f"latent_size must be at least {self.stride}: one window at the lowest level, "
                f"got {self}"
            )

    @property
    def stride(self) -> int:
        """Height and width of an input must be multiples of this (64 as published)."""
        return self.window * 2 ** (len(self.multipliers) - 1)


def to_windows(x: Tensor, window: int) -> Tensor:
    """(B, C, h, w) -> (B, n, N, C), windows in row-major order."""
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // window, window, w // window, window)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, window * window, c)


def from_windows(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """(B, n, N, C) -> (B, C, height, width); undoes :func:`to_windows`."""
    b, _, _, c = x.shape
    x = x.reshape(b, height // window, width // window, window, window, c)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, c, height, width)


def shift_mask(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """(n, N, N) float32 added to the logits of windows shifted by half: 0, or -100 to part a pair.

    A Swin Transformer parts the pairs that the cyclic shift made neighbours. The published
    networks were trained with another mask, and their weights need it: it is zero but in the
    lowest row of windows, where it parts the left half of each window from the right half.
    """
    right = torch.arange(window, device=device).repeat(window) >= window // 2
    parted = MASKED * (right[:, None] != right[None, :]).float()
    per_row, rows = width // window, height // window
    return F.pad(parted.expand(per_row, -1, -1), (0, 0, 0, 0, per_row * (rows - 1), 0))


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learned bias per relative position."""

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(channels, 3 * channels)
        self.position_bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.project = nn.Linear(channels, channels)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, n, N, C) and an optional (n, N, N) mask -> (B, n, N, C)."""
        b, n, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(b, n, tokens, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)  # each (B, n, heads, N, C / heads)
        q = q * (channels // self.heads) ** -0.5
        # The bias of each pair of tokens, by how far they lie apart: (N, N, heads).
        position = torch.arange(self.window, device=x.device)
        offset = position[:, None] - position[None, :] + self.window - 1
        index = (2 * self.window - 1) * offset[:, None, :, None] + offset[None, :, None, :]
        bias = self.position_bias.float()[index.reshape(tokens, tokens)]
        logits = (q @ k.transpose(-2, -1)).float() + bias.permute(2, 0, 1)
        if mask is not None:
            logits = logits + mask[:, None]
        y = logits.softmax(dim=-1).to(v.dtype) @ v
        return self.project(y.transpose(2, 3).reshape(b, n, tokens, channels))


class SwinBlock(nn.Module):
    """Pre-norm window attention and MLP, both residual."""

    def __init__(self, config: SwinUNetConfig, shifted: bool) -> None:
        super().__init__()
        channels, self.window = config.swin_channels, config.window
        self.shift = self.window // 2 if shifted else 0
        self.norm_attention = GroupNorm(channels, EPS)
        self.attention = WindowAttention(channels, config.heads, config.window)
        self.norm_mlp = GroupNorm(channels, EPS)
        self.mlp_in = nn.Conv2d(channels, config.mlp_ratio * channels, 1)
        self.mlp_out = nn.Conv2d(config.mlp_ratio * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, E, h, w) -> (B, E, h, w)."""
        (h, w), mask, y = x.shape[-2:], None, self.norm_attention(x)
        if self.shift:
            mask = shift_mask(h, w, self.window, x.device)
            y = y.roll((-self.shift, -self.shift), dims=(2, 3))
        y = from_windows(self.attention(to_windows(y, self.window), mask), self.window, h, w)
        if self.shift:
            y = y.roll((self.shift, self.shift), dims=(2, 3))
        x = x + y
        return x + self.mlp_out(F.gelu(self.mlp_in(self.norm_mlp(x))))


def _swin_stage(channels: int, config: SwinUNetConfig, level: int) -> nn.Sequential:
    """Swin blocks between two 1x1 convolutions; the stage as a whole is not residual."""
    shifts = (config.latent_size >> level) > config.window
    blocks = (SwinBlock(config, shifts and i % 2 == 1) for i in range(config.swin_depth))
    return named(
        enter=nn.Conv2d(channels, config.swin_channels, 1),
        blocks=nn.Sequential(*blocks),
        leave=nn.Conv2d(config.swin_channels, channels, 1),
    )


def _res_block(channels_in: int, channels_out: int, config: SwinUNetConfig) -> ResBlock:
    return ResBlock(channels_in, channels_out, EPS, F.silu, 4 * config.channels)


class DownLevel(nn.Module):
    """Residual blocks, a Swin stage after the first, then a strided convolution but at the end."""

    def __init__(self, channels_in: int, level: int, config: SwinUNetConfig) -> None:
        super().__init__()
        channels = config.channels * config.multipliers[level]
        inputs = [channels_in, *[channels] * (config.blocks - 1)]
        self.blocks = nn.ModuleList(_res_block(c, channels, config) for c in inputs)
        self.swin = _swin_stage(channels, config, level)
        last = level == len(config.multipliers) - 1
        self.down = None if last else nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> list[Tensor]:
        """(B, C_in, h, w) -> what the way up will need, the last being the input of what follows.

        ``blocks`` tensors (B, C, h, w), then one (B, C, h/2, w/2) unless this is the last level.
        """
        first, *others = self.blocks
        outputs = [self.swin(first(x, time))]
        for block in others:
            outputs.append(block(outputs[-1], time))
        return outputs if self.down is None else [*outputs, self.down(outputs[-1])]


class UpLevel(nn.Module):
    """Residual blocks that each take one skip, a Swin stage after the first, then doubling."""

    def __init__(
        self, channels_in: int, skips: list[int], level: int, config: SwinUNetConfig
    ) -> None:
        super().__init__()
        channels = config.channels * config.multipliers[level]
        inputs = [channels_in, *[channels] * config.blocks]
        self.blocks = nn.ModuleList(
            _res_block(c + skip, channels, config) for c, skip in zip(inputs, skips, strict=True)
        )
        self.swin = _swin_stage(channels, config, level)
        self.up = nn.Conv2d(channels, channels, 3, padding=1) if level else None

    def forward(self, x: Tensor, skips: list[Tensor], time: Tensor) -> Tensor:
        """(B, C_in, h, w), ``blocks + 1`` skips -> (B, C, 2h, 2w), or (B, C, h, w) at the top."""
        for i, (block, skip) in enumerate(zip(self.blocks, skips, strict=True)):
            x = block(torch.cat((x, skip), dim=1), time)
            if i == 0:
                x = self.swin(x)
        if self.up is None:
            return x
        return self.up(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class SwinUNet(nn.Module):
    """UNet whose every level has Swin stages; norms and softmax run in float32 also under autocast.

    There is no branch on the data, so the network can be exported for a fixed input size.
    """

    def __init__(self, config: SwinUNetConfig) -> None:
        super().__init__()
        self.config = config
        self.time_in = nn.Linear(config.channels, 4 * config.channels)
        self.time_out = nn.Linear(4 * config.channels, 4 * config.channels)
        channels, lowest = config.channels * config.multipliers[0], len(config.multipliers) - 1
        self.stem = nn.Conv2d(6, channels, 3, padding=1)
        skips = [channels]
        self.down_levels = nn.ModuleList()
        for level, multiplier in enumerate(config.multipliers):
            self.down_levels.append(DownLevel(channels, level, config))
            channels = config.channels * multiplier
            skips += [channels] * (config.blocks + (level < lowest))
        self.mid_in = _res_block(channels, channels, config)
        self.mid_swin = _swin_stage(channels, config, lowest)
        self.mid_out = _res_block(channels, channels, config)
        self.up_levels = nn.ModuleList()  # in the order they run: the lowest resolution first
        for level in range(lowest, -1, -1):
            taken = [skips.pop() for _ in range(config.blocks + 1)]
            self.up_levels.append(UpLevel(channels, taken, level, config))
            channels = config.channels * config.multipliers[level]
        self.norm_out = GroupNorm(channels, EPS)
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x_t_scaled: Tensor, t: Tensor, lq: Tensor) -> Tensor:
        """Predict the latent x_0 (B, 3, h, w); h and w are multiples of ``config.stride``.

        Args:
            x_t_scaled: (B, 3, h, w) latent x_t over sqrt(kappa^2 eta_t + 1).
            t: (B,) int64 steps counted from 0 (T - 1 is the paper's T).
            lq: (B, 3, h, w) low-resolution image in [-1, 1].
        """
        h, w = x_t_scaled.shape[-2:]
        if h % self.config.stride or w % self.config.stride:
            raise ValueError(f"sides must be multiples of {self.config.stride}, got {h}x{w}")
        time = timestep_embedding(t, self.config.channels)
        time = self.time_out(F.silu(self.time_in(time)))
        x = self.stem(torch.cat((x_t_scaled, lq), dim=1))
        skips = [x]
        for level in self.down_levels:
            skips += level(skips[-1], time)
        x = self.mid_out(self.mid_swin(self.mid_in(skips[-1], time)), time)
        for level in self.up_levels:
            x = level(x, [skips.pop() for _ in range(self.config.blocks + 1)], time)
        return self.conv_out(F.silu(self.norm_out(x)))
