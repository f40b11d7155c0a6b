"""Mean IoU of one segmenter on the frames of every model: ``segmentation.json``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from difiisr_models.weights import sha256_file
from difiisr_training.data.images import list_images
from difiisr_training.evaluation.results import (
    FRAMES_FOLDER,
    HR_FOLDER,
    LR_FOLDER,
    frame_names,
    read_frame,
)
from difiisr_training.segmentation.iou import ConfusionMatrix
from difiisr_training.segmentation.labels import fit_labels, maps_of_frames, read_labels
from difiisr_training.segmentation.segformer import class_names, load_segformer, segment

SEGMENTATION_FILE = "segmentation.json"
HR_NAME = "HR"
GROUND_TRUTH = "ground truth"
PSEUDO_LABELS = "agreement with HR pseudo-labels"


class NotLabelled(ValueError):
    """There is no label map for any frame of a set."""


def judge_segmentation(
    out: Path,
    set_slug: str,
    segmenter: Path,
    labels: Path | None,
    models: Sequence[str] | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Let a segmenter judge every model's frames of a set.

    With ``labels`` the reference is the truth, and HR is judged like a model. Without, it is what
    the segmenter itself makes of the high-resolution frames: that says how far a model changes
    the segmentation, not how right it is, and HR is not listed.

    Args:
        out: folder of an evaluation; ``segmentation.json`` in it is written, and other sets that
            the same segmenter judged in the same mode stay in it.
        set_slug: folder of the set in ``out/frames``.
        segmenter: folder of a SegFormer (``config.json``, ``model.safetensors``).
        labels: folder of label maps named as the frames, of the size of the high-resolution ones,
            in camera mode also of the low-resolution ones; ``None``: pseudo-labels.
        models: folders of the models to judge, and ``"hr"``; ``None``: all that there are.
        device: where the segmenter runs.

    Returns:
        The content of ``segmentation.json``::

            {"segmenter": {"name", "sha256", "classes"},
             "mode": "ground truth" or "agreement with HR pseudo-labels",
             "labels": {SET: folder or null},
             "sets": {SET: {MODEL: {"miou", "miou_interval": [LOW, HIGH],
                                    "per_class": {CLASS: IoU}, "images", "pixels"}}}}

        IoU are in 0..1, and ``null`` for classes that do not occur.

    Raises:
        OSError: a file or folder is missing, or there are neither labels nor HR frames.
        NotLabelled: no frame of the set has a label map.
        ValueError: labels do not fit the frames or the segmenter's classes.
    """
    root = Path(out) / FRAMES_FOLDER / set_slug
    high = root / HR_FOLDER
    if labels is None and not high.is_dir():
        raise FileNotFoundError(
            f"{set_slug} has neither label maps nor high-resolution frames to make them of: give "
            "a folder of label maps"
        )
    if not root.is_dir():
        raise FileNotFoundError(f"no frames in {root}; run the evaluation first")
    left_out = {LR_FOLDER} if labels else {LR_FOLDER, HR_FOLDER}
    folders = sorted(p for p in root.iterdir() if p.is_dir() and p.name not in left_out)
    folders = [p for p in folders if models is None or p.name in models]
    if not folders:
        raise FileNotFoundError(f"no model's frames in {root}; run the evaluation first")
    folders.sort(key=lambda p: p.name == HR_FOLDER)
    model = load_segformer(segmenter).to(device)
    classes = class_names(model)
    names = frame_names(folders[0])
    if labels is not None:
        maps = maps_of_frames(Path(labels), names)
        if not maps:
            raise NotLabelled(
                f"{labels} has no label map for the frames of {set_slug}: they are named e.g. "
                f"{names[0]}, its files e.g. {list_images(labels)[0].name}"
            )
        names = list(maps)
    matrices = [ConfusionMatrix(len(classes)) for _ in folders]
    for name in tqdm(names, desc=f"segmentation, {set_slug}", unit="frame"):
        results = [segment(model, read_frame(folder, name), device) for folder in folders]
        if labels is None:
            reference = segment(model, read_frame(high, name), device)
        else:
            size, camera = results[0].shape, not high.is_dir()
            reference = fit_labels(read_labels(maps[name]), size, maps[name], enlarge=camera)
        for matrix, result in zip(matrices, results, strict=True):
            matrix.add(reference, result)
    described = {
        "segmenter": {
            "name": Path(segmenter).name,
            "sha256": sha256_file(Path(segmenter) / "model.safetensors"),
            "classes": list(classes),
        },
        "mode": PSEUDO_LABELS if labels is None else GROUND_TRUTH,
    }
    path = Path(out) / SEGMENTATION_FILE
    result = described | _other_sets(path, described)
    result["labels"][set_slug] = None if labels is None else str(labels)
    result["sets"][set_slug] = {
        HR_NAME if folder.name == HR_FOLDER else folder.name: dataclasses.asdict(
            matrix.agreement(classes)
        )
        for matrix, folder in zip(matrices, folders, strict=True)
    }
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _other_sets(path: Path, described: dict[str, Any]) -> dict[str, Any]:
    """What the file holds of other sets, if it was made in the same way."""
    if path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        if all(content.get(key) == value for key, value in described.items()):
            return {key: content[key] for key in ("labels", "sets")}
    return {"labels": {}, "sets": {}}
