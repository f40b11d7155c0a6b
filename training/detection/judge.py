"""Average precision of one detector on the frames of every model: ``detection.json``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from difiisr_models.resample import SCALE
from difiisr_training.detection.annotations import (
    Annotations,
    Boxes,
    annotations_sha256,
    read_annotations,
)
from difiisr_training.detection.average_precision import IOU, average_precision
from difiisr_training.detection.onnx_detector import OnnxDetector
from difiisr_training.detection.peaks import Detections
from difiisr_training.evaluation.results import (
    FRAMES_FOLDER,
    HR_FOLDER,
    LR_FOLDER,
    frame_names,
    read_frame,
)

DETECTION_FILE = "detection.json"
HR_NAME = "HR"

_OVERLAYS = 6
_SHOWN_SCORE = 0.3
# What a class is called where another set has another word for it.
_SAME_CLASS = {
    "people": "person",
    "pedestrian": "person",
    "bike": "bicycle",
    "cyclist": "bicycle",
    "motorbike": "motorcycle",
}
_OTHER_VEHICLE = "othervehicle"
_VEHICLES = {"motorcycle", "airplane", "bus", "train", "truck", "boat"}


class NotAnnotated(ValueError):
    """The annotations hold no box for any frame of a set."""


def judge_detection(
    out: Path, set_slug: str, detector: Path, annotations: Path, models: Sequence[str] | None = None
) -> dict[str, Any]:
    """Let a detector judge every model's frames of a set; the same detector judges HR.

    Boxes are in pixels of the high-resolution frames. Without such frames (camera mode) they are
    in pixels of the low-resolution ones, and are enlarged by four.

    Args:
        out: folder of an evaluation; ``detection.json`` in it is written, and other sets that the
            same detector judged stay in it.
        set_slug: folder of the set in ``out/frames``.
        detector: an export of ``difiisr train-detector``, or FastestDet for COCO (.onnx).
        annotations: see :func:`read_annotations`; the images in it are named as the frames are.
        models: folders of the models to judge, and ``"hr"``; ``None``: all that there are.

    Returns:
        The content of ``detection.json``::

            {"detector": {"name", "sha256", "classes", "input_size"},
             "annotations": {SET: {"path", "sha256"}},
             "iou": what mAP is the mean over,
             "sets": {SET: {MODEL: {"map", "map_interval": [LOW, HIGH], "map50", "map50_interval",
                                    "per_class": {CLASS: {"ap", "ap50", "boxes"}},
                                    "images", "boxes"}}},
             "overlays": {SET: {FRAME: {MODEL: [{"box", "class", "score"}],
                                        "truth": [{"box", "class"}]}}}}

        A model is named as its folder, high resolution ``"HR"``. Boxes are left, top, width and
        height in pixels. Precisions are in 0..1, and ``null`` where there is no object.

    Raises:
        OSError: a file or folder is missing.
        NotAnnotated: no frame of the set is annotated.
        ValueError: the detector or the annotations are not understood.
    """
    finder, truth = OnnxDetector(detector), read_annotations(annotations)
    places = match_classes(finder.classes, truth.classes)
    root = Path(out) / FRAMES_FOLDER / set_slug
    folders = _series(root, models)
    scale = 1 if (root / HR_FOLDER).is_dir() else SCALE
    boxes = _boxes_of_frames(truth, frame_names(folders[0]), scale)
    if not boxes:
        raise NotAnnotated(
            f"{annotations} has no boxes for the frames of {set_slug}: they are named e.g. "
            f"{frame_names(folders[0])[0]}, its images e.g. {next(iter(truth.images), 'none')}"
        )
    shown = _evenly_spaced([name for name, b in boxes.items() if (~b.ignored).any()], _OVERLAYS)
    overlays = {name: {"truth": _truth_entries(boxes[name], truth.classes)} for name in shown}
    judged: dict[str, Any] = {}
    with tqdm(total=len(folders) * len(boxes), desc=f"detection, {set_slug}", unit="frame") as bar:
        for folder in folders:
            model = HR_NAME if folder.name == HR_FOLDER else folder.name
            found = {}
            for name in boxes:
                found[name] = _renamed(finder(read_frame(folder, name)), places)
                bar.update()
            precision = average_precision(
                list(boxes.values()), list(found.values()), truth.classes, intervals=True
            )
            judged[model] = dataclasses.asdict(precision)
            for name in shown:
                overlays[name][model] = _entries(found[name], truth.classes)
    described = {
        "detector": {
            "name": finder.path.name,
            "sha256": finder.sha256,
            "classes": list(finder.classes),
            "input_size": finder.input_size and list(finder.input_size),
        },
        "iou": IOU,
    }
    path = Path(out) / DETECTION_FILE
    result = described | _other_sets(path, described)
    result["annotations"][set_slug] = {
        "path": str(annotations),
        "sha256": annotations_sha256(annotations),
    }
    result["sets"][set_slug], result["overlays"][set_slug] = judged, overlays
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def match_classes(ours: Sequence[str], true: Sequence[str]) -> np.ndarray:
    """Place in ``true`` of each class in ``ours``; -1 for those that the truth does not know.

    Case and common synonyms do not matter. Vehicles that the truth has no class of its own for
    go to its class OtherVehicle, if it has one.

    Raises:
        ValueError: the two have no class in common.
    """
    places = {_canonical(name): place for place, name in enumerate(true)}
    other = places.get(_OTHER_VEHICLE, -1)
    matched = []
    for name in map(_canonical, ours):
        matched.append(places.get(name, other if name in _VEHICLES else -1))
    if max(matched, default=-1) < 0:
        raise ValueError(
            f"the detector finds {', '.join(ours)}, the annotations hold {', '.join(true)}: no "
            "class in common"
        )
    return np.array(matched, np.int64)


def _canonical(name: str) -> str:
    plain = name.lower().replace(" ", "").replace("_", "")
    return _SAME_CLASS.get(plain, plain)


def _series(root: Path, models: Sequence[str] | None) -> list[Path]:
    """Folders to judge: the models in alphabetical order, high resolution last."""
    if not root.is_dir():
        raise FileNotFoundError(f"no frames in {root}; run the evaluation first")
    folders = sorted(p for p in root.iterdir() if p.is_dir() and p.name != LR_FOLDER)
    folders = [p for p in folders if models is None or p.name in models]
    if not folders:
        raise FileNotFoundError(f"no model's frames in {root}; run the evaluation first")
    return sorted(folders, key=lambda p: p.name == HR_FOLDER)


def _boxes_of_frames(truth: Annotations, frames: Sequence[str], scale: int) -> dict[str, Boxes]:
    """Objects of each annotated frame; images may be named with or without their folders."""
    return {
        name: Boxes(boxes.xywh * scale, boxes.classes, boxes.ignored)
        for name, boxes in truth.of_frames(frames).items()
    }


def _evenly_spaced(names: Sequence[str], count: int) -> list[str]:
    if len(names) <= count:
        return list(names)
    return [names[i] for i in np.linspace(0, len(names) - 1, count).round().astype(int)]


def _renamed(found: Detections, places: np.ndarray) -> Detections:
    """The same detections by the classes of the truth; those of none are dropped."""
    classes = places[found.classes]
    kept = classes >= 0
    return Detections(found.xywh[kept], classes[kept], found.scores[kept])


def _entries(found: Detections, classes: Sequence[str]) -> list[dict[str, Any]]:
    rows = zip(found.xywh, found.classes, found.scores, strict=True)
    return [
        {"box": box.round(1).tolist(), "class": classes[place], "score": round(float(score), 3)}
        for box, place, score in rows
        if score >= _SHOWN_SCORE
    ]


def _truth_entries(boxes: Boxes, classes: Sequence[str]) -> list[dict[str, Any]]:
    rows = zip(boxes.xywh, boxes.classes, boxes.ignored, strict=True)
    return [
        {"box": box.round(1).tolist(), "class": classes[place]}
        for box, place, ignored in rows
        if not ignored
    ]


def _other_sets(path: Path, described: dict[str, Any]) -> dict[str, Any]:
    """What the file holds of other sets, if it was made in the same way."""
    if path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        if all(content.get(key) == value for key, value in described.items()):
            return {key: content[key] for key in ("annotations", "sets", "overlays")}
    return {"annotations": {}, "sets": {}, "overlays": {}}
