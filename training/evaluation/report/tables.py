"""Tables of means: which columns stand together, and how each number is shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from difiisr_training.evaluation.report.ranking import Mark, goodness, marks
from difiisr_training.evaluation.results import FrameRow, Interval, MetricInfo, SetResult

_GROUPS = (
    ("Faithful to the counts", ("consistency", "error", "kelvin")),
    ("Steady in time", ("flicker",)),
)
_OTHERS = "Picture quality"
_HEADLINES = (
    ("psnr", "niqe"), ("lpips_squeeze", "lpips_alex", "lpips_vgg"), ("flicker",),
    ("consistency_mean",),
)  # fmt: skip
_MOST_HEADLINES = 3
_ARROWS = {
    "higher": "\N{UPWARDS ARROW}",
    "lower": "\N{DOWNWARDS ARROW}",
    "zero": "\N{RIGHTWARDS ARROW}\N{THIN SPACE}0",
}
NOTHING = "\N{EM DASH}"


@dataclass(frozen=True)
class Column:
    """A metric as a column: ``head`` with unit, ``arrow`` the way that is better."""

    key: str
    head: str
    arrow: str


@dataclass(frozen=True)
class Cell:
    """A number: text, interval, mark; ``verdict`` "better", "worse" or "" against bicubic."""

    text: str
    interval: str
    mark: Mark
    verdict: str = ""


@dataclass(frozen=True)
class Row:
    """A model's cells, headed by its title."""

    model: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Table:
    """One group of columns."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]


def column(key: str, info: MetricInfo) -> Column:
    """How a metric is headed."""
    unit = f" ({info.unit})" if info.unit else ""
    return Column(key, info.label + unit, _ARROWS[info.better])


def headline_metrics(metrics: Mapping[str, MetricInfo]) -> list[str]:
    """The few that the summary shows; the first ones where none is known."""
    known = [next((n for n in names if n in metrics), None) for names in _HEADLINES]
    return [name for name in known if name][:_MOST_HEADLINES] or list(metrics)[:_MOST_HEADLINES]


def groups(metrics: Sequence[str]) -> dict[str, list[str]]:
    """Metrics that stand in one table, by the table's title."""
    found: dict[str, list[str]] = {_OTHERS: [], **{title: [] for title, _ in _GROUPS}}
    for name in metrics:
        title = next((t for t, heads in _GROUPS if name.startswith(heads)), _OTHERS)
        found[title].append(name)
    return {title: names for title, names in found.items() if names}


def values_by_frame(
    rows: Sequence[FrameRow], chosen: SetResult, metric: str
) -> dict[str, list[float]]:
    """Per model of a set, one value per frame, in one order; NaN = no value."""
    frames = list(dict.fromkeys(row.frame for row in rows if row.set_name == chosen.name))
    known = {
        (row.model, row.frame): row.values.get(metric, math.nan)
        for row in rows
        if row.set_name == chosen.name
    }
    return {
        model.name: [known.get((model.name, frame), math.nan) for frame in frames]
        for model in chosen.models
    }


def metric_marks(
    chosen: SetResult, metrics: Mapping[str, MetricInfo], rows: Sequence[FrameRow]
) -> dict[str, dict[str, Mark]]:
    """Per metric and model, the mark."""
    return {
        key: marks(
            {model.name: model.mean.get(key) for model in chosen.models},
            values_by_frame(rows, chosen, key),
            info.better,
        )
        for key, info in metrics.items()
    }


def mean_tables(
    chosen: SetResult, metrics: Mapping[str, MetricInfo], marked: Mapping[str, Mapping[str, Mark]]
) -> list[Table]:
    """Means and intervals of a set, one table per group of metrics."""
    tables = []
    for title, keys in groups(list(metrics)).items():
        digits = {key: decimals([m.mean.get(key) for m in chosen.models]) for key in keys}
        rows = [
            Row(
                model.title,
                [
                    Cell(
                        number(model.mean.get(key), digits[key]),
                        interval(model.interval.get(key, (None, None)), digits[key]),
                        marked[key][model.name],
                    )
                    for key in keys
                ],
            )
            for model in chosen.models
        ]
        tables.append(Table(title, [column(key, metrics[key]) for key in keys], rows))
    return tables


def difference_table(chosen: SetResult, metrics: Mapping[str, MetricInfo]) -> Table | None:
    """Every model against bicubic, frame by frame; ``None`` where bicubic was not asked for."""
    models = [m for m in chosen.models if m.name != "bicubic" and m.difference_to_bicubic]
    if not models:
        return None
    rows = []
    for model in models:
        cells = []
        for key, info in metrics.items():
            found = model.difference_to_bicubic[key]
            digits = decimals([m.difference_to_bicubic[key].mean for m in models])
            verdict = _verdict(found.interval, info) if chosen.frames > 1 else ""
            cells.append(
                Cell(
                    number(found.mean, digits, signed=True),
                    interval(found.interval, digits, signed=True),
                    Mark(),
                    verdict,
                )
            )
        rows.append(Row(model.title, cells))
    return Table("Against bicubic", [column(k, i) for k, i in metrics.items()], rows)


def decimals(values: Sequence[float | None]) -> int:
    """Digits after the point for a column: about four that count in its largest number."""
    sizes = [abs(v) for v in values if v is not None and math.isfinite(v) and v != 0]
    if not sizes:
        return 2
    return (
        min(max(3 - math.floor(math.log10(max(sizes))), 0), 6)
        if max(sizes) < 10
        else (2 if max(sizes) < 100 else 1)
    )


def number(value: float | None, digits: int, signed: bool = False) -> str:
    """A number for a cell, with a true minus sign."""
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "\N{INFINITY}"
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def interval(ends: Interval, digits: int, signed: bool = False) -> str:
    """``[low, high]``, or "" where there is none."""
    low, high = ends
    if low is None or high is None or low == high:
        return ""
    return f"[{number(low, digits, signed)}, {number(high, digits, signed)}]"


def _verdict(ends: Interval, info: MetricInfo) -> str:
    """ "better" or "worse" where the whole interval lies on one side of 0."""
    low, high = ends
    if low is None or high is None or info.better == "zero" or low <= 0 <= high:
        return ""
    return "better" if goodness(low, info.better) > 0 else "worse"
