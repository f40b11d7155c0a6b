"""Building blocks that more than one network uses."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal embedding of a diffusion step (Vaswani et al. 2017, cosines before sines).

    Args:
        t: (B,) steps counted from 0, any real or integer dtype.
        dim: even number of features.
        max_period: period of the slowest wave over 2 pi.

    Returns:
        (B, dim) float32: cos(t w_i) for the dim/2 frequencies, then sin(t w_i).

    Raises:
        ValueError: dim is odd.
    """
    if dim % 2:
        raise ValueError(f"time embedding needs an even number of features, got {dim}")
    half = dim // 2
    index = torch.arange(half, dtype=torch.float32, device=t.device)
    phase = t.float()[:, None] * torch.exp(-math.log(max_period) * index / half)
    return torch.cat((phase.cos(), phase.sin()), dim=-1)


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
