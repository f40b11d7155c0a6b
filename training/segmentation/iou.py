"""Intersection over union of label maps, from a confusion matrix over all pixels of a set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

IGNORED = 255
"""Label of pixels that nobody judges."""


@dataclass(frozen=True)
class Agreement:
    """How well label maps agree with their reference.

    Attributes:
        miou: mean over the classes that occur in the reference or in the result; ``None`` without
            any judged pixel.
        per_class: IoU by name; ``None`` for a class that occurs in neither.
        images: number of label maps.
        pixels: number of judged pixels.
    """

    miou: float | None
    per_class: Mapping[str, float | None]
    images: int
    pixels: int


class ConfusionMatrix:
    """Counts of pixels by reference and result; the images of a set are added one by one."""

    def __init__(self, class_count: int) -> None:
        self.counts = np.zeros((class_count, class_count), np.int64)
        self.images = 0

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
        flat = np.bincount(rows * count + columns, minlength=count**2)
        self.counts += flat.reshape(count, count)
        self.images += 1

    def agreement(self, classes: Sequence[str]) -> Agreement:
        """IoU of each class and their mean."""
        both = np.diag(self.counts)
        either = self.counts.sum(axis=0) + self.counts.sum(axis=1) - both
        present = either > 0
        iou = both[present] / either[present]
        per_class: dict[str, float | None] = dict.fromkeys(classes)
        per_class |= {
            name: float(v) for name, v in zip(np.array(classes)[present].tolist(), iou, strict=True)
        }
        mean = float(iou.mean()) if present.any() else None
        return Agreement(mean, per_class, self.images, int(self.counts.sum()))
