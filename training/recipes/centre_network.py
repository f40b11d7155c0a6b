"""A small detector of objects as points: class peaks at a quarter of the resolution, and boxes.

Every object is a peak in the map of its class (Zhou et al., Objects as Points, 2019) with the
distances to the four sides of its box beside it (as in Liu et al., TTFNet, AAAI 2020).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difiisr_training.data.annotations import Boxes
from difiisr_training.evaluation import readers

_OPSET = 18
_TOLERANCE = 1e-3  # of the ONNX file
_SPREAD = 0.54  # share of the box that a peak spreads over (TTFNet, alpha)
_BOX_WEIGHT = 5.0
_RARE = -4.6  # logit of 0.01: at the start nearly every cell is background
_MAX_LOG_DISTANCE = 6.0


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv(channels, channels)
        self.second = _conv(channels, channels)[:2]

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
        nn.init.constant_(self.classes.get_parameter("1.bias"), _RARE)
        nn.init.constant_(self.sides.get_parameter("1.bias"), 1.0)

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Look at images ``(B, 1, H, W)`` in 0..1; H and W multiples of 16.

        Returns:
            Logits ``(B, C, H/4, W/4)`` and the distances ``(B, 4, H/4, W/4)`` in pixels from the
            centre of each cell to the left, top, right and bottom of its box.
        """
        quarter = self.quarter(self.stem(4 * (images - 0.5)))
        eighth = self.eighth(quarter)
        above = F.interpolate(self.down_to_eighth(self.sixteenth(eighth)), scale_factor=2.0)
        eighth = self.merge_eighth(eighth + above)
        above = F.interpolate(self.down_to_quarter(eighth), scale_factor=2.0)
        quarter = self.merge_quarter(quarter + above)
        log_sides = self.sides(quarter).clamp(max=_MAX_LOG_DISTANCE)
        return self.classes(quarter), readers.STRIDE * torch.exp(log_sides)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`maps`, but scores in 0..1 for logits: zero where there is no local peak."""
        logits, sides = self.maps(images)
        scores = torch.sigmoid(logits)
        peaks = F.max_pool2d(scores, 3, stride=1, padding=1) == scores
        return scores * peaks.to(scores.dtype), sides


def draw_targets(boxes: Boxes, class_count: int, size: tuple[int, int]) -> tuple[Tensor, ...]:
    """What the network should say of one image of ``size`` ``(H, W)`` pixels, multiples of 4.

    Of overlapping objects the smaller one is drawn over the larger one.

    Returns:
        Four float32 maps of ``(h, w) = (H/4, W/4)`` cells: heat ``(C, h, w)`` in 0..1, 1 in the
        cell of an object's centre; sides ``(4, h, w)``, distances in pixels to left, top, right
        and bottom; weight ``(h, w)`` of the sides, of which those of one object sum to 1; and
        care ``(h, w)``, 0 in ignored regions, else 1.
    """
    h, w = size[0] // readers.STRIDE, size[1] // readers.STRIDE
    heat, sides = np.zeros((class_count, h, w), np.float32), np.ones((4, h, w), np.float32)
    weight, care = np.zeros((h, w), np.float32), np.ones((h, w), np.float32)
    y, x = np.mgrid[:h, :w]

    def distances(left: float, top: float, width: float, height: float) -> np.ndarray:
        """From the centre of every cell to the sides of a box; negative outside."""
        to_left, to_top = (x + 0.5) * readers.STRIDE - left, (y + 0.5) * readers.STRIDE - top
        return np.stack([to_left, to_top, width - to_left, height - to_top])

    for box in boxes.xywh[boxes.ignored]:
        care[(distances(*box) >= 0).all(axis=0)] = 0
    order = np.argsort(-boxes.xywh[:, 2] * boxes.xywh[:, 3], kind="stable")
    for i in order[~boxes.ignored[order]]:
        left, top, width, height = boxes.xywh[i]
        column = min(int((left + width / 2) / readers.STRIDE), w - 1)
        row = min(int((top + height / 2) / readers.STRIDE), h - 1)
        sigma_x, sigma_y = ((_SPREAD * side / readers.STRIDE + 1) / 6 for side in (width, height))
        peak = np.exp(-((x - column) ** 2) / (2 * sigma_x**2) - (y - row) ** 2 / (2 * sigma_y**2))
        peak[peak < 1e-3] = 0
        place = boxes.classes[i]
        heat[place] = np.maximum(heat[place], peak)
        to_sides = distances(left, top, width, height)
        inside = (peak > 0.1) & ((to_sides > 0).all(axis=0) | (peak == 1))
        sides[:, inside] = to_sides.clip(min=0.1)[:, inside]
        weight[inside] = peak[inside] / peak[inside].sum()
        care[row, column] = 1
    return tuple(map(torch.from_numpy, (heat, sides, weight, care)))


def detection_loss(logits: Tensor, sides: Tensor, targets: Sequence[Tensor]) -> Tensor:
    """Penalty-reduced focal loss of the peaks plus 5 times the GIoU loss of the boxes.

    Args:
        logits: ``(B, C, h, w)``.
        sides: ``(B, 4, h, w)`` pixels.
        targets: of ``draw_targets``, each as a batch.
    """
    heat, true_sides, weight, care = targets
    peaks = heat == 1
    probability = torch.sigmoid(logits)
    found = peaks * (1 - probability) ** 2 * F.logsigmoid(logits)
    background = ~peaks * (1 - heat) ** 4 * probability**2 * F.logsigmoid(-logits)
    heat_loss = -((found + background) * care[:, None]).sum() / peaks.sum().clamp(min=1)
    box_loss = (_giou_loss(sides, true_sides) * weight).sum()
    return heat_loss + _BOX_WEIGHT * box_loss / weight.sum().clamp(min=1)


@torch.no_grad()
def detect(network: CentreDetector, picture: np.ndarray) -> readers.Detections:
    """Objects in a picture ``(H, W)`` float32 in 0..1 of any size."""
    padded = torch.from_numpy(readers.pad_to_multiple(picture, readers.MULTIPLE))[None, None]
    scores, sides = network.eval()(padded.to(next(network.parameters()).device))
    return readers.decode_peaks(scores[0].cpu().numpy(), sides[0].cpu().numpy(), picture.shape)


@torch.no_grad()
def export_detector(network: CentreDetector, classes: Sequence[str], path: Path) -> Path:
    """Write a detector of these classes as ONNX, for pictures of any size, and check the file."""
    import onnxruntime

    network = network.cpu().eval()
    rows, columns = torch.export.Dim("rows", min=2), torch.export.Dim("columns", min=2)
    program = torch.onnx.export(
        network,
        (torch.rand(1, 1, 5 * readers.MULTIPLE, 7 * readers.MULTIPLE),),
        dynamo=True,
        opset_version=_OPSET,
        input_names=["picture"],
        output_names=["scores", "sides"],
        dynamic_shapes={"images": {2: readers.MULTIPLE * rows, 3: readers.MULTIPLE * columns}},
        verbose=False,
    )
    program.model.metadata_props.update(
        {readers.FORMAT_KEY: readers.FORMAT, readers.CLASSES_KEY: json.dumps(classes)}
    )
    program.save(str(path), external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    probe = torch.rand(1, 1, 6 * readers.MULTIPLE, 4 * readers.MULTIPLE)
    logits, sides = (each.numpy() for each in network.maps(probe))
    scores, exported_sides = session.run(None, {"picture": probe.numpy()})
    errors = (scores > 0) * (scores - 1 / (1 + np.exp(-logits)))
    wrong = max(np.abs(exported_sides / sides - 1).max(), np.abs(errors).max())
    if not wrong < _TOLERANCE:
        raise RuntimeError(f"{path} differs from the network by {wrong:.2g}")
    return path


def _giou_loss(ours: Tensor, true: Tensor) -> Tensor:
    """1 - GIoU (Rezatofighi et al., 2019) of boxes around common points, ``(B, 4, h, w)``."""

    def area(sides: Tensor) -> Tensor:
        left, top, right, bottom = sides.unbind(1)
        return (left + right) * (top + bottom)

    overlap, hull = area(torch.minimum(ours, true)), area(torch.maximum(ours, true))
    union = area(ours) + area(true) - overlap
    return 1 - overlap / union + (hull - union) / hull
