"""Putting the page together."""

from __future__ import annotations

import hashlib
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
import numpy as np

from difiisr_training.evaluation.report import panels, plots, tables
from difiisr_training.evaluation.report.pictures import colour_bar
from difiisr_training.evaluation.report.plots import Look, Point, looks
from difiisr_training.evaluation.report.ranking import Mark
from difiisr_training.evaluation.report.spectra import radial_power
from difiisr_training.evaluation.report.tasks import make_task
from difiisr_training.evaluation.results import (
    PER_FRAME_FILE,
    RESULTS_FILE,
    FrameRow,
    MetricInfo,
    Results,
    SetResult,
    TemperatureBin,
    read_per_frame,
    read_results,
    slug,
)

REPORT_FILE = "report.html"
MOST_PANELS_OF_A_SET, MOST_PANELS, MOST_SPECTRA = 6, 36, 12
_PERCEPTION = ("lpips_squeeze", "lpips_alex", "lpips_vgg", "niqe")
_DISTORTION = ("psnr", "consistency_mean")
_KELVIN = 273.15


@dataclass(frozen=True)
class Plot:
    """An SVG; ``text``: what it shows, "" where the title says it."""

    title: str
    svg: str
    text: str


@dataclass(frozen=True)
class Finding:
    """One line of the summary: the best of a set in a metric."""

    metric: str
    best: str
    value: str
    gain: str
    tied: Sequence[str]


@dataclass(frozen=True)
class SetSection:
    """All about one set.

    Attributes:
        anchor: of the section.
        result: as measured.
        strips: per frame and model, its headline numbers.
        findings: for the summary.
        tables: means.
        differences: to bicubic, if that was run.
        panels: crops.
        whole: the first panel's frame in full.
        trade_off: perception against distortion, if both were measured.
        spectra: radial power.
        curves: per frame; empty for one frame.
        bins: temperature bins as (range in kelvin, range in °C, bin).
    """

    anchor: str
    result: SetResult
    strips: Mapping[tuple[str, str], Sequence[str]]
    findings: Sequence[Finding]
    tables: Sequence[tables.Table]
    differences: tables.Table | None
    panels: Sequence[panels.Panel]
    whole: panels.SideBySide
    trade_off: Plot | None
    spectra: Plot
    curves: Sequence[Plot]
    bins: Sequence[tuple[str, str, TemperatureBin]]


@dataclass(frozen=True)
class Overview:
    """The summary's table: per model, the headline metrics of every set, time and size."""

    columns: Sequence[tuple[SetResult, Sequence[tables.Column]]]
    rows: Sequence[tuple[str, Sequence[tables.Cell], str, str]]


def write_report(out: Path) -> Path:
    """Write ``report.html`` about the results in ``out``.

    The page holds all that it shows and opens offline; the same results give the same bytes.

    Raises:
        FileNotFoundError: ``results.json``, ``per_frame.csv`` or a frame is missing.
        ValueError: the results are of another version, or without any set.
    """
    results, rows = read_results(out), read_per_frame(out)
    if not results.sets:
        raise ValueError(f"{out / RESULTS_FILE} holds no set; evaluate something first")
    models = {model.name: model for chosen in results.sets for model in chosen.models}
    titles = {name: model.title for name, model in models.items()}
    look = looks(list(titles))
    most = max(1, min(MOST_PANELS_OF_A_SET, MOST_PANELS // len(results.sets)))
    marked = [tables.metric_marks(chosen, results.metrics, rows) for chosen in results.sets]
    sections = [
        _section(out, f"set-{number}", chosen, results, rows, marks, look, most)
        for number, (chosen, marks) in enumerate(zip(results.sets, marked, strict=True), 1)
    ]
    parts = {"detection": results.detection, "segmentation": results.segmentation}
    by_folder = {slug(name): title for name, title in titles.items()}
    by_folder |= {slug(chosen.name): chosen.name for chosen in results.sets}
    tasks = [make_task(out, name, part, by_folder) for name, part in parts.items() if part]
    page = _environment().get_template("page.html.j2")
    text = page.render(
        results=results,
        sections=sections,
        overview=_overview(results, marked),
        tasks=tasks,
        models=list(models.values()),
        titles=titles,
        look=look,
        bar=colour_bar(),
        command=shlex.join(results.command),
        hashes={name: _sha256(out / name) for name in (RESULTS_FILE, PER_FRAME_FILE)},
        looked_at=panels.MOST_LOOKED_AT,
    )
    path = out / REPORT_FILE
    path.write_text(text, encoding="utf-8")
    return path


def _environment() -> jinja2.Environment:
    folder = resources.files(__package__)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text("utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"counts": _counts, "percent": lambda value: f"{value:.3f}%"}
    return environment


def _section(
    out: Path,
    anchor: str,
    chosen: SetResult,
    results: Results,
    rows: Sequence[FrameRow],
    marks: Mapping[str, Mapping[str, Mark]],
    look: Mapping[str, Look],
    most: int,
) -> SetSection:
    worst = panels.choose_frames(out, chosen, most)
    images = [panels.read_images(out, chosen, frame) for frame, _ in worst]
    return SetSection(
        anchor,
        chosen,
        _strips(chosen, results.metrics, rows),
        _findings(chosen, results.metrics, rows, marks),
        tables.mean_tables(chosen, results.metrics, marks),
        tables.difference_table(chosen, results.metrics),
        [panels.make_panel(i, window) for i, (_, window) in zip(images, worst, strict=True)],
        panels.whole_frames(images[0]),
        _trade_off(chosen, results.metrics, look),
        _spectra(out, chosen, look),
        _curves(chosen, results.metrics, rows, look),
        [
            (
                f"{one.low:g} to {one.high:g} K",
                f"{one.low - _KELVIN:.1f} to {one.high - _KELVIN:.1f} °C",
                one,
            )
            for one in chosen.temperature_bins or ()
        ],
    )


def _findings(
    chosen: SetResult,
    metrics: Mapping[str, MetricInfo],
    rows: Sequence[FrameRow],
    marks: Mapping[str, Mapping[str, Mark]],
) -> list[Finding]:
    found = []
    for key in tables.headline_metrics(metrics):
        best = next((m for m in chosen.models if marks[key][m.name].place == 1), None)
        if best is None:
            continue
        unit = f" {metrics[key].unit}".rstrip()
        digits = tables.decimals([model.mean[key] for model in chosen.models])
        gain = ""
        if best.name != "bicubic" and key in best.difference_to_bicubic:
            difference = best.difference_to_bicubic[key]
            gain = tables.number(difference.mean, digits, signed=True) + unit
        also = [m.name for m in chosen.models if marks[key][m.name].tied]
        value = tables.number(best.mean[key], digits) + unit
        found.append(Finding(metrics[key].label, best.name, value, gain, also))
    return found


def _strips(
    chosen: SetResult, metrics: Mapping[str, MetricInfo], rows: Sequence[FrameRow]
) -> dict[tuple[str, str], list[str]]:
    keys = tables.headline_metrics(metrics)[:2]
    found = {}
    for row in rows:
        if row.set_name == chosen.name:
            parts = [
                f"{metrics[key].label} {_counts(row.values[key])} {metrics[key].unit}".strip()
                for key in keys
                if math.isfinite(row.values[key])
            ]
            found[row.frame, row.model] = parts
    return found


def _overview(results: Results, marked: Sequence[Mapping[str, Mapping[str, Mark]]]) -> Overview:
    keys = tables.headline_metrics(results.metrics)
    columns = [
        (c, [tables.column(key, results.metrics[key]) for key in keys]) for c in results.sets
    ]
    names = dict.fromkeys(model.name for chosen in results.sets for model in chosen.models)
    rows = []
    for name in names:
        cells, seconds, parameters = [], [], None
        for chosen, marks in zip(results.sets, marked, strict=True):
            model = next((m for m in chosen.models if m.name == name), None)
            for key in keys:
                digits = tables.decimals([m.mean[key] for m in chosen.models])
                value = model.mean[key] if model else None
                mark = marks[key].get(name, Mark())
                cells.append(tables.Cell(tables.number(value, digits), "", mark))
            if model:
                seconds.append(model.seconds_per_frame)
                parameters = model.parameters
        known = [value for value in seconds if value is not None and math.isfinite(value)]
        time = f"{1000 * np.mean(known):.0f}" if known else tables.NOTHING
        rows.append((name, cells, time, _millions(parameters)))
    return Overview(columns, rows)


def _trade_off(
    chosen: SetResult, metrics: Mapping[str, MetricInfo], look: Mapping[str, Look]
) -> Plot | None:
    x = next((key for key in _PERCEPTION if key in metrics), None)
    y = next((key for key in _DISTORTION if key in metrics), None)
    if x is None or y is None:
        return None
    points = [
        Point(m.title, look[m.name], m.mean[x], m.mean[y], m.interval[x], m.interval[y])
        for m in chosen.models
        if m.mean[x] is not None and m.mean[y] is not None
    ]
    if not points:
        return None
    heads = [tables.column(key, metrics[key]).head for key in (x, y)]
    lower = [metrics[key].better == "lower" for key in (x, y)]
    return Plot(
        "Perception and distortion",
        plots.scatter(points, *heads, *lower),
        f"{heads[1]} against {heads[0]}; bars are 95 % intervals, better is to the upper right.",
    )


def _spectra(out: Path, chosen: SetResult, look: Mapping[str, Look]) -> Plot:
    power: dict[str, list[np.ndarray]] = {}
    frames = panels.evenly(panels.list_frames(out, chosen), MOST_SPECTRA)
    for frame in frames:
        images = panels.read_images(out, chosen, frame)
        shown = {f"model {name}": sr for name, sr in images.results.items()}
        shown["interpolated"] = images.interpolated()
        if images.hr is not None:
            shown["reference"] = images.hr
        for name, image in shown.items():
            power.setdefault(name, []).append(radial_power(image))
    mean = {name: np.mean(found, axis=0) for name, found in power.items()}
    lines = [(mean[f"model {m.name}"], look[m.name], False) for m in chosen.models]
    lines.append((mean["interpolated"], None, True))
    if "reference" in mean:
        lines.append((mean["reference"], None, False))
    text = (
        f"Radial power spectra, mean over {len(frames)} frames. Dashed: the input, interpolated "
        "(bicubic)."
    )
    if "reference" in mean:
        text += " Solid in the text's colour: the reference. Above it: invented; below it: lost."
    return Plot("Spectra", plots.spectrum(lines, 0.5 / images.scale), text)


def _curves(
    chosen: SetResult,
    metrics: Mapping[str, MetricInfo],
    rows: Sequence[FrameRow],
    look: Mapping[str, Look],
) -> list[Plot]:
    if chosen.frames < 2:
        return []
    found = []
    for key in tables.headline_metrics(metrics):
        label = tables.column(key, metrics[key]).head
        lines = tables.values_by_frame(rows, chosen, key)
        found.append(Plot(label, plots.curves(lines, look, label), ""))
    return found


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _counts(value: float) -> str:
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def _millions(parameters: int | None) -> str:
    if parameters is None:
        return tables.NOTHING
    return f"{parameters / 1e6:.2f} M" if parameters >= 10_000 else str(parameters)
