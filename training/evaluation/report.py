"""``report.html``: one page about an evaluation that holds all it shows and opens offline."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd

from difiisr_models.files import sha256_file, write_text
from difiisr_training.evaluation import figures
from difiisr_training.evaluation.figures import Look, read_images, side_by_side, to_gray
from difiisr_training.evaluation.measures import MetricInfo
from difiisr_training.evaluation.results import (
    HR_FOLDER,
    PER_FRAME_FILE,
    RESULTS_FILE,
    Interval,
    Results,
    SetResult,
    frames_folder,
    read_frame,
    short_names,
    slug,
)

REPORT_FILE = "report.html"
MOST_PANELS_OF_A_SET, MOST_PANELS, MOST_OVERLAYS = 6, 36, 4
_GROUPS = {  # tables by the beginnings of their metrics' names; the first takes all others
    "Picture quality": ("",),
    "Faithful to the counts": ("consistency", "error", "kelvin"),
    "Steady in time": ("flicker",),
}
_LPIPS = ("lpips_squeeze", "lpips_alex", "lpips_vgg")
_HEADLINES = (("psnr", "niqe"), _LPIPS, ("flicker",), ("consistency_mean",))
_TRADE_OFF = ((*_LPIPS, "niqe"), ("psnr", "consistency_mean"))
_ARROWS = {
    "higher": "\N{UPWARDS ARROW}",
    "lower": "\N{DOWNWARDS ARROW}",
    "zero": "\N{RIGHTWARDS ARROW}\N{THIN SPACE}0",
}
_SCORES = {"map": "mAP@.5:.95", "map50": "mAP@.5", "miou": "mIoU"}
_NOT_MODELS = {"HR": "Reference (HR)", "truth": "Annotated"}
_NOTHING = "\N{EM DASH}"


class Cell(NamedTuple):
    """A number in a table."""

    text: str
    interval: str = ""  # "[low, high]"
    best: bool = False
    verdict: str = ""  # "better" or "worse" than bicubic


def write_report(results: Results, out: Path) -> Path:
    """Write ``report.html`` about ``results``, whose files and frames lie in ``out``.

    The same results give the same bytes.

    Raises:
        FileNotFoundError: ``results.json``, ``per_frame.csv`` or a frame is missing.
    """
    metrics, models = results.metrics, results.sets[0].models
    look = figures.looks([model.name for model in models])
    most = max(1, min(MOST_PANELS_OF_A_SET, MOST_PANELS // len(results.sets)))
    headlines = [one for names in _HEADLINES if (one := _first(names, metrics))] or list(metrics)
    del headlines[3:]
    titles = {model.name: model.title for model in models}
    by_folder = {slug(name): title for name, title in titles.items()} | _NOT_MODELS
    set_titles = short_names([chosen.name for chosen in results.sets])
    by_folder |= {
        slug(chosen.name): title for chosen, title in zip(results.sets, set_titles, strict=True)
    }
    parts = {"detection": results.detection, "segmentation": results.segmentation}
    seconds = np.mean([[m.seconds_per_frame for m in c.models] for c in results.sets], axis=0)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"counts": _counts, "percent": "{:.3f}%".format, "size": _size}
    environment.tests["finite"] = math.isfinite
    template = (resources.files(__package__) / "report.html.j2").read_text("utf-8")
    text = environment.from_string(template).render(
        results=results,
        metrics=metrics,
        headlines=headlines,
        headline_columns=[_column(metrics[key]) for key in headlines],
        sections=[
            _section(out, f"set-{number}", chosen, metrics, headlines, look, most)
            | {"title": title}
            for number, (chosen, title) in enumerate(zip(results.sets, set_titles, strict=True), 1)
        ],
        tasks=[_task_section(out, name, part, by_folder) for name, part in parts.items() if part],
        models=models,
        titles=titles,
        times=dict(zip(titles, (number(1000 * mean, 0) for mean in seconds), strict=True)),
        look=look,
        bar=figures.colour_bar(),
        command=shlex.join(results.command),
        hashes={name: sha256_file(out / name) for name in (RESULTS_FILE, PER_FRAME_FILE)},
        looked_at=figures.MOST_LOOKED_AT,
    )
    write_text(out / REPORT_FILE, text)
    return out / REPORT_FILE


def _section(
    out: Path,
    anchor: str,
    chosen: SetResult,
    metrics: Mapping[str, MetricInfo],
    headlines: Sequence[str],
    look: Mapping[str, Look],
    most: int,
) -> dict[str, Any]:
    """All that the page shows of one set."""
    cells = {key: _mean_cells(chosen, key, info) for key, info in metrics.items()}
    deltas = {key: _delta_cells(chosen, key, info) for key, info in metrics.items()}
    grouped: dict[str, dict[str, MetricInfo]] = {title: {} for title in _GROUPS}
    for key, info in metrics.items():
        title = [title for title, heads in _GROUPS.items() if key.startswith(heads)][-1]
        grouped[title][key] = info
    worst = figures.choose_frames(out, chosen, most)
    images = [read_images(out, chosen, frame) for frame, _ in worst]
    return {
        "anchor": anchor,
        "result": chosen,
        "cells": cells,
        "deltas": deltas,
        "leaders": {key: _leaders(chosen, key, metrics[key]) for key in headlines},
        "tables": [_table(title, chosen, own, cells) for title, own in grouped.items() if own],
        "differences": _table("Against bicubic", chosen, metrics, deltas),
        "panels": [figures.panel(i, window) for i, (_, window) in zip(images, worst, strict=True)],
        "whole": side_by_side(images[0], figures.compact_picture),
        "plot": _trade_off(chosen, metrics, look),
    }


# Numbers: how they are written, ranked and put in tables.


def decimals(values: Iterable[float]) -> int:
    """Digits after the point for a column: about four that count in its largest number."""
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0)
    if largest == 0:
        return 2
    return min(max(3 - math.floor(math.log10(largest)), 1), 6) if largest < 100 else 1


def number(value: float, digits: int, signed: bool = False) -> str:
    """A number for a cell, with a true minus sign."""
    if math.isnan(value):
        return _NOTHING
    if math.isinf(value):
        return "\N{INFINITY}"
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def _interval(ends: Interval, digits: int, signed: bool = False) -> str:
    low, high = ends
    if math.isnan(low) or low == high:
        return ""
    return f"[{number(low, digits, signed)}, {number(high, digits, signed)}]"


def _goodness(value: float, better: str) -> float:
    """A number that is the larger the better the value is."""
    return {"higher": value, "lower": -value, "zero": -abs(value)}[better]


def best_of(values: Mapping[str, float], better: str) -> set[str]:
    """The names of the best values; none where fewer than two differ. NaN is never best."""
    scores = pd.Series({name: _goodness(value, better) for name, value in values.items()})
    return set(scores.index[scores == scores.max()]) if scores.nunique() > 1 else set()


def _mean_cells(chosen: SetResult, key: str, info: MetricInfo) -> dict[str, Cell]:
    """Means of a metric with intervals, per model."""
    means = {model.name: model.mean[key] for model in chosen.models}
    digits, best = decimals(means.values()), best_of(means, info.better)
    return {
        m.name: Cell(
            number(means[m.name], digits), _interval(m.interval[key], digits), m.name in best
        )
        for m in chosen.models
    }


def _leaders(chosen: SetResult, key: str, info: MetricInfo) -> list[str]:
    """The models that are best in a metric, but bicubic in what is measured in bicubic's own."""
    means = {model.name: model.mean[key] for model in chosen.models}
    if key == "flicker":
        means.pop("bicubic", None)
        return sorted(best_of(means, info.better) or means)
    return sorted(best_of(means, info.better))


def _delta_cells(chosen: SetResult, key: str, info: MetricInfo) -> dict[str, Cell]:
    """Differences to bicubic of the other models; none where bicubic was not asked for."""
    found = {m.name: m.difference_to_bicubic.get(key) for m in chosen.models if m.name != "bicubic"}
    found = {name: one for name, one in found.items() if one}
    digits, cells = decimals(one["mean"] for one in found.values()), {}
    for name, one in found.items():
        ends, verdict = one["interval"], ""
        if chosen.frames > 1 and info.better != "zero" and (ends[0] > 0 or ends[1] < 0):
            verdict = "better" if _goodness(ends[0], info.better) > 0 else "worse"
        text = number(one["mean"], digits, signed=True)
        cells[name] = Cell(text, _interval(ends, digits, signed=True), verdict=verdict)
    return cells


def _table(
    title: str,
    chosen: SetResult,
    metrics: Mapping[str, MetricInfo],
    cells: Mapping[str, Mapping[str, Cell]],
) -> dict[str, Any]:
    """A row per model that has cells, a column per metric."""
    rows = [
        (m.title, [cells[key][m.name] for key in metrics])
        for m in chosen.models
        if any(m.name in cells[key] for key in metrics)
    ]
    return {"title": title, "columns": [_column(i) for i in metrics.values()], "rows": rows}


def _column(info: MetricInfo) -> tuple[str, str]:
    """Head of a metric's column with its unit, and the way that is better."""
    return f"{info.label} ({info.unit})" if info.unit else info.label, _ARROWS[info.better]


def _first(names: Iterable[str], metrics: Mapping[str, MetricInfo]) -> str | None:
    return next((name for name in names if name in metrics), None)


def _size(parameters: int | None) -> str:
    if parameters is None:
        return _NOTHING
    return f"{parameters / 1e6:.2f} M" if parameters >= 10_000 else str(parameters)


def _counts(value: float) -> str:
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def _trade_off(
    chosen: SetResult, metrics: Mapping[str, MetricInfo], look: Mapping[str, Look]
) -> dict[str, str] | None:
    """Perception and distortion; nothing where either was not measured."""
    keys = [_first(names, metrics) for names in _TRADE_OFF]
    if None in keys:
        return None
    points = [
        (look[m.name], *((m.mean[key], m.interval[key]) for key in keys)) for m in chosen.models
    ]
    x, y = (_column(metrics[key])[0] for key in keys)
    svg = figures.trade_off(points, (x, y), [metrics[key].better == "lower" for key in keys])
    text = f"{y} against {x}; bars are 95 % intervals, better is to the upper right."
    return {"svg": svg, "text": text}


# Detection and segmentation.


def _task_section(
    out: Path, name: str, content: Mapping[str, Any], titles: Mapping[str, str]
) -> dict[str, Any]:
    """What a detector or a segmenter made of the results: tables, and boxes drawn on frames.

    ``content`` is that part of the results; its sets and models are named as their folders, ``HR``
    is the reference and ``truth`` what was annotated. All else in it becomes notes. ``titles``: of
    sets and models, by the names of their folders.
    """
    overlays = content.get("overlays", {})
    shown = [boxes for of_set in overlays.values() for boxes in of_set.values()]
    classes = sorted(
        {b["class"] for by_model in shown for found in by_model.values() for b in found}
    )
    return {
        "anchor": name,
        "title": name.capitalize(),
        "notes": [
            f"{key.replace('_', ' ')}: {_in_words(value)}"
            for key, value in content.items()
            if key not in ("sets", "overlays") and _in_words(value)
        ],
        "tables": [
            _task_table(titles.get(chosen, chosen), models, titles)
            for chosen, models in content.get("sets", {}).items()
        ],
        "overlays": [
            _overlay(out, chosen, frame, boxes, titles, classes)
            for chosen, frames in overlays.items()
            for frame, boxes in list(frames.items())[:MOST_OVERLAYS]
        ],
    }


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_in_words(one)}" for key, one in value.items() if one)
    return " ".join(map(str, value)) if isinstance(value, list) else str(value or "")


def _task_table(
    name: str, models: Mapping[str, Mapping[str, Any]], titles: Mapping[str, str]
) -> dict[str, Any]:
    """Scores of a set, and the first of them per class; the best among the models alone."""
    scores: dict[str, dict[str, float]] = {}
    for model, found in models.items():
        scores[model] = {key: found[key] for key in _SCORES if found.get(key) is not None}
        for one, score in found.get("per_class", {}).items():
            scores[model][one] = score["ap"] if isinstance(score, Mapping) else score
    table, columns = pd.DataFrame(scores, dtype=np.float64), []
    rows: dict[str, list[Cell]] = {model: [] for model in models}
    for key, values in table.iterrows():
        of_class = _SCORES[table.index[0]][1:]  # AP of mAP, IoU of mIoU
        columns.append((_SCORES.get(key, f"{key}, {of_class}"), _ARROWS["higher"]))
        best = best_of(values.drop(_NOT_MODELS, errors="ignore").to_dict(), "higher")
        for model, value in values.items():
            ends = models[model].get(f"{key}_interval") or (math.nan, math.nan)
            rows[model].append(Cell(number(value, 3), _interval(ends, 3), model in best))
    titled = [(titles.get(model, model), cells) for model, cells in rows.items()]
    return {"title": name, "columns": columns, "rows": titled}


def _overlay(
    out: Path,
    set_slug: str,
    frame: str,
    boxes: Mapping[str, Sequence[Mapping[str, Any]]],
    titles: Mapping[str, str],
    classes: Sequence[str],
) -> dict[str, Any]:
    """A frame with the boxes in each result; annotations lie on HR, or on a result without it."""
    order = sorted(boxes, key=lambda series: series != "truth")
    reference = HR_FOLDER
    if not frames_folder(out, set_slug, HR_FOLDER).is_dir():
        reference = next(series for series in order if series not in _NOT_MODELS)
    tiles = []
    for series in order:
        folder = frames_folder(out, set_slug, reference if series in _NOT_MODELS else series)
        drawn = figures.draw_boxes(to_gray(read_frame(folder, frame)), boxes[series], classes)
        tiles.append((titles.get(series, series), figures.compact_picture(drawn)))
    named = ", ".join(sorted({box["class"] for found in boxes.values() for box in found}))
    text = f"{titles.get(set_slug, set_slug)}. Boxes: {named or 'none'}."
    return {"frame": frame, "text": text, "tiles": tiles}
