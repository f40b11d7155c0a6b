"""What a detector and a segmenter make of every model's frames of an evaluation.

Average precision and mean IoU of a set of images come with their intervals over the images.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from difiisr_models.files import sha256_file
from difiisr_models.resample import SCALE
from difiisr_training.data.annotations import (
    IGNORED,
    Boxes,
    annotations_sha256,
    images_by_name,
    pair_names,
    read_annotations,
    read_labels,
)
from difiisr_training.data.images import list_images
from difiisr_training.evaluation import readers
from difiisr_training.evaluation.inputs import evenly
from difiisr_training.evaluation.readers import Detections
from difiisr_training.evaluation.results import (
    FRAMES_FOLDER,
    HR_FOLDER,
    frame_names,
    read_frame,
    slug,
)

IOU = "0.50:0.95, step 0.05, at most 100 detections per image (COCO)"

_RESAMPLES = 200
_NO_PEERS = ("bicubic", "bicubic-consistent", "HR")
_HR_NAME = "HR"
_OVERLAYS = 6
_SHOWN_SCORE = 0.3
_SAME_CLASS = {  # what a class is called where another set has another word for it
    "people": "person", "pedestrian": "person", "bike": "bicycle", "cyclist": "bicycle",
    "motorbike": "motorcycle",
}  # fmt: skip
_VEHICLES = ("motorcycle", "airplane", "bus", "train", "truck", "boat")


def judge_detection(
    out: Path, sets: Mapping[str, Path], models: Sequence[str], detector: Path
) -> dict[str, Any]:
    """Let a detector judge every model's frames of some sets, and the high-resolution ones.

    Args:
        out: folder of an evaluation.
        sets: name of each set, and its annotations, see ``read_annotations``; images are named as
            the frames are. Boxes are in pixels of the high-resolution frames, without such (camera
            mode) of the low-resolution ones.
        models: folders of the models.
        detector: see ``OnnxDetector``.

    Returns:
        ``detection`` in ``results.json``; sets and models are named as their folders, high
        resolution ``"HR"``, scores are those of ``compare``, and boxes are left, top, width and
        height.

    Raises:
        OSError: a file or folder is missing.
        ValueError: the detector or the annotations are not understood, or no frame is annotated.
    """
    finder = readers.OnnxDetector(detector)
    judged = {slug(s): _detect(out, slug(s), models, finder, path) for s, path in sets.items()}
    described = {
        "name": finder.path.name,
        "sha256": finder.sha256,
        "classes": list(finder.classes),
        "input_size": finder.input_size and list(finder.input_size),
    }
    return {"detector": described, "iou": IOU} | _by_part(judged)


def _detect(
    out: Path, set_name: str, models: Sequence[str], finder: readers.OnnxDetector, annotations: Path
) -> dict[str, Any]:
    """The parts of ``judge_detection`` that each set has."""
    truth, (series, names) = read_annotations(annotations), _series(out, set_name, models)
    classes, places = truth.classes, match_classes(finder.classes, truth.classes)
    boxes = pair_names(names, truth.images)
    if not boxes:
        raise ValueError(
            f"{annotations} has no boxes for the frames of {set_name}: they are named e.g. "
            f"{names[0]}, its images e.g. {next(iter(truth.images), 'none')}"
        )
    if _HR_NAME not in series:
        boxes = {n: Boxes(b.xywh * SCALE, b.classes, b.ignored) for n, b in boxes.items()}

    def find(name: str, folder: Path) -> Detections:
        """By the classes of the truth; what is of none of them is dropped."""
        found = finder(read_frame(folder, name))
        known = places[found.classes] >= 0
        return Detections(found.xywh[known], places[found.classes[known]], found.scores[known])

    found = {
        model: [find(name, folder) for name in tqdm(boxes, model, unit="frame")]
        for model, folder in series.items()
    }
    scores = {
        model: average_precision(list(boxes.values()), detections, classes, resamples=True)
        for model, detections in found.items()
    }
    return {
        "annotations": {"path": str(annotations), "sha256": annotations_sha256(annotations)},
        "sets": compare(scores),
        "overlays": _overlays(boxes, found, classes),
    }


def judge_segmentation(
    out: Path,
    sets: Mapping[str, Path | None],
    models: Sequence[str],
    segmenter: Path,
    device: str = "cpu",
) -> dict[str, Any]:
    """Let a segmenter judge every model's frames of some sets.

    As :func:`judge_detection`, by a SegFormer's folder. ``sets`` has a folder of label maps for
    each, named as the frames, of the size of the high-resolution ones, in camera mode also of the
    low-resolution ones. ``None``: the reference is what the segmenter itself makes of the
    high-resolution frames: that says how far a model changes the segmentation, not how right it
    is, and HR is not listed.

    Returns:
        ``segmentation`` in ``results.json``; scores are those of ``compare``.

    Raises:
        OSError: a file or folder is missing, or there are neither labels nor HR frames.
        ValueError: labels do not fit the frames or the segmenter's classes.
    """
    model = readers.load_segformer(segmenter).to(device)
    judged = {slug(s): _segment(out, slug(s), models, model, path) for s, path in sets.items()}
    described = {
        "name": segmenter.name,
        "sha256": sha256_file(segmenter / "model.safetensors"),
        "classes": list(readers.class_names(model)),
    }
    has_labels = any(sets.values())
    mode = "ground truth" if has_labels else "agreement with HR pseudo-labels"
    return {"segmenter": described, "mode": mode} | _by_part(judged)


def _segment(
    out: Path, set_name: str, models: Sequence[str], model: Any, labels: Path | None
) -> dict[str, Any]:
    """The parts of ``judge_segmentation`` that each set has."""
    series, names = _series(out, set_name, models)
    classes, high = readers.class_names(model), series.get(_HR_NAME)
    maps = pair_names(names, images_by_name(labels)) if labels else {}
    if labels and not maps:
        raise ValueError(
            f"{labels} has no label map for the frames of {set_name}: they are named e.g. "
            f"{names[0]}, its files e.g. {list_images(labels)[0].name}"
        )
    if not labels and series.pop(_HR_NAME, None) is None:
        raise FileNotFoundError(f"{set_name} has neither label maps nor high-resolution frames")

    @functools.lru_cache(maxsize=1)  # the models follow one another, frame by frame
    def reference(name: str, size: tuple[int, int]) -> np.ndarray:
        if labels:
            return _fit_labels(maps[name], size, enlarge=high is None)
        assert high is not None, "without labels there is HR"
        return readers.segment(model, read_frame(high, name))

    counted: dict[str, list[np.ndarray]] = {name: [] for name in series}
    for frame, (name, folder) in product(tqdm(maps or names, unit="frame"), series.items()):
        result = readers.segment(model, read_frame(folder, frame))
        counted[name].append(count_pixels(reference(frame, result.shape), result, len(classes)))
    scores = {name: mean_iou(np.stack(counts), classes) for name, counts in counted.items()}
    return {"labels": labels and str(labels), "sets": compare(scores)}


def match_classes(ours: Sequence[str], true: Sequence[str]) -> np.ndarray:
    """Place in ``true`` of each class in ``ours``; -1 for those that the truth does not know.

    Case and common synonyms do not matter. Vehicles that the truth has no class of its own for
    go to its class OtherVehicle, if it has one.

    Raises:
        ValueError: the two have no class in common.
    """
    places = {_canonical(name): place for place, name in enumerate(true)}
    places = dict.fromkeys(_VEHICLES, places.get("othervehicle", -1)) | places
    matched = np.array([places.get(_canonical(name), -1) for name in ours], np.int64)
    if (matched < 0).all():
        raise ValueError(
            f"the detector finds {', '.join(ours)}, the annotations hold {', '.join(true)}: no "
            "class in common"
        )
    return matched


def _canonical(name: str) -> str:
    plain = name.lower().replace(" ", "").replace("_", "")
    return _SAME_CLASS.get(plain, plain)


def _fit_labels(path: Path, size: tuple[int, int], *, enlarge: bool) -> np.ndarray:
    """Label map as large as a result; ``enlarge``: it may be that of a low-resolution frame."""
    labels = read_labels(path)
    (height, width), (rows, columns) = labels.shape, size
    if enlarge and (height * SCALE, width * SCALE) == size:
        return labels.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    if not (0 <= height - rows < SCALE and 0 <= width - columns < SCALE):  # frames are cut
        raise ValueError(
            f"{path} is {width}x{height}, the results are {columns}x{rows}: label maps must be as "
            "large as the frames"
        )
    return labels[:rows, :columns]


def _series(out: Path, set_name: str, models: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """Name and folder of what is judged, HR last if there is any; and the names of the frames."""
    root = out / FRAMES_FOLDER / set_name
    series = {name: root / name for name in models}
    if (root / HR_FOLDER).is_dir():
        series[_HR_NAME] = root / HR_FOLDER
    return series, frame_names(next(iter(series.values())))


def _by_part(judged: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Parts of each set -> sets of each part."""
    parts = next(iter(judged.values()))
    return {part: {name: found[part] for name, found in judged.items()} for part in parts}


def _overlays(
    boxes: Mapping[str, Boxes], found: Mapping[str, Sequence[Detections]], classes: Sequence[str]
) -> dict[str, Any]:
    """What the report draws of some frames, evenly spaced among those that show an object."""

    def drawn(one: Boxes | Detections, shown: np.ndarray) -> list[dict[str, Any]]:
        rows = zip(one.xywh[shown].round(1).tolist(), one.classes[shown], strict=True)
        return [{"box": box, "class": classes[place]} for box, place in rows]

    overlays = {}
    full = [place for place, one in enumerate(boxes.values()) if not one.ignored.all()]
    for place in evenly(full, _OVERLAYS):
        name, truth = list(boxes.items())[place]
        overlays[name] = {"truth": drawn(truth, ~truth.ignored)}
        for model, of_frames in found.items():
            sure = of_frames[place].scores >= _SHOWN_SCORE
            scores = of_frames[place].scores[sure].round(3).tolist()
            rows = zip(drawn(of_frames[place], sure), scores, strict=True)
            overlays[name][model] = [row | {"score": score} for row, score in rows]
    return overlays


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
