"""The denoiser of ResShift, SinSR and DifIISR: a UNet of residual blocks with Swin stages.

It predicts x_0 from x_t ("xstart"), told the step t and the low-resolution image, which is as
large as the latent. Shapes below use B = batch, C = channels, E = ``swin_channels``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difiisr_models.blocks import GroupNorm, timestep_embedding
from difiisr_models.window_attention import (
    WindowAttention,
    from_windows,
    shift_mask,
    to_windows,
)

EPS = 1e-5


@dataclass(frozen=True)
class SwinUNetConfig:
    """Sizes of a :class:`SwinUNet`; the defaults are the published model's (118,593,583).

    Attributes:
        channels: features of the first level, a multiple of 32.
        multipliers: features of each level over ``channels``; each level halves the resolution.
        blocks: residual blocks per level on the way down (one more on the way up).
        swin_channels: features E inside the Swin stages, a multiple of 32 and of ``heads``.
        heads: attention heads.
        swin_depth: Swin blocks per stage; every second one looks through shifted windows.
        mlp_ratio: hidden features of a Swin block's MLP over E.
        window: side of an attention window.
        latent_size: side of the latent that the network was built for. A level whose share of
            it is one window does not shift, whatever size it is given later.

    Raises:
        ValueError: a size that no network can have, with the number.
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
        sizes = (self.channels, *self.multipliers, self.blocks, self.swin_channels, self.heads)
        sizes += (self.swin_depth, self.mlp_ratio, self.window, self.latent_size)
        if not self.multipliers or min(sizes) < 1:
            raise ValueError(f"all sizes of a Swin-UNet must be at least 1, got {self}")
        for name in ("channels", "swin_channels"):
            if getattr(self, name) % 32:
                raise ValueError(f"{name} must be a multiple of 32, got {getattr(self, name)}")
        if self.swin_channels % self.heads:
            raise ValueError(
                f"swin_channels {self.swin_channels} cannot be shared by {self.heads} heads"
            )
        if self.latent_size < self.stride:
            raise ValueError(
                f"latent_size {self.latent_size} is less than one window of {self.window} "
                f"at the lowest of {len(self.multipliers)} levels; it must be at least "
                f"{self.stride}"
            )

    @property
    def stride(self) -> int:
        """Height and width of an input must be multiples of this (64 as published)."""
        return self.window * 2 ** (len(self.multipliers) - 1)


class ResBlock(nn.Module):
    """Two convolutions; the step scales and shifts between them (FiLM)."""

    def __init__(self, channels_in: int, channels_out: int, time_features: int) -> None:
        super().__init__()
        self.norm_in = GroupNorm(channels_in, EPS)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.time_affine = nn.Linear(time_features, 2 * channels_out)
        self.norm_out = GroupNorm(channels_out, EPS)
        self.conv_out = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        same = channels_in == channels_out
        self.skip = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, C_in, h, w), (B, time_features) -> (B, C_out, h, w)."""
        h = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.time_affine(F.silu(time))[..., None, None].chunk(2, dim=1)
        h = self.norm_out(h) * (1 + scale) + shift
        return self.skip(x) + self.conv_out(F.silu(h))


class SwinBlock(nn.Module):
    """Pre-norm window attention and MLP, both residual."""

    def __init__(self, config: SwinUNetConfig, shifted: bool) -> None:
        super().__init__()
        channels = config.swin_channels
        self.window = config.window
        self.shift = config.window // 2 if shifted else 0
        self.norm_attention = GroupNorm(channels, EPS)
        self.attention = WindowAttention(channels, config.heads, config.window)
        self.norm_mlp = GroupNorm(channels, EPS)
        self.mlp_in = nn.Conv2d(channels, config.mlp_ratio * channels, 1)
        self.mlp_out = nn.Conv2d(config.mlp_ratio * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, E, h, w) -> (B, E, h, w)."""
        h, w = x.shape[-2:]
        y = self.norm_attention(x)
        mask = None
        if self.shift:
            y = y.roll((-self.shift, -self.shift), dims=(2, 3))
            mask = shift_mask(h, w, self.window, x.device)
        y = self.attention(to_windows(y, self.window), mask)
        y = from_windows(y, self.window, h, w)
        if self.shift:
            y = y.roll((self.shift, self.shift), dims=(2, 3))
        x = x + y
        return x + self.mlp_out(F.gelu(self.mlp_in(self.norm_mlp(x))))


class SwinStage(nn.Module):
    """Swin blocks between two 1x1 convolutions; the stage as a whole is not residual."""

    def __init__(self, channels: int, config: SwinUNetConfig, level: int) -> None:
        super().__init__()
        shifts = (config.latent_size >> level) > config.window
        self.enter = nn.Conv2d(channels, config.swin_channels, 1)
        self.blocks = nn.ModuleList(
            SwinBlock(config, shifted=shifts and i % 2 == 1) for i in range(config.swin_depth)
        )
        self.leave = nn.Conv2d(config.swin_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        return self.leave(x)


class DownLevel(nn.Module):
    """Residual blocks, a Swin stage after the first, then a strided convolution but at the end."""

    def __init__(self, channels_in: int, level: int, config: SwinUNetConfig) -> None:
        super().__init__()
        channels = config.channels * config.multipliers[level]
        inputs = [channels_in, *[channels] * (config.blocks - 1)]
        self.blocks = nn.ModuleList(ResBlock(c, channels, 4 * config.channels) for c in inputs)
        self.swin = SwinStage(channels, config, level)
        last = level == len(config.multipliers) - 1
        self.down = None if last else nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> list[Tensor]:
        """(B, C_in, h, w) -> what the way up will need, the last being the input of what follows.

        ``blocks`` tensors (B, C, h, w), then one (B, C, h/2, w/2) unless this is the last level.
        """
        outputs = []
        for i, block in enumerate(self.blocks):
            x = block(x, time)
            if i == 0:
                x = self.swin(x)
            outputs.append(x)
        if self.down is not None:
            outputs.append(self.down(x))
        return outputs


class UpLevel(nn.Module):
    """Residual blocks that each take one skip, a Swin stage after the first, then doubling."""

    def __init__(
        self, channels_in: int, skips: list[int], level: int, config: SwinUNetConfig
    ) -> None:
        super().__init__()
        channels = config.channels * config.multipliers[level]
        inputs = [channels_in, *[channels] * config.blocks]
        self.blocks = nn.ModuleList(
            ResBlock(c + skip, channels, 4 * config.channels)
            for c, skip in zip(inputs, skips, strict=True)
        )
        self.swin = SwinStage(channels, config, level)
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
    """UNet whose every level has Swin stages; see :class:`SwinUNetConfig` for its sizes.

    Norms and softmax run in float32 also under autocast. There is no branch on the data, so the
    network can be exported for a fixed input size.
    """

    def __init__(self, config: SwinUNetConfig) -> None:
        super().__init__()
        self.config = config
        time_features = 4 * config.channels
        self.time_in = nn.Linear(config.channels, time_features)
        self.time_out = nn.Linear(time_features, time_features)

        channels = config.channels * config.multipliers[0]
        self.stem = nn.Conv2d(6, channels, 3, padding=1)
        skips = [channels]
        self.down_levels = nn.ModuleList()
        for level, multiplier in enumerate(config.multipliers):
            self.down_levels.append(DownLevel(channels, level, config))
            channels = config.channels * multiplier
            skips += [channels] * config.blocks
            if level < len(config.multipliers) - 1:
                skips.append(channels)

        lowest = len(config.multipliers) - 1
        self.mid_in = ResBlock(channels, channels, time_features)
        self.mid_swin = SwinStage(channels, config, lowest)
        self.mid_out = ResBlock(channels, channels, time_features)

        self.up_levels = nn.ModuleList()  # in the order they run: the lowest resolution first
        for level in range(lowest, -1, -1):
            taken = [skips.pop() for _ in range(config.blocks + 1)]
            self.up_levels.append(UpLevel(channels, taken, level, config))
            channels = config.channels * config.multipliers[level]
        self.norm_out = GroupNorm(channels, EPS)
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x_t_scaled: Tensor, t: Tensor, lq: Tensor) -> Tensor:
        """Predict x_0.

        Args:
            x_t_scaled: (B, 3, h, w) latent x_t over sqrt(kappa^2 eta_t + 1).
            t: (B,) int64 steps counted from 0 (T - 1 is the paper's T).
            lq: (B, 3, h, w) low-resolution image in [-1, 1].

        Returns:
            (B, 3, h, w) latent x_0.

        Raises:
            ValueError: h or w is no multiple of ``config.stride``.
        """
        h, w = x_t_scaled.shape[-2:]
        if h % self.config.stride or w % self.config.stride:
            raise ValueError(
                f"height and width must be multiples of {self.config.stride}, got {h}x{w}"
            )
        time = timestep_embedding(t, self.config.channels)
        time = self.time_out(F.silu(self.time_in(time)))
        x = self.stem(torch.cat((x_t_scaled, lq), dim=1))
        skips = [x]
        for level in self.down_levels:
            skips += level(skips[-1], time)
        x = self.mid_out(self.mid_swin(self.mid_in(skips[-1], time)), time)
        for level in self.up_levels:
            x = level(x, [skips.pop() for _ in level.blocks], time)
        return self.conv_out(F.silu(self.norm_out(x)))
