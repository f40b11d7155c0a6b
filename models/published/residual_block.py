"""What both published networks are built of: residual block, group norm, named layers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def named(**layers: nn.Module) -> nn.Sequential:
    """Layers that run one after the other, under their names."""
    return nn.Sequential(OrderedDict(layers))


def check_sizes(config: Any) -> None:
    """ValueError if a size of a network, its multipliers' included, is not at least 1."""
    sizes = asdict(config)
    widths = sizes.pop("multipliers")
    if not widths or min(*widths, *sizes.values()) < 1:
        raise ValueError(f"all sizes of a network must be at least 1, got {config}")


class GroupNorm(nn.GroupNorm):
    """Group norm of 32 groups that computes in float32 and returns the dtype it was given.

    In half precision the variance of a flat tile underflows and the tile turns into NaN.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__(32, channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        y = F.group_norm(
            x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps
        )
        return y.to(x.dtype)


class ResBlock(nn.Module):
    """Two normalised convolutions around an identity, or a 1x1 convolution, as skip.

    With ``time_features`` the step scales and shifts between the two (FiLM).
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        eps: float,
        activation: Callable[[Tensor], Tensor],
        time_features: int = 0,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.norm_in = GroupNorm(channels_in, eps)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.time_affine = nn.Linear(time_features, 2 * channels_out) if time_features else None
        self.norm_out = GroupNorm(channels_out, eps)
        self.conv_out = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        same = channels_in == channels_out
        self.skip = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """(B, C_in, h, w), (B, time_features) -> (B, C_out, h, w)."""
        h = self.norm_out(self.conv_in(self.activation(self.norm_in(x))))
        if self.time_affine is not None:
            assert time is not None, "its channels follow the time"
            scale, shift = self.time_affine(self.activation(time))[..., None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        return self.skip(x) + self.conv_out(self.activation(h))
