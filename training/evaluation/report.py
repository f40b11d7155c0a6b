"""``report.html``: one page about an evaluation that holds all it shows and opens offline."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd

from difiisr_models.files import sha256_file, write_text
from difiisr_training.evaluation import figures
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


class Cell(NamedTuple):
    """A number in a table."""

    text: str = "\N{EM DASH}"
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
    most = max(1, min(MOST_PANELS_OF_A_SET, MOST_PANELS // len(results.sets)))
    headlines = [one for names in _HEADLINES if (one := _first(names, metrics))] or list(metrics)
    del headlines[3:]
    titles = {model.name: model.title for model in models}
    set_titles = short_names([chosen.name for chosen in results.sets])
    names = [*titles, *(chosen.name for chosen in results.sets)]
    by_folder = dict(zip(map(slug, names), [*titles.values(), *set_titles], strict=True))
    parts = {"detection": results.detection, "segmentation": results.segmentation}
    seconds = np.mean([[m.seconds_per_frame for m in c.models] for c in results.sets], axis=0)
    colours = {name: figures.colour_of(place) for place, name in enumerate(titles)}
    text = fill_template(
        resources.files(__package__) / "report.html.j2",
        {"counts": _counts, "percent": "{:.3f}%".format, "size": _size},
        results=results,
        metrics=metrics,
        headlines=headlines,
        headline_columns=[_column(metrics[key]) for key in headlines],
        sections=[
            _section(out, chosen, metrics, headlines, colours, most)
            | {"title": title, "anchor": f"set-{number}"}
            for number, (chosen, title) in enumerate(zip(results.sets, set_titles, strict=True), 1)
        ],
        tasks=[
            _task_section(out, name, part, by_folder | _NOT_MODELS)
            for name, part in parts.items()
            if part
        ],
        models=models,
        titles=titles,
        times=dict(zip(titles, (_number(1000 * mean, 0) for mean in seconds), strict=True)),
        colours=colours,
        bar=figures.colour_bar(),
        command=shlex.join(results.command),
        hashes={name: sha256_file(out / name) for name in (RESULTS_FILE, PER_FRAME_FILE)},
        looked_at=figures.MOST_LOOKED_AT,
    )
    write_text(out / REPORT_FILE, text)
    return out / REPORT_FILE


def fill_template(template: Any, filters: Mapping[str, Any], **values: object) -> str:
    """The text of a template's file with these filters and values; the same gives the same."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= filters
    environment.tests["finite"] = math.isfinite
    return environment.from_string(template.read_text(encoding="utf-8")).render(**values)


def _section(
    out: Path,
    chosen: SetResult,
    metrics: Mapping[str, MetricInfo],
    headlines: Sequence[str],
    colours: Mapping[str, str],
    most: int,
) -> dict[str, Any]:
    """All that the page shows of one set."""
    cells, deltas, leaders = {}, {}, {}
    for key, info in metrics.items():
        means = {m.name: (m.mean[key], m.interval[key]) for m in chosen.models}
        differences = {
            m.name: (found["mean"], found["interval"])
            for m in chosen.models
            if m.name != "bicubic" and (found := m.difference_to_bicubic.get(key))
        }
        cells[key] = _cells(means, info.better)
        deltas[key] = _cells(differences, info.better, against_bicubic=True)
        if key == "flicker":  # measured in that of bicubic, which leads nobody
            means.pop("bicubic", None)
        best = best_of({name: mean for name, (mean, _) in means.items()}, info.better)
        leaders[key] = sorted(best or (means if key == "flicker" else ()))
    grouped: dict[str, list[str]] = {title: [] for title in _GROUPS}
    for key in metrics:
        grouped[[title for title, heads in _GROUPS.items() if key.startswith(heads)][-1]] += [key]
    titles = {model.name: model.title for model in chosen.models}

    def table(title: str, keys: Iterable[str], of: Mapping[str, dict[str, Cell]]) -> dict[str, Any]:
        return _table(title, [(_column(metrics[key]), of[key]) for key in keys], titles)

    worst = figures.choose_frames(out, chosen, most)
    return {
        "result": chosen,
        "cells": cells,
        "deltas": deltas,
        "leaders": {key: leaders[key] for key in headlines},
        "tables": [table(title, keys, cells) for title, keys in grouped.items() if keys],
        "differences": table("Against bicubic", metrics, deltas),
        "panels": [figures.panel(images, window) for images, window in worst],
        "whole": figures.side_by_side(worst[0][0], figures.compact_picture),
        "plot": _trade_off(chosen, metrics, colours),
    }


def _cells(
    found: Mapping[str, tuple[float, Interval]],
    better: str,
    *,
    digits: int | None = None,
    against_bicubic: bool = False,
) -> dict[str, Cell]:
    """A column: means with intervals by model, the best among them or what beats bicubic."""
    means = {name: mean for name, (mean, _) in found.items()}
    if digits is None:  # about four that count in the largest number
        largest = max((abs(v) for v in means.values() if math.isfinite(v)), default=0) or 1.0
        digits = min(max(3 - math.floor(math.log10(largest)), 1), 6) if largest < 100 else 1
    ranked = {name: mean for name, mean in means.items() if name not in _NOT_MODELS}
    best, cells = set() if against_bicubic else best_of(ranked, better), {}
    for name, (mean, (low, high)) in found.items():
        interval = verdict = ""
        if low < high:
            ends = (_number(end, digits, against_bicubic) for end in (low, high))
            interval = f"[{', '.join(ends)}]"
            if against_bicubic and better != "zero" and (low > 0 or high < 0):
                verdict = "better" if _goodness(low, better) > 0 else "worse"
        cells[name] = Cell(_number(mean, digits, against_bicubic), interval, name in best, verdict)
    return cells


def _table(
    title: str,
    columns: Sequence[tuple[tuple[str, str], Mapping[str, Cell]]],
    titles: Mapping[str, str],
) -> dict[str, Any]:
    """A row per model that has cells."""
    names = dict.fromkeys(name for _, cells in columns for name in cells)
    rows = [(titles.get(n, n), [cells.get(n, Cell()) for _, cells in columns]) for n in names]
    return {"title": title, "columns": [head for head, _ in columns], "rows": rows}


def _number(value: float, digits: int, signed: bool = False) -> str:
    """A number for a cell, with a true minus sign."""
    if math.isnan(value):
        return Cell().text
    if math.isinf(value):
        return "\N{INFINITY}"
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def _goodness(value: float, better: str) -> float:
    """A number that is the larger the better the value is."""
    return {"higher": value, "lower": -value, "zero": -abs(value)}[better]


def best_of(values: Mapping[str, float], better: str) -> set[str]:
    """The names of the best values; none where fewer than two differ. NaN is never best."""
    scores = pd.Series({name: _goodness(value, better) for name, value in values.items()})
    return set(scores.index[scores == scores.max()]) if scores.nunique() > 1 else set()


def _column(info: MetricInfo) -> tuple[str, str]:
    """Head of a metric's column with its unit, and the way that is better."""
    return f"{info.label} ({info.unit})" if info.unit else info.label, _ARROWS[info.better]


def _first(names: Iterable[str], metrics: Mapping[str, MetricInfo]) -> str | None:
    return next((name for name in names if name in metrics), None)


def _size(parameters: int | None) -> str:
    if parameters is None:
        return Cell().text
    return f"{parameters / 1e6:.2f} M" if parameters >= 10_000 else str(parameters)


def _counts(value: float) -> str:
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def _trade_off(
    chosen: SetResult, metrics: Mapping[str, MetricInfo], colours: Mapping[str, str]
) -> dict[str, str] | None:
    """Perception and distortion; nothing where either was not measured."""
    keys = [key for names in _TRADE_OFF if (key := _first(names, metrics)) is not None]
    if len(keys) < len(_TRADE_OFF):
        return None
    points = [
        (colours[m.name], *((m.mean[key], m.interval[key]) for key in keys)) for m in chosen.models
    ]
    x, y = (_column(metrics[key])[0] for key in keys)
    svg = figures.trade_off(points, (x, y), [metrics[key].better == "lower" for key in keys])
    text = f"{y} against {x}; bars are 95 % intervals, better is to the upper right."
    return {"svg": svg, "text": text}


def _task_section(
    out: Path, name: str, content: Mapping[str, Any], titles: Mapping[str, str]
) -> dict[str, Any]:
    """What a reader made of the results, in which sets and models are named as their folders."""
    overlays, shown = content.get("overlays", {}), {k: _in_words(v) for k, v in content.items()}
    drawn = [boxes for frames in overlays.values() for boxes in frames.values()]
    classes = sorted({box["class"] for of in drawn for found in of.values() for box in found})
    return {
        "anchor": name,
        "title": name.capitalize(),
        "notes": [
            f"{key.replace('_', ' ')}: {text}"
            for key, text in shown.items()
            if key not in ("sets", "overlays") and text
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
    """Scores of a set, the first of them per class, and paired differences of them all."""
    nowhere, any_model = (math.nan, math.nan), next(iter(models.values()))
    known = [key for key in _SCORES if key in any_model]
    found: dict[str, dict[str, tuple[float, Interval]]] = {
        _SCORES[key]: {m: (s[key], s.get(f"{key}_interval") or nowhere) for m, s in models.items()}
        for key in known
    }
    for one in any_model["per_class"]:
        scores = {m: s["per_class"][one] for m, s in models.items()}
        found[f"{one}, {_SCORES[known[0]][1:]}"] = {  # AP of mAP, IoU of mIoU
            m: (s["ap"] if isinstance(s, Mapping) else s, nowhere) for m, s in scores.items()
        }
    columns = []
    for head, column in found.items():
        numbers = {model: one for model, one in column.items() if one[0] is not None}
        columns.append(((head, _ARROWS["higher"]), _cells(numbers, "higher", digits=3)))
    for key, to in product(known, ("bicubic", "best_peer")):
        gaps = {m: gap for m, s in models.items() if (gap := s.get(f"difference_to_{to}"))}
        numbers = {m: (gap[key]["mean"], gap[key]["interval"]) for m, gap in gaps.items()}
        cells = _cells(numbers, "higher", digits=3, against_bicubic=True)
        if to == "best_peer":  # which is another for the best model
            peers = {m: titles.get(gap["model"], gap["model"]) for m, gap in gaps.items()}
            cells = {m: c._replace(interval=f"{c.interval} {peers[m]}") for m, c in cells.items()}
        if cells:
            head = f"{_SCORES[key]} above {to.replace('_', ' ')}"
            columns.append(((head, _ARROWS["higher"]), cells))
    return _table(name, columns, titles)


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
        gray = figures.to_gray(read_frame(folder, frame))
        drawn = figures.draw_boxes(gray, boxes[series], classes)
        tiles.append((titles.get(series, series), figures.compact_picture(drawn)))
    named = ", ".join(sorted({box["class"] for found in boxes.values() for box in found}))
    text = f"{titles.get(set_slug, set_slug)}. Boxes: {named or 'none'}."
    return {"frame": frame, "text": text, "tiles": tiles}
