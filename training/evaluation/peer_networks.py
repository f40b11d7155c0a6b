"""Published light-weight x4 networks: SAFMN (NTIRE 2023), RLFN, and a small Real-ESRGAN.

Written from the papers and the shapes of the published weights; names follow those weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Safmn(nn.Module):
    """SAFMN as entered in the NTIRE 2023 efficiency challenge (Sun et al., ICCV 2023).

    ``(B, 3, h, w)`` in [0, 1] -> ``(B, 3, 4h, 4w)``; sides of at least 16 pixels.
    """

    def __init__(self, channels: int = 36, blocks: int = 8) -> None:
        super().__init__()
        self.to_feat = nn.Conv2d(3, channels, 3, padding=1)
        self.norm = _GlobalResponseNorm(channels)
        self.feats = nn.Sequential(*(_SafmnBlock(channels) for _ in range(blocks)))
        self.to_img = nn.Sequential(nn.Conv2d(channels, 48, 3, padding=1), nn.PixelShuffle(4))

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve a batch."""
        features = self.feats(self.norm(self.to_feat(x)))
        return self.to_img(features) + F.interpolate(x, scale_factor=4, mode="bilinear")


class Rlfn(nn.Module):
    """RLFN (Kong et al., CVPR workshops 2022).

    ``(B, 3, h, w)`` in [0, 255] -> ``(B, 3, 4h, 4w)``; sides of at least 15 pixels.
    """

    def __init__(self, channels: int = 52, blocks: int = 6) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(3, channels, 3, padding=1)
        self._names = [f"block_{i + 1}" for i in range(blocks)]
        for name in self._names:
            self.add_module(name, _RlfnBlock(channels))
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.upsampler = nn.Sequential(nn.Conv2d(channels, 48, 3, padding=1), nn.PixelShuffle(4))

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve a batch."""
        shallow = deep = self.conv_1(x)
        for name in self._names:
            deep = self.get_submodule(name)(deep)
        return self.upsampler(self.conv_2(deep) + shallow)


class Realesrgan(nn.Module):
    """realesr-general-x4v3 (Wang et al., ICCV workshops 2021; its repository calls it SRVGG).

    ``(B, 3, h, w)`` in [0, 1] -> ``(B, 3, 4h, 4w)``.
    """

    def __init__(self, channels: int = 64, convolutions: int = 32) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, channels, 3, padding=1), nn.PReLU(channels)]
        for _ in range(convolutions):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.PReLU(channels)]
        self.body = nn.Sequential(*layers, nn.Conv2d(channels, 48, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve a batch."""
        return F.pixel_shuffle(self.body(x), 4) + F.interpolate(x, scale_factor=4)


class _GlobalResponseNorm(nn.Module):
    """x + beta + gamma x n, with n a channel's spatial norm over the mean norm of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        norm = x.square().sum((2, 3), keepdim=True).sqrt()
        return x + self.beta + self.gamma * x * norm / (norm.mean(1, keepdim=True) + 1e-6)


class _SafmnBlock(nn.Module):
    """Multi-scale modulation, then a convolutional channel mixer, both residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.safm = _Modulation(channels)
        self.ccm = nn.ModuleDict({"ccm": nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False),
            nn.GELU(),
            nn.Conv2d(2 * channels, channels, 1, bias=False),
        )})  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.safm(x)
        return x + self.ccm["ccm"](x)


class _Modulation(nn.Module):
    """A quarter of the channels each at scale 1, 1/4, 1/8 and 1/16; their mix scales the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        part = channels // 4
        self.mfr = nn.ModuleList(
            nn.Conv2d(part, part, 3, padding=1, groups=part, bias=False) for _ in range(4)
        )
        self.aggr = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        parts = []
        for part, conv, shrink in zip(x.chunk(4, 1), self.mfr, (1, 4, 8, 16), strict=True):
            if h % shrink or w % shrink:
                part = F.adaptive_max_pool2d(part, (h // shrink, w // shrink))
            elif shrink > 1:  # the same, in an operator that exports
                part = F.max_pool2d(part, shrink)
            parts.append(F.interpolate(conv(part), size=(h, w), mode="nearest"))
        return F.gelu(self.aggr(torch.cat(parts, 1))) * x


class _RlfnBlock(nn.Module):
    """Three convolutions with a residual, then spatial attention."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.c1_r, self.c2_r, self.c3_r = (
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3)
        )
        self.c5 = nn.Conv2d(channels, channels, 1)
        self.esa = _SpatialAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for conv in (self.c1_r, self.c2_r, self.c3_r):
            h = F.leaky_relu(conv(h), 0.05)
        return self.esa(self.c5(h + x))


class _SpatialAttention(nn.Module):
    def __init__(self, channels: int, narrow: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, narrow, 1)
        self.conv_f = nn.Conv2d(narrow, narrow, 1)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, stride=2)
        self.conv3 = nn.Conv2d(narrow, narrow, 3, padding=1)
        self.conv4 = nn.Conv2d(narrow, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.conv1(x)
        wide = self.conv3(F.max_pool2d(self.conv2(narrow), 7, stride=3))
        wide = F.interpolate(wide, x.shape[-2:], mode="bilinear")
        return x * self.conv4(wide + self.conv_f(narrow)).sigmoid()
