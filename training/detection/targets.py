"""What the detector should answer for an image, and how far it is from that."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from difiisr_training.detection.annotations import Boxes
from difiisr_training.detection.network import STRIDE

_SPREAD = 0.54  # share of the box that a peak spreads over (TTFNet, alpha)
_BOX_WEIGHT = 5.0


@dataclass(frozen=True)
class Targets:
    """Maps of ``(h, w) = (H/4, W/4)`` cells, float32; a batch has a leading dimension.

    Attributes:
        heat: ``(C, h, w)`` in 0..1; 1 in the cell of an object's centre.
        sides: ``(4, h, w)`` distances in pixels to left, top, right and bottom.
        weight: ``(h, w)`` of the sides; those of one object sum to 1.
        care: ``(h, w)`` 0 in ignored regions, else 1.
    """

    heat: Tensor
    sides: Tensor
    weight: Tensor
    care: Tensor

    def to(self, device: str) -> Targets:
        """The same on another device."""
        return Targets(*(m.to(device) for m in (self.heat, self.sides, self.weight, self.care)))


def draw_targets(boxes: Boxes, class_count: int, size: tuple[int, int]) -> Targets:
    """Draw the targets of one image of ``size`` ``(H, W)`` pixels, multiples of 4.

    Of overlapping objects the smaller one is drawn over the larger one.
    """
    h, w = size[0] // STRIDE, size[1] // STRIDE
    heat, sides = np.zeros((class_count, h, w), np.float32), np.ones((4, h, w), np.float32)
    weight, care = np.zeros((h, w), np.float32), np.ones((h, w), np.float32)
    y, x = np.mgrid[:h, :w]
    centre_x, centre_y = (x + 0.5) * STRIDE, (y + 0.5) * STRIDE
    for left, top, width, height in boxes.xywh[boxes.ignored]:
        care[
            (centre_x >= left)
            & (centre_x <= left + width)
            & (centre_y >= top)
            & (centre_y <= top + height)
        ] = 0
    order = np.argsort(-boxes.xywh[:, 2] * boxes.xywh[:, 3], kind="stable")
    for i in order[~boxes.ignored[order]]:
        left, top, width, height = boxes.xywh[i]
        column = min(int((left + width / 2) / STRIDE), w - 1)
        row = min(int((top + height / 2) / STRIDE), h - 1)
        sigma_x, sigma_y = ((_SPREAD * side / STRIDE + 1) / 6 for side in (width, height))
        peak = np.exp(-((x - column) ** 2) / (2 * sigma_x**2) - (y - row) ** 2 / (2 * sigma_y**2))
        peak[peak < 1e-3] = 0
        place = boxes.classes[i]
        heat[place] = np.maximum(heat[place], peak)
        right, bottom = left + width, top + height
        to_sides = np.stack([centre_x - left, centre_y - top, right - centre_x, bottom - centre_y])
        inside = (peak > 0.1) & ((to_sides > 0).all(axis=0) | (peak == 1))
        sides[:, inside] = to_sides.clip(min=0.1)[:, inside]
        weight[inside] = peak[inside] / peak[inside].sum()
        care[row, column] = 1
    return Targets(*(torch.from_numpy(a) for a in (heat, sides, weight, care)))


def detection_loss(logits: Tensor, sides: Tensor, targets: Targets) -> Tensor:
    """Penalty-reduced focal loss of the peaks plus 5 times the GIoU loss of the boxes.

    Args:
        logits: ``(B, C, h, w)``.
        sides: ``(B, 4, h, w)`` pixels.
        targets: of the batch.

    Returns:
        A scalar: the mean over the objects.
    """
    peaks = targets.heat == 1
    probability = torch.sigmoid(logits)
    found = peaks * (1 - probability) ** 2 * F.logsigmoid(logits)
    background = ~peaks * (1 - targets.heat) ** 4 * probability**2 * F.logsigmoid(-logits)
    heat_loss = -((found + background) * targets.care[:, None]).sum() / peaks.sum().clamp(min=1)
    box_loss = (_giou_loss(sides, targets.sides) * targets.weight).sum()
    return heat_loss + _BOX_WEIGHT * box_loss / targets.weight.sum().clamp(min=1)


def _giou_loss(ours: Tensor, true: Tensor) -> Tensor:
    """1 - GIoU (Rezatofighi et al., 2019) of boxes around common points, ``(B, 4, h, w)``."""

    def area(sides: Tensor) -> Tensor:
        left, top, right, bottom = sides.unbind(1)
        return (left + right) * (top + bottom)

    overlap, hull = area(torch.minimum(ours, true)), area(torch.maximum(ours, true))
    union = area(ours) + area(true) - overlap
    return 1 - overlap / union + (hull - union) / hull
