"""From the detector's maps to a list of boxes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from difiisr_training.detection.network import STRIDE

_SAME_OBJECT_IOU = 0.6
_MAX_DETECTIONS = 300
_MIN_SCORE = 0.01


@dataclass(frozen=True)
class Detections:
    """What was found in one image, best first.

    Attributes:
        xywh: ``(N, 4)`` float64: left, top, width and height in pixels.
        classes: ``(N,)`` int64: places in the detector's classes.
        scores: ``(N,)`` float64 in 0..1.
    """

    xywh: np.ndarray
    classes: np.ndarray
    scores: np.ndarray


def decode_peaks(scores: np.ndarray, sides: np.ndarray, size: tuple[int, int]) -> Detections:
    """Boxes of the peaks.

    Args:
        scores: ``(C, h, w)`` in 0..1, zero away from local maxima.
        sides: ``(4, h, w)`` distances in pixels from the cell's centre to left, top, right, bottom.
        size: ``(H, W)`` of the image; boxes are cut at its borders.
    """
    classes, rows, columns = np.nonzero(scores > _MIN_SCORE)
    x, y = (columns + 0.5) * STRIDE, (rows + 0.5) * STRIDE
    left, top, right, bottom = sides[:, rows, columns].astype(np.float64)
    corners = np.stack([x - left, y - top, x + right, y + bottom], axis=1)
    return keep_best(corners, classes, scores[classes, rows, columns], size)


def keep_best(
    corners: np.ndarray, classes: np.ndarray, scores: np.ndarray, size: tuple[int, int]
) -> Detections:
    """Sort by score, and of boxes of one class with an IoU above 0.6 keep the best.

    Args:
        corners: ``(N, 4)`` left, top, right and bottom in pixels.
        classes: ``(N,)`` integers.
        scores: ``(N,)``.
        size: ``(H, W)`` of the image; boxes are cut at its borders, empty ones dropped.
    """
    corners = corners.clip(0, np.array([size[1], size[0]] * 2))
    corners, classes, scores = (
        a[(corners[:, 2:] > corners[:, :2]).all(axis=1)] for a in (corners, classes, scores)
    )
    left = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while left.size and len(kept) < _MAX_DETECTIONS:
        best, left = left[0], left[1:]
        kept.append(best)
        same = (classes[left] == classes[best]) & (
            box_iou(corners[best], corners[left]) > _SAME_OBJECT_IOU
        )
        left = left[~same]
    corners, classes, scores = corners[kept], classes[kept], scores[kept]
    xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    return Detections(xywh.astype(np.float64), classes.astype(np.int64), scores.astype(np.float64))


def box_iou(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of the corners ``(4,)`` with each of ``(N, 4)``: ``(N,)``."""
    extent = np.minimum(one[2:], others[:, 2:]) - np.maximum(one[:2], others[:, :2])
    overlap = extent.clip(0).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1) + (one[2:] - one[:2]).prod()
    return overlap / np.maximum(areas - overlap, 1e-12)
