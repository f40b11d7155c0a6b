"""What a detector or a segmenter made of the results: tables, and boxes drawn on frames.

Read from the parts ``detection`` and ``segmentation`` of the results::

    {"detector": {...}, "sets": {SET: {MODEL: {"map": 0.41, "map_interval": [0.38, 0.44],
                                               "map50": 0.73, "map50_interval": [0.7, 0.76],
                                               "per_class": {CLASS: {"ap": 0.3, ...}}}}},
     "overlays": {SET: {FRAME: {MODEL: [{"box": [left, top, width, height], "class": CLASS,
                                         "score": 0.9}], "truth": [...]}}}}
    {"segmenter": {...}, "sets": {SET: {MODEL: {"miou": 0.52, "miou_interval": [0.5, 0.54],
                                                "per_class": {CLASS: 0.7}}}}}

SET and MODEL are names of folders; ``HR`` is the reference, and ``truth`` what was annotated.
Other entries of numbers and text are shown as notes. What is absent is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from difiisr_training.evaluation.report.pictures import (
    Picture,
    compact_picture,
    gray_range,
    to_gray,
)
from difiisr_training.evaluation.report.plots import colour_of
from difiisr_training.evaluation.report.ranking import Mark, places
from difiisr_training.evaluation.report.tables import Cell, Column, Row, Table, interval, number
from difiisr_training.evaluation.results import HR_FOLDER, LR_FOLDER, frames_folder, read_frame

_MOST_OVERLAYS = 4
_DIGITS = 3
_UP = "\N{UPWARDS ARROW}"
_SCORES = {"map": "mAP@.5:.95", "map50": "mAP@.5", "miou": "mIoU"}
SERIES = {
    "HR": "Reference (HR)",
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


def make_task(out: Path, name: str, content: Mapping[str, Any], titles: Mapping[str, str]) -> Task:
    """The section about a task; ``titles``: of sets and models, by the names of their folders."""
    classes = _classes(content)
    overlays = [
        _overlay(out, chosen, frame, boxes, titles, classes)
        for chosen, frames in content.get("overlays", {}).items()
        for frame, boxes in list(frames.items())[:_MOST_OVERLAYS]
    ]
    return Task(
        anchor=name,
        title=name.capitalize(),
        notes=_notes(content, titles),
        tables=[
            _table(titles.get(chosen, chosen), models, titles)
            for chosen, models in content.get("sets", {}).items()
        ],
        overlays=overlays,
    )


def _classes(content: Mapping[str, Any]) -> list[str]:
    """All classes that boxes are drawn of, so that each has one colour on the whole page."""
    return sorted({
        box["class"]
        for frames in content.get("overlays", {}).values()
        for boxes in frames.values()
        for found in boxes.values()
        for box in found
    })  # fmt: skip


def _notes(content: Mapping[str, Any], titles: Mapping[str, str]) -> list[str]:
    """A line per entry of numbers or text, and per set where an entry holds one for each."""
    found = []
    for key, value in content.items():
        if key in ("sets", "overlays", "version"):
            continue
        name = key.replace("_", " ")
        if key in ("annotations", "labels") and isinstance(value, Mapping):
            of_sets = {f"{name} of {titles.get(k, k)}": one for k, one in value.items()}
        else:
            of_sets = {name: value}
        found += [f"{name}: {_text(one)}" for name, one in of_sets.items() if _text(one)]
    return found


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        parts = [f"{k} {v}" for k, v in value.items() if isinstance(v, (str, int, float))]
        return ", ".join(parts)
    return str(value) if isinstance(value, (str, int, float)) else ""


def _table(name: str, models: Mapping[str, Mapping[str, Any]], titles: Mapping[str, str]) -> Table:
    """Scores of a set, and the first of them per class; marks among the models alone."""
    keys = [key for key in _SCORES if any(m.get(key) is not None for m in models.values())]
    classes = list(dict.fromkeys(c for m in models.values() for c in m.get("per_class", {})))
    columns = [Column(key, _SCORES[key], _UP) for key in keys]
    columns += [Column(one, f"{one}, {_of_one_class(keys)}", _UP) for one in classes]
    values = {
        model: [scores.get(key) for key in keys]
        + [_of_class(scores.get("per_class", {}).get(one)) for one in classes]
        for model, scores in models.items()
    }
    ends = {
        model: [scores.get(f"{key}_interval") or (None, None) for key in keys]
        + [(None, None)] * len(classes)
        for model, scores in models.items()
    }
    ranked = [
        places({m: cells[i] for m, cells in values.items() if m not in SERIES}, "higher")
        for i in range(len(columns))
    ]
    rows = [
        Row(
            _title(model, titles),
            [
                Cell(
                    number(value, _DIGITS),
                    interval(ends[model][i], _DIGITS),
                    Mark(ranked[i].get(model, 0)),
                )
                for i, value in enumerate(cells)
            ],
        )
        for model, cells in values.items()
    ]
    return Table(name, columns, rows)


def _of_one_class(keys: Sequence[str]) -> str:
    """What a score is called when it is not a mean over classes: AP of mAP, IoU of mIoU."""
    return _SCORES[keys[0]][1:] if keys else ""


def _title(model: str, titles: Mapping[str, str]) -> str:
    return SERIES.get(model) or titles.get(model, model)


def _of_class(entry: Mapping[str, Any] | float | None) -> float | None:
    if isinstance(entry, Mapping):
        return entry.get("ap", entry.get("iou"))
    return entry


def _overlay(
    out: Path,
    set_slug: str,
    frame: str,
    boxes: Mapping[str, Sequence[Mapping[str, Any]]],
    titles: Mapping[str, str],
    classes: Sequence[str],
) -> Overlay:
    order = sorted(boxes, key=lambda series: series != "truth")
    results = [series for series in order if series not in SERIES]
    drawn_classes = {box["class"] for found in boxes.values() for box in found}
    tiles = []
    for series in order:
        image = _frame_of(out, set_slug, series, frame, results)
        drawn = _draw(to_gray(image, gray_range(image)), boxes[series], classes)
        tiles.append((_title(series, titles), compact_picture(drawn)))
    named = ", ".join(sorted(drawn_classes)) or "none"
    text = f"{titles.get(set_slug, set_slug)}. Boxes: {named}."
    return Overlay(frame, text, tiles)


def _frame_of(
    out: Path, set_slug: str, series: str, frame: str, results: Sequence[str]
) -> np.ndarray:
    """The frame that boxes are drawn on; annotations lie on HR, or on a result without it."""
    folder = frames_folder(out, set_slug, HR_FOLDER)
    if series not in ("HR", "truth"):
        folder = frames_folder(out, set_slug, series)
    elif not folder.is_dir():
        folder = frames_folder(out, set_slug, results[0])
    return read_frame(folder, frame)


def _draw(
    gray: np.ndarray, boxes: Sequence[Mapping[str, Any]], classes: Sequence[str]
) -> np.ndarray:
    image = Image.fromarray(gray).convert("RGB")
    brush = ImageDraw.Draw(image)
    for box in boxes:
        left, top, width, height = box["box"]
        colour = colour_of(classes.index(box["class"]))
        brush.rectangle((left, top, left + width, top + height), outline=colour, width=2)
        score = f" {box['score']:.2f}" if "score" in box else ""
        brush.text((left, max(top - 11, 0)), f"{box['class']}{score}", fill=colour)
    return np.asarray(image)
