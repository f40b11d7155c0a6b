"""Average precision as COCO defines it, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from difiisr_training.detection.annotations import Boxes
from difiisr_training.detection.peaks import Detections

IOU = "0.50:0.95, step 0.05, at most 100 detections per image (COCO)"


@dataclass(frozen=True)
class ClassPrecision:
    """One class; ``None`` where the truth has no object of it.

    Attributes:
        ap: mean over the IoU thresholds 0.50, 0.55 .. 0.95.
        ap50: at IoU 0.50.
        boxes: objects in the truth, ignored ones apart.
    """

    ap: float | None
    ap50: float | None
    boxes: int


@dataclass(frozen=True)
class Precision:
    """A detector on a set; means over the classes that the truth has objects of.

    Attributes:
        map: mAP@.5:.95 in 0..1; ``None`` without any object.
        map50: mAP@.5.
        per_class: by name.
        images: number of images.
        boxes: objects in the truth, ignored ones apart.
    """

    map: float | None
    map50: float | None
    per_class: Mapping[str, ClassPrecision]
    images: int
    boxes: int


def average_precision(
    truth: Sequence[Boxes], found: Sequence[Detections], classes: Sequence[str]
) -> Precision:
    """Judge the detections of some images.

    Args:
        truth: objects of each image. Ignored regions of class -1 count for every class.
        found: detections of each image; places of both refer to ``classes``.
        classes: names.

    Raises:
        ValueError: the two differ in length.
    """
    if len(truth) != len(found):
        raise ValueError(f"{len(truth)} images with objects, but {len(found)} with detections")
    counts = [
        sum(int(((b.classes == place) & ~b.ignored).sum()) for b in truth)
        for place in range(len(classes))
    ]
    precision = _precision(truth, found, len(classes)) if sum(counts) else None
    per_class = {}
    for place, name in enumerate(classes):
        if precision is None or counts[place] == 0:
            per_class[name] = ClassPrecision(None, None, 0)
        else:
            ap, ap50 = precision[:, :, place].mean(), precision[0, :, place].mean()
            per_class[name] = ClassPrecision(float(ap), float(ap50), counts[place])
    present = [entry for entry in per_class.values() if entry.boxes]
    return Precision(
        map=float(np.mean([entry.ap for entry in present])) if present else None,
        map50=float(np.mean([entry.ap50 for entry in present])) if present else None,
        per_class=per_class,
        images=len(truth),
        boxes=sum(counts),
    )


def _precision(truth: Sequence[Boxes], found: Sequence[Detections], class_count: int) -> np.ndarray:
    """Precision ``(IoU thresholds, recalls, classes)`` at all areas and 100 detections."""
    objects, results = [], []
    for image, boxes in enumerate(truth):
        for xywh, place, ignored in zip(boxes.xywh, boxes.classes, boxes.ignored, strict=True):
            for category in range(class_count) if place < 0 else [int(place)]:
                objects.append(
                    {
                        "id": len(objects) + 1,  # pycocotools takes id 0 for "no match"
                        "image_id": image,
                        "category_id": category,
                        "bbox": [float(v) for v in xywh],
                        "area": float(xywh[2] * xywh[3]),
                        "iscrowd": int(ignored),
                    }
                )
    for image, boxes in enumerate(found):
        for xywh, place, score in zip(boxes.xywh, boxes.classes, boxes.scores, strict=True):
            results.append(
                {
                    "image_id": image,
                    "category_id": int(place),
                    "bbox": [float(v) for v in xywh],
                    "score": float(score),
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        ours, theirs = COCO(), COCO()
        ours.dataset = {
            "images": [{"id": image} for image in range(len(truth))],
            "categories": [{"id": place} for place in range(class_count)],
            "annotations": objects,
        }
        ours.createIndex()
        theirs.dataset = ours.dataset | {
            "annotations": [
                entry | {"id": n + 1, "area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0}
                for n, entry in enumerate(results)
            ]
        }
        theirs.createIndex()
        evaluation = COCOeval(ours, theirs, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, 0, -1]
