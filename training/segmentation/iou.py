"""Intersection over union of label maps, from a confusion matrix over all pixels of a set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from difiisr_training.evaluation.resampling import draw_images, interval_of, mean_of_known

IGNORED = 255
"""Label of pixels that nobody judges."""


@dataclass(frozen=True)
class Agreement:
    """How well label maps agree with their reference.

    Attributes:
        miou: mean over the classes that occur in the reference or in the result; ``None`` without
            any judged pixel.
        miou_interval: its 95 % interval over the images, ``[low, high]``.
        per_class: IoU by name; ``None`` for a class that occurs in neither.
        images: number of label maps.
        pixels: number of judged pixels.
    """

    miou: float | None
    miou_interval: Sequence[float] | None
    per_class: Mapping[str, float | None]
    images: int
    pixels: int


class ConfusionMatrix:
    """Counts of pixels by reference and result; the images of a set are added one by one.

    Attributes:
        counts: ``(C, C)`` over all images, a row per class of the reference.
        per_image: ``(2, C)`` each: pixels of a class in both label maps, and in either.
    """

    def __init__(self, class_count: int) -> None:
        self.counts = np.zeros((class_count, class_count), np.int64)
        self.per_image: list[np.ndarray] = []

    def add(self, reference: np.ndarray, result: np.ndarray) -> None:
        """Count the pixels of one image.

        Args:
            reference: ``(H, W)`` integers; pixels of :data:`IGNORED` are left out.
            result: ``(H, W)`` integers below the number of classes.

        Raises:
            ValueError: the two differ in size, or hold labels beyond the classes.
        """
        if reference.shape != result.shape:
            raise ValueError(f"labels are {reference.shape}, the result is {result.shape}")
        judged = reference != IGNORED
        rows, columns = reference[judged].astype(np.int64), result[judged].astype(np.int64)
        count = len(self.counts)
        for name, labels in (("the reference", rows), ("the result", columns)):
            if labels.size and not 0 <= labels.min() <= labels.max() < count:
                raise ValueError(
                    f"{name} holds labels {labels.min()}..{labels.max()}, there are {count} classes"
                )
        counts = np.bincount(rows * count + columns, minlength=count**2).reshape(count, count)
        both = np.diag(counts)
        self.counts += counts
        self.per_image.append(np.stack([both, counts.sum(axis=0) + counts.sum(axis=1) - both]))

    def agreement(self, classes: Sequence[str]) -> Agreement:
        """IoU of each class and their mean."""
        images, pixels = len(self.per_image), int(self.counts.sum())
        if not pixels:
            return Agreement(None, None, dict.fromkeys(classes), images, 0)
        counted = np.stack(self.per_image)
        iou = _iou(counted.sum(axis=0))
        per_class = {
            name: None if np.isnan(v) else float(v) for name, v in zip(classes, iou, strict=True)
        }
        drawn = np.tensordot(draw_images(images), counted.astype(np.float64), axes=1)
        resampled = _iou(drawn)
        # The mean is over the same classes in all resamples, also where a class was not drawn.
        resampled = np.where(np.isnan(resampled), iou, resampled)
        interval = interval_of(mean_of_known(resampled))
        return Agreement(float(mean_of_known(iou)), interval, per_class, images, pixels)


def _iou(counted: np.ndarray) -> np.ndarray:
    """IoU ``(.., C)`` of pixels in both and in either ``(.., 2, C)``; NaN without any."""
    with np.errstate(invalid="ignore"):
        return counted[..., 0, :] / counted[..., 1, :]
