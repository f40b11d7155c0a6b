"""Average precision as COCO defines it, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from difiisr_training.detection.annotations import Boxes
from difiisr_training.detection.peaks import Detections
from difiisr_training.evaluation.resampling import draw_images, interval_of, mean_of_known

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
        map_interval: 95 % interval over the images, ``[low, high]``, where it was asked for.
        map50_interval: likewise.
        per_class: by name.
        images: number of images.
        boxes: objects in the truth, ignored ones apart.
    """

    map: float | None
    map50: float | None
    map_interval: Sequence[float] | None
    map50_interval: Sequence[float] | None
    per_class: Mapping[str, ClassPrecision]
    images: int
    boxes: int


def average_precision(
    truth: Sequence[Boxes],
    found: Sequence[Detections],
    classes: Sequence[str],
    *,
    intervals: bool = False,
) -> Precision:
    """Judge the detections of some images.

    Args:
        truth: objects of each image. Ignored regions of class -1 count for every class.
        found: detections of each image; places of both refer to ``classes``.
        classes: names.
        intervals: resample the images too.

    Raises:
        ValueError: the two differ in length.
    """
    if len(truth) != len(found):
        raise ValueError(f"{len(truth)} images with objects, but {len(found)} with detections")
    counts = [
        sum(int(((b.classes == place) & ~b.ignored).sum()) for b in truth)
        for place in range(len(classes))
    ]
    precision, drawn = None, np.zeros((0, 2))
    if sum(counts):
        evaluation = _evaluate(truth, found, len(classes))
        precision = evaluation.eval["precision"][:, :, :, 0, 0]
        if intervals:
            drawn = _resampled(evaluation, len(classes), draw_images(len(truth)))
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
        map_interval=interval_of(drawn[:, 0]),
        map50_interval=interval_of(drawn[:, 1]),
        per_class=per_class,
        images=len(truth),
        boxes=sum(counts),
    )


def _evaluate(truth: Sequence[Boxes], found: Sequence[Detections], class_count: int) -> COCOeval:
    """An evaluation with its precision, for objects of any area and 100 detections alone."""
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
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.params.maxDets = evaluation.params.maxDets[-1:]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _resampled(evaluation: COCOeval, class_count: int, draws: np.ndarray) -> np.ndarray:
    """mAP@.5:.95 and mAP@.5 ``(R, 2)`` of resamples; the matches of each image stay.

    A class without an object in a resample has its precision on the whole set there: the mean is
    over the same classes in all of them.

    Args:
        evaluation: of all images.
        class_count: its number of classes.
        draws: ``(R, images)``: how often an image is in a resample.
    """
    recalls, images = evaluation.params.recThrs, draws.shape[1]
    ap = np.full((len(draws), class_count, 2), np.nan)
    for place in range(class_count):
        per_image = evaluation.evalImgs[place * images : (place + 1) * images]
        matches = _Matches.of(per_image)
        for resample, weights in enumerate(draws):
            by_iou = matches.precision(weights, recalls)
            if np.isnan(by_iou).any():
                by_iou = matches.precision(np.ones(images, np.int64), recalls)
            ap[resample, place] = by_iou.mean(), by_iou[0]
    return mean_of_known(ap.swapaxes(1, 2))


@dataclass(frozen=True)
class _Matches:
    """What COCO matched of one class, best score first.

    Attributes:
        image: ``(N,)`` place of each detection's image.
        right: for each IoU threshold, places of the detections that found an object.
        judged: ``(T, N)``: the detection is right or wrong, and not ignored.
        objects: ``(images,)`` number of objects to be found.
    """

    image: np.ndarray
    right: Sequence[np.ndarray]
    judged: np.ndarray
    objects: np.ndarray

    @classmethod
    def of(cls, per_image: Sequence[Mapping[str, Any] | None]) -> _Matches:
        """Gather the evaluations of each image; ``None``: neither objects nor detections."""
        known = [(place, one) for place, one in enumerate(per_image) if one is not None]
        objects = np.zeros(len(per_image), np.int64)
        for place, one in known:
            objects[place] = np.count_nonzero(one["gtIgnore"] == 0)
        if not known:
            return cls(np.zeros(0, np.int64), [], np.zeros((0, 0), bool), objects)
        scores = np.concatenate([one["dtScores"] for _, one in known])
        order = np.argsort(-scores, kind="stable")
        image = np.repeat([place for place, _ in known], [len(one["dtScores"]) for _, one in known])
        judged = ~np.concatenate([one["dtIgnore"] for _, one in known], axis=1).astype(bool)
        matched = np.concatenate([one["dtMatches"] for _, one in known], axis=1) > 0
        right = [np.flatnonzero(row) for row in (matched & judged)[:, order]]
        return cls(image[order], right, judged[:, order], objects)

    def precision(self, weights: np.ndarray, recalls: np.ndarray) -> np.ndarray:
        """Average precision ``(T,)`` if each image occurred ``weights`` times; NaN: no objects.

        Only detections that found an object change the recall, so that the curve's best precision
        from a recall on is that at one of them: the same as COCO's, image by image repeated.
        """
        objects = self.objects @ weights
        if not objects:
            return np.full(max(len(self.right), 1), np.nan)
        repeated = weights[self.image]
        seen = np.cumsum(repeated * self.judged, axis=1)
        ap = np.zeros(len(self.right))
        for place, right in enumerate(self.right):
            found = np.cumsum(repeated[right])
            best = np.maximum.accumulate((found / np.maximum(seen[place, right], 1))[::-1])[::-1]
            reached = np.searchsorted(found / objects, recalls, side="left")
            ap[place] = np.append(best, 0.0)[reached].mean()
        return ap
