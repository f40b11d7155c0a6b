"""A small detector of objects as points: class peaks at a quarter of the resolution, and boxes.

Every object is a peak in the map of its class (Zhou et al., Objects as Points, 2019) with the
distances to the four sides of its box beside it (as in Liu et al., TTFNet, AAAI 2020).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 4
MULTIPLE = 16
"""Sides of the input must be multiples of this."""

_RARE = -4.6  # logit of 0.01: at the start nearly every cell is background
_MAX_LOG_DISTANCE = 6.0


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv(channels, channels)
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


class CentreDetector(nn.Module):
    """Class scores and boxes of every cell of 4x4 pixels; 0.5 M parameters at width 20."""

    def __init__(self, class_count: int, width: int = 20) -> None:
        """``width``: channels at half resolution; they double with each halving up to 4x."""
        super().__init__()
        w2, w4, w8, w16 = width, width * 2, width * 3, width * 4
        self.stem = _conv(1, w2, stride=2)
        self.quarter = nn.Sequential(_conv(w2, w4, stride=2), _Residual(w4))
        self.eighth = nn.Sequential(_conv(w4, w8, stride=2), _Residual(w8))
        self.sixteenth = nn.Sequential(_conv(w8, w16, stride=2), _Residual(w16), _Residual(w16))
        self.down_to_eighth = nn.Conv2d(w16, w8, 1)
        self.down_to_quarter = nn.Conv2d(w8, w4, 1)
        self.merge_eighth = _conv(w8, w8)
        self.merge_quarter = _conv(w4, w4)
        self.classes = nn.Sequential(_conv(w4, w4), nn.Conv2d(w4, class_count, 1))
        self.sides = nn.Sequential(_conv(w4, w4), nn.Conv2d(w4, 4, 1))
        nn.init.constant_(self.classes[-1].bias, _RARE)
        nn.init.constant_(self.sides[-1].bias, 1.0)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Look at images.

        Args:
            images: ``(B, 1, H, W)`` in 0..1; H and W multiples of 16.

        Returns:
            Logits ``(B, C, H/4, W/4)`` and the distances ``(B, 4, H/4, W/4)`` in pixels from the
            centre of each cell to the left, top, right and bottom of its box.
        """
        quarter = self.quarter(self.stem(4 * (images - 0.5)))
        eighth = self.eighth(quarter)
        sixteenth = self.sixteenth(eighth)
        eighth = self.merge_eighth(eighth + _double(self.down_to_eighth(sixteenth)))
        quarter = self.merge_quarter(quarter + _double(self.down_to_quarter(eighth)))
        log_sides = self.sides(quarter).clamp(max=_MAX_LOG_DISTANCE)
        return self.classes(quarter), STRIDE * torch.exp(log_sides)


class PeakScores(nn.Module):
    """The detector as it is exported: scores with everything but local peaks set to zero."""

    def __init__(self, network: CentreDetector) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores ``(B, C, H/4, W/4)`` in 0..1 and distances ``(B, 4, H/4, W/4)`` in pixels."""
        logits, sides = self.network(images)
        scores = torch.sigmoid(logits)
        peaks = F.max_pool2d(scores, 3, stride=1, padding=1) == scores
        return scores * peaks.to(scores.dtype), sides


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
