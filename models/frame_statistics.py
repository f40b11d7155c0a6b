"""Measures of frames that several rooms take: thinned pixels, block sums, the vertex of a peak."""

from __future__ import annotations

import numpy as np

RANGE_QUANTILES = (0.002, 0.998)
"""Of a frame's span: they leave 38 pixels of a 160x120 frame outside on either side."""


def thinned(frame: np.ndarray, pixels: int = 80_000) -> np.ndarray:
    """Every n-th row and column of ``(H, W)``, about so many pixels: enough for its quantiles."""
    stride = max(1, int((frame.size / pixels) ** 0.5))
    return frame[::stride, ::stride]


def block_sums(values: np.ndarray, size: int) -> np.ndarray:
    """Sums over ``size`` x ``size`` values each; what fills no block at the ends does not count."""
    height, width = (n - n % size for n in values.shape)
    nothing = np.zeros((), values.dtype)
    rows = sum((values[n:height:size] for n in range(size)), nothing)
    return sum((rows[:, n:width:size] for n in range(size)), nothing)


def vertex(before: float, here: float, after: float) -> float:
    """Where a parabola through three samples, of which the middle one is largest, has its peak."""
    curve = before - 2 * here + after
    return float(np.clip(0.5 * (before - after) / curve, -0.5, 0.5)) if curve < 0 else 0.0
