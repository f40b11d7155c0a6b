"""Average precision and mean IoU of a set of images, and their intervals over the images."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from difiisr_training.data.annotations import IGNORED, Boxes
from difiisr_training.evaluation.readers import Detections

IOU = "0.50:0.95, step 0.05, at most 100 detections per image (COCO)"

_RESAMPLES = 200
_NO_PEERS = ("bicubic", "bicubic-consistent", "HR")


def average_precision(
    truth: Sequence[Boxes],
    found: Sequence[Detections],
    classes: Sequence[str],
    *,
    resamples: bool = False,
) -> dict[str, Any]:
    """Average precision of ``found`` in each image as COCO defines it, by pycocotools.

    Returns:
        ``{"map", "map50", "per_class": {CLASS: {"ap", "ap50", "boxes"}}, "images", "boxes"}``: in
        0..1, over the IoU thresholds of ``IOU`` or at 0.50, means over the classes that the truth
        has objects of; ``None`` without objects. ``boxes``: objects not ignored. With
        ``resamples``, and objects, ``"resampled"`` too, see :func:`compare`.
    """
    if len(truth) != len(found):
        raise ValueError(f"{len(truth)} images with objects, but {len(found)} with detections")
    precision = _precision(truth, found, len(classes))
    whole = precision(np.arange(len(truth)))
    present = ~np.isnan(whole[0])

    def means(images: np.ndarray) -> np.ndarray:
        """Over the classes; one that a resample lacks keeps its precision on the whole set."""
        ap = precision(images)
        ap = np.where(np.isnan(ap), whole, ap)[:, present]
        return np.array([ap.mean(), ap[0].mean()])

    scores: dict[str, Any] = dict.fromkeys(("map", "map50"))
    if present.any():
        scores["map"], scores["map50"] = means(np.arange(len(truth))).tolist()
    if present.any() and resamples:
        draws = over_resamples(len(truth), means)
        scores["resampled"] = dict(zip(("map", "map50"), draws, strict=True))
    of_any = np.concatenate([boxes.classes[~boxes.ignored] for boxes in truth])
    scores["per_class"] = {
        name: {
            "ap": float(whole[:, place].mean()) if present[place] else None,
            "ap50": float(whole[0, place]) if present[place] else None,
            "boxes": int((of_any == place).sum()),
        }
        for place, name in enumerate(classes)
    }
    return scores | {"images": len(truth), "boxes": len(of_any)}


def count_pixels(reference: np.ndarray, result: np.ndarray, class_count: int) -> np.ndarray:
    """Pixels of each class, ``(3, C)``: in both label maps, in the reference, in the result.

    Both are ``(H, W)`` integers; where the reference is 255 nothing is counted. ValueError: the two
    differ in size, or the reference holds labels beyond the classes.
    """
    if reference.shape != result.shape:
        raise ValueError(f"labels are {reference.shape}, the result is {result.shape}")
    judged = reference != IGNORED
    true, ours = reference[judged].astype(np.int64), result[judged].astype(np.int64)
    if true.size and not 0 <= true.min() <= true.max() < class_count:
        found = f"{true.min()}..{true.max()}"
        raise ValueError(f"the reference holds labels {found}, there are {class_count} classes")
    kinds = (true[true == ours], true, ours)
    return np.stack([np.bincount(labels, minlength=class_count) for labels in kinds])


def mean_iou(counted: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Intersection over union from ``count_pixels`` of all images, ``(images, 3, C)``.

    Returns:
        ``{"miou", "per_class": {CLASS: IoU}, "images", "pixels"}``: in 0..1, the mean over the
        classes that occur; ``None`` for a class in neither label map, and without any judged
        pixel. With any, ``"resampled"`` too, see :func:`compare`.
    """
    whole = _iou(counted)
    known = ~np.isnan(whole)

    def mean(images: np.ndarray) -> float:
        """Over the same classes in all resamples; one that is not drawn keeps its IoU."""
        iou = _iou(counted[images])
        return float(np.where(np.isnan(iou), whole, iou)[known].mean())

    scores: dict[str, Any] = {"miou": None}
    if known.any():
        scores["miou"] = mean(np.arange(len(counted)))
        scores["resampled"] = {"miou": over_resamples(len(counted), mean)}
    return scores | {
        "per_class": {
            name: None if np.isnan(iou) else float(iou)
            for name, iou in zip(classes, whole, strict=True)
        },
        "images": len(counted),
        "pixels": int(counted[:, 1].sum()),
    }


def over_resamples(count: int, score: Callable[[np.ndarray], float | np.ndarray]) -> np.ndarray:
    """One score, ``(R,)``, or ``S`` scores, ``(S, R)``, of images drawn with replacement.

    ``score`` is that of the images of some numbers, some more than once. The draws depend on
    ``count`` alone.
    """
    rng = np.random.default_rng(0)
    return np.stack([score(rng.integers(count, size=count)) for _ in range(_RESAMPLES)], axis=-1)


def compare(models: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Models' scores of the same images, with intervals in the place of ``"resampled"``.

    Returns:
        ``{MODEL: {..., "map_interval": [LOW, HIGH], "difference_to_bicubic": {"map": {"mean",
        "interval"}}, "difference_to_best_peer": {"model": NAME, "map": ...}}}``, and likewise for
        each resampled score: 95 % intervals over the images, of differences paired. The best peer
        is the best of the networks of another name (``@`` and what follows is none of it).
    """
    drawn = {name: scores.get("resampled", {}) for name, scores in models.items()}

    def difference(name: str, other: str) -> dict[str, Any]:
        gaps = {key: draws - drawn[other][key] for key, draws in drawn[name].items()}
        means = {key: models[name][key] - models[other][key] for key in gaps}
        return {key: {"mean": means[key], "interval": interval(gap)} for key, gap in gaps.items()}

    found = {}
    for name, draws in drawn.items():
        scores = {key: value for key, value in models[name].items() if key != "resampled"}
        found[name] = scores | {f"{key}_interval": interval(of) for key, of in draws.items()}
        if draws and name != "bicubic" and "bicubic" in models:
            found[name]["difference_to_bicubic"] = difference(name, "bicubic")
        own = (name.partition("@")[0], *_NO_PEERS)
        peers = [other for other in models if other.partition("@")[0] not in own]
        if draws and peers:
            best = max(peers, key=lambda peer: models[peer][next(iter(drawn[peer]))])
            found[name]["difference_to_best_peer"] = {"model": best} | difference(name, best)
    return found


def interval(draws: np.ndarray) -> list[float]:
    """Low and high end of the 95 % percentile interval (Efron 1979) of resamples ``(R,)``."""
    return np.percentile(draws, (2.5, 97.5)).tolist()


def _iou(counted: np.ndarray) -> np.ndarray:
    """IoU ``(C,)`` of counts ``(images, 3, C)``; NaN where a class is in neither label map."""
    both, true, ours = counted.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return both / (true + ours - both)


def _precision(
    truth: Sequence[Boxes], found: Sequence[Detections], class_count: int
) -> Callable[[np.ndarray], np.ndarray]:
    """AP ``(thresholds, C)`` of images by their numbers, matched here once; NaN without objects."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    sets = objects, detections = COCO(), COCO()
    objects.dataset["annotations"] = [
        {"image_id": image, "category_id": category, "bbox": xywh, "iscrowd": int(ignored)}
        for image, boxes in enumerate(truth)
        for xywh, place, ignored in zip(boxes.xywh, boxes.classes, boxes.ignored, strict=True)
        for category in (range(class_count) if place < 0 else [int(place)])
    ]
    detections.dataset["annotations"] = [
        {"image_id": image, "category_id": int(place), "bbox": xywh, "score": score}
        for image, boxes in enumerate(found)
        for xywh, place, score in zip(boxes.xywh, boxes.classes, boxes.scores, strict=True)
    ]
    for coco in sets:
        coco.dataset["images"] = [{"id": image} for image in range(len(truth))]
        coco.dataset["categories"] = [{"id": place} for place in range(class_count)]
        for number, row in enumerate(coco.dataset["annotations"], 1):  # 0 means "no match"
            row |= {"id": number, "area": row["bbox"][2] * row["bbox"][3]}
    with contextlib.redirect_stdout(io.StringIO()):  # they print their progress
        for coco in sets:
            coco.createIndex()
        evaluation = COCOeval(objects, detections, "bbox")
        evaluation.params.areaRng = evaluation.params.areaRng[:1]  # objects of any size
        evaluation.params.maxDets = evaluation.params.maxDets[-1:]  # the best 100 of an image
        evaluation.evaluate()
    matched = np.array(evaluation.evalImgs, object).reshape(class_count, len(truth))

    def precision(images: np.ndarray) -> np.ndarray:
        evaluation.evalImgs = matched[:, np.sort(images)].ravel().tolist()
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.accumulate()
        ap = evaluation.eval["precision"][..., 0, 0].mean(axis=1)
        return np.where(ap < 0, np.nan, ap)

    return precision
