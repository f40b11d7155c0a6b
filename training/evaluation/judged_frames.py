"""What a detector and a segmenter make of every model's frames of an evaluation."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from difiisr_models.files import sha256_file
from difiisr_models.resample import SCALE
from difiisr_training.data.annotations import (
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
from difiisr_training.evaluation.task_scores import (
    IOU,
    average_precision,
    compare,
    count_pixels,
    mean_iou,
)

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
