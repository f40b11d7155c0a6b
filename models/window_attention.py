"""Attention inside windows (Swin Transformer), and the cutting into windows.

Shapes below use B = batch, C = channels, N = tokens of a window (its side squared),
n = number of windows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MASKED = -100.0


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
        self.heads = heads
        self.window = window
        self.qkv = nn.Linear(channels, 3 * channels)
        self.position_bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.project = nn.Linear(channels, channels)

    def position_logits(self) -> Tensor:
        """(heads, N, N) float32: the bias of each token pair, by how far they lie apart."""
        side = 2 * self.window - 1
        position = torch.arange(self.window, device=self.position_bias.device)
        offset = position[:, None] - position[None, :] + self.window - 1
        index = side * offset[:, None, :, None] + offset[None, :, None, :]
        bias = self.position_bias.float()[index.reshape(self.window**2, self.window**2)]
        return bias.permute(2, 0, 1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, n, N, C) and an optional (n, N, N) mask -> (B, n, N, C)."""
        b, n, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(b, n, tokens, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)  # each (B, n, heads, N, C / heads)
        q = q * (channels // self.heads) ** -0.5
        logits = (q @ k.transpose(-2, -1)).float() + self.position_logits()
        if mask is not None:
            logits = logits + mask[:, None]
        y = logits.softmax(dim=-1).to(v.dtype) @ v
        return self.project(y.transpose(2, 3).reshape(b, n, tokens, channels))
