"""Plots as SVG that takes the page's text colour; legends are the page's own."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from difiisr_training.evaluation.report.spectra import frequencies

_INK = "#010203"  # replaced by the page's text colour
_COLOURS = (
    "#3b82c4", "#d9722e", "#2f9a57", "#c2498a", "#8467cf", "#a88a1e", "#2197a0", "#cf4a44",
)  # fmt: skip
_MARKERS = "os^DvPX*"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names are shown as they are
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Look:
    """Colour and marker of a model in all plots."""

    colour: str
    marker: str


def colour_of(index: int) -> str:
    """A colour that is seen on white and on black; they repeat after eight."""
    return _COLOURS[index % len(_COLOURS)]


def looks(models: Sequence[str]) -> dict[str, Look]:
    """A look for each model; they repeat after eight."""
    return {name: Look(colour_of(i), _MARKERS[i % len(_MARKERS)]) for i, name in enumerate(models)}


@dataclass(frozen=True)
class Point:
    """A model in the perception-distortion plot: mean and 95 % interval on both axes."""

    title: str
    look: Look
    x: float
    y: float
    x_interval: tuple[float | None, float | None]
    y_interval: tuple[float | None, float | None]


def scatter(
    points: Sequence[Point], x_label: str, y_label: str, x_lower: bool, y_lower: bool
) -> str:
    """Perception against distortion, best to the upper right.

    Args:
        points: one per model.
        x_label: of the axis, with unit.
        y_label: of the axis, with unit.
        x_lower: whether lower is better; the axis is then turned round.
        y_lower: the same for the other axis.
    """

    def draw(axes: Axes) -> None:
        for point in sorted(points, key=lambda p: p.y):
            axes.errorbar(
                point.x,
                point.y,
                xerr=_arms(point.x, point.x_interval),
                yerr=_arms(point.y, point.y_interval),
                fmt=point.look.marker,
                color=point.look.colour,
                ms=9,
                elinewidth=1.2,
                alpha=0.95,
            )
        axes.margins(0.16)
        if x_lower:
            axes.invert_xaxis()
        if y_lower:
            axes.invert_yaxis()
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.annotate(
            "better \N{NORTH EAST ARROW}", (1, 1), (-4, -2), "axes fraction", "offset points",
            ha="right", va="top", alpha=0.7,
        )  # fmt: skip

    return _svg(f"scatter {x_label} {y_label}", draw, (6.4, 4.2))


def spectrum(
    lines: Sequence[tuple[np.ndarray, Look | None, bool]], low_resolution_limit: float
) -> str:
    """Radial power, logarithmic.

    Args:
        lines: power per ring, look (``None``: the text's colour), whether dashed.
        low_resolution_limit: highest frequency that the low-resolution frame holds.
    """

    def draw(axes: Axes) -> None:
        at = frequencies(len(lines[0][0]))
        for power, look, dashed in lines:
            shown = np.where(power > 0, power, np.nan)
            colour, width = (look.colour, 1.8) if look else (_INK, 1.4)
            axes.plot(at, shown, color=colour, lw=width, ls="--" if dashed else "-")
        axes.axvline(low_resolution_limit, color=_INK, lw=0.8, ls=":")
        axes.annotate(
            "limit of the input", (low_resolution_limit, 1), (4, -2),
            ("data", "axes fraction"), "offset points", va="top", alpha=0.7,
        )  # fmt: skip
        axes.set(
            xlabel="cycles per pixel", ylabel="power, counts\N{SUPERSCRIPT TWO}", xlim=(0, 0.5)
        )
        if any((power > 0).any() for power, _, _ in lines):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(_power_of_ten)

    return _svg("spectrum", draw, (6.4, 4.2))


def curves(lines: Mapping[str, Sequence[float]], look: Mapping[str, Look], label: str) -> str:
    """One value per frame and model, in the frames' order; ``label``: what they are."""

    def draw(axes: Axes) -> None:
        for name, values in lines.items():
            shown = np.where(np.isfinite(values), values, np.nan)
            axes.plot(
                np.arange(len(shown)), shown, color=look[name].colour, lw=1.2,
                marker=look[name].marker, ms=4 if len(shown) <= 60 else 0,
            )  # fmt: skip
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="frame")

    return _svg(f"curves {label}", draw, (4.8, 2.9))


def _power_of_ten(value: float, _: int) -> str:
    return "10" + str(round(np.log10(value))).translate(_RAISED)


def _arms(value: float, interval: tuple[float | None, float | None]) -> list[list[float]] | None:
    low, high = interval
    if low is None or high is None:
        return None
    return [[max(value - low, 0)], [max(high - value, 0)]]


def _svg(salt: str, draw: Callable[[Axes], None], size: tuple[float, float]) -> str:
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        axes.grid(alpha=0.13)
        draw(axes)
        text = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(text, metadata=nothing)
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace(_INK, "currentColor")
