"""What a detector or a segmenter made of the results: tables, and boxes drawn on frames.

Read from the parts ``detection`` and ``segmentation`` of the results, or from ``detection.json``
and ``segmentation.json`` beside them::

    {"detector": {...}, "sets": [{"name": ..., "models": [
        {"name": "hr", "map": 0.41, "map50": 0.73,
         "per_class": {"Person": {"ap": 0.3, "ap50": 0.6, "boxes": 120}, ...}}, ...],
      "overlays": [{"frame": ..., "boxes": {"hr": [
        {"xywh": [x, y, w, h], "class": "Person", "score": 0.9}, ...], ...}}]}]}
    {"segmenter": {...}, "sets": [{"name": ..., "models": [
        {"name": ..., "miou": 0.52, "per_class": {"car": 0.7, ...}}, ...]}]}

``models`` may name ``hr`` and ``lr`` beside the models; "truth" among the boxes are the annotated
ones. Other entries of numbers and text are shown as notes. What is absent is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from difiisr_training.data.images import pillow_resize
from difiisr_training.evaluation.report.pictures import (
    Picture,
    compact_picture,
    gray_range,
    to_gray,
)
from difiisr_training.evaluation.report.plots import colour_of
from difiisr_training.evaluation.report.ranking import Mark, places
from difiisr_training.evaluation.report.tables import Cell, Column, Row, Table, number
from difiisr_training.evaluation.results import HR_FOLDER, LR_FOLDER, frames_folder, read_frame

_MOST_OVERLAYS = 4
_DIGITS = 3
_UP = "\N{UPWARDS ARROW}"
_SCORES = {"map": "mAP@.5:.95", "map50": "mAP@.5", "miou": "mIoU"}
SERIES = {
    HR_FOLDER: "Reference (HR)",
    LR_FOLDER: "Input (LR)",
    "truth": "Annotated",
}
"""Names among a task's models that are no model, and their titles."""


@dataclass(frozen=True)
class Overlay:
    """A frame with the boxes that were found in each result: ``(name, picture)``."""

    frame: str
    text: str
    tiles: Sequence[tuple[str, Picture]]


@dataclass(frozen=True)
class Task:
    """A section of the page."""

    anchor: str
    title: str
    notes: Sequence[str]
    tables: Sequence[Table]
    overlays: Sequence[Overlay]


def read_task(out: Path, name: str, part: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The part of the results called ``name``, or the file of that name; ``None`` without either.

    Raises:
        ValueError: the file is no JSON.
    """
    path = out / f"{name}.json"
    if part is None and path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    return part


def make_task(out: Path, name: str, content: Mapping[str, Any], titles: Mapping[str, str]) -> Task:
    """The section about a task; ``titles``: of the models."""
    sets = content.get("sets", [])
    overlays = [
        _overlay(out, chosen["name"], entry, titles)
        for chosen in sets
        for entry in chosen.get("overlays", [])
    ]
    return Task(
        anchor=name,
        title=name.capitalize(),
        notes=list(_notes(content)),
        tables=[_table(chosen) for chosen in sets if chosen.get("models")],
        overlays=overlays[:_MOST_OVERLAYS],
    )


def _notes(content: Mapping[str, Any]) -> list[str]:
    found = []
    for key, value in content.items():
        if key in ("sets", "version"):
            continue
        if isinstance(value, Mapping):
            parts = [f"{k} {v}" for k, v in value.items() if isinstance(v, (str, int, float))]
            value = ", ".join(parts)
        if isinstance(value, (str, int, float)):
            found.append(f"{key.replace('_', ' ')}: {value}")
    return found


def _table(chosen: Mapping[str, Any]) -> Table:
    """Scores of a set, per class behind them; best and second among the models alone."""
    models = chosen["models"]
    keys = [key for key in _SCORES if any(model.get(key) is not None for model in models)]
    classes = list(dict.fromkeys(c for model in models for c in model.get("per_class", {})))
    columns = [Column(key, _SCORES[key], _UP) for key in keys]
    columns += [Column(name, name, _UP) for name in classes]
    values = {
        model["name"]: [model.get(key) for key in keys]
        + [_of_class(model.get("per_class", {}).get(name)) for name in classes]
        for model in models
    }
    ranked = [
        places({m: cells[i] for m, cells in values.items() if m not in SERIES}, "higher")
        for i in range(len(columns))
    ]
    rows = [
        Row(
            model,
            [
                Cell(number(value, _DIGITS), "", Mark(ranked[i].get(model, 0)))
                for i, value in enumerate(cells)
            ],
        )
        for model, cells in values.items()
    ]
    return Table(chosen["name"], columns, rows)


def _of_class(entry: Mapping[str, Any] | float | None) -> float | None:
    if isinstance(entry, Mapping):
        return entry.get("ap", entry.get("iou"))
    return entry


def _overlay(
    out: Path, set_name: str, entry: Mapping[str, Any], titles: Mapping[str, str]
) -> Overlay:
    boxes = entry["boxes"]
    shown = {series: _frame_of(out, set_name, series, entry["frame"]) for series in boxes}
    size = max(image.shape for image in shown.values())
    classes = sorted({box["class"] for found in boxes.values() for box in found})
    tiles = []
    for series, found in boxes.items():
        image = shown[series]
        if image.shape != size:
            image = pillow_resize(image, *size)
        picture = compact_picture(_draw(to_gray(image, gray_range(image)), found, classes))
        tiles.append(({**titles, **SERIES}.get(series, series), picture))
    return Overlay(entry["frame"], f"{set_name}. Boxes: {', '.join(classes) or 'none'}.", tiles)


def _frame_of(out: Path, set_name: str, series: str, frame: str) -> np.ndarray:
    folder = frames_folder(out, set_name, HR_FOLDER if series == "truth" else series)
    return read_frame(folder, frame)


def _draw(
    gray: np.ndarray, boxes: Sequence[Mapping[str, Any]], classes: Sequence[str]
) -> np.ndarray:
    image = Image.fromarray(gray).convert("RGB")
    brush = ImageDraw.Draw(image)
    for box in boxes:
        left, top, width, height = box["xywh"]
        colour = colour_of(classes.index(box["class"]))
        brush.rectangle((left, top, left + width, top + height), outline=colour, width=2)
        score = f" {box['score']:.2f}" if "score" in box else ""
        brush.text((left, max(top - 11, 0)), f"{box['class']}{score}", fill=colour)
    return np.asarray(image)
