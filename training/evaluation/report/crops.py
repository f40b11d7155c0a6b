"""Where in a frame the models differ most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Window:
    """A square of a high-resolution frame, pixels, and the mean disagreement in it, counts."""

    top: int
    left: int
    side: int
    score: float

    def cut(self, image: np.ndarray) -> np.ndarray:
        """The window of ``image (H, W)``."""
        return image[self.top : self.top + self.side, self.left : self.left + self.side]


def disagreement(images: Sequence[np.ndarray]) -> np.ndarray:
    """Standard deviation over ``images`` at each pixel, float64 ``(H, W)``.

    Args:
        images: two or more ``(H, W)`` arrays of one shape: results, and the reference if known.

    Raises:
        ValueError: fewer than two images.
    """
    if len(images) < 2:
        raise ValueError(f"disagreement needs two images or more, got {len(images)}")
    return np.std(np.stack([image.astype(np.float64) for image in images]), axis=0)


def choose_window(score: np.ndarray, side: int, step: int) -> Window:
    """The square with the largest mean of ``score (H, W)``; the first of equals.

    Args:
        score: what to look for, per pixel.
        side: of the square, pixels; at most the frame's own sides.
        step: rows and columns start at multiples of it.
    """
    height, width = score.shape
    side = min(side, height, width) // step * step
    sums = np.zeros((height + 1, width + 1))
    sums[1:, 1:] = score.cumsum(0).cumsum(1)
    inside = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    inside = inside[::step, ::step]
    row, column = np.unravel_index(np.argmax(inside), inside.shape)
    return Window(int(row) * step, int(column) * step, side, float(inside[row, column]) / side**2)
