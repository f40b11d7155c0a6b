"""Pictures and plots inside the page: data URIs of PNG and WebP, SVG in the page's text colour."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

_LARGEST_SIDE, _QUALITY = 960, 88
_INK = "#010203"  # replaced by the page's text colour
_COLOURS = (
    "#3b82c4", "#d9722e", "#2f9a57", "#c2498a", "#8467cf", "#a88a1e", "#2197a0", "#cf4a44",
)  # fmt: skip
_MARKERS = "os^DvPX*"
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names are shown as they are
    "font.family": "sans-serif",
    "font.size": 11,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color",
         "grid.color"), _INK,
    ),
    "axes.spines.top": False,
    "axes.spines.right": False,
}  # fmt: skip

Look = tuple[str, str]
"""Colour and marker."""


class Picture(NamedTuple):
    """An inline picture: source and size in pixels."""

    uri: str
    width: int
    height: int


def colour_of(index: int) -> str:
    """A colour that is seen on white and on black; they repeat after eight."""
    return _COLOURS[index % len(_COLOURS)]


def looks(models: Sequence[str]) -> dict[str, Look]:
    """Colour and marker of each model in all plots; they repeat after eight."""
    return {m: (colour_of(i), _MARKERS[i % len(_MARKERS)]) for i, m in enumerate(models)}


def gray_range(counts: np.ndarray) -> tuple[float, float]:
    """Counts shown as black and as white: the 0.2 % and 99.8 % quantiles.

    Single hot or dead pixels do not set them.
    """
    low, high = np.quantile(counts, (0.002, 0.998))
    return float(low), float(high) if high > low else float(low) + 1


def to_gray(counts: np.ndarray, shown: tuple[float, float] | None = None) -> np.ndarray:
    """``(H, W)`` counts as uint8 gray; ``shown``: by default :func:`gray_range`."""
    low, high = shown or gray_range(counts)
    scaled = (counts.astype(np.float64) - low) / (high - low)
    return np.rint(scaled.clip(0, 1) * 255).astype(np.uint8)


def to_signed_colour(error: np.ndarray, limit: float) -> np.ndarray:
    """``(H, W)`` counts, ``-limit..limit``, as uint8 RGB: blue below, white at 0, red above."""
    return matplotlib.colormaps["RdBu_r"]((error / limit + 1) / 2, bytes=True)[..., :3]


def draw_boxes(gray: np.ndarray, boxes: Sequence[Mapping], classes: Sequence[str]) -> np.ndarray:
    """Boxes (``{"box": [left, top, width, height], "class", "score"}``) on gray ``(H, W)``; RGB."""
    image = Image.fromarray(gray).convert("RGB")
    brush = ImageDraw.Draw(image)
    for box in boxes:
        left, top, width, height = box["box"]
        colour = colour_of(classes.index(box["class"]))
        brush.rectangle((left, top, left + width, top + height), outline=colour, width=2)
        score = f" {box['score']:.2f}" if "score" in box else ""
        brush.text((left, max(top - 11, 0)), f"{box['class']}{score}", fill=colour)
    return np.asarray(image)


def exact_picture(pixels: np.ndarray) -> Picture:
    """PNG without loss, for crops; uint8 ``(H, W)`` or ``(H, W, 3)``."""
    return _encode(Image.fromarray(pixels), "png", optimize=True)


def compact_picture(pixels: np.ndarray) -> Picture:
    """WebP with a little loss, at most 960 pixels on a side, for whole frames."""
    image = Image.fromarray(pixels)
    image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
    return _encode(image, "webp", quality=_QUALITY, method=4)


def colour_bar() -> Picture:
    """The colours of :func:`to_signed_colour` from left to right."""
    return exact_picture(to_signed_colour(np.linspace(-1, 1, 256)[None], 1.0))


def trade_off(
    points: Sequence[tuple[Look, tuple, tuple]], labels: tuple[str, str], lower: Sequence[bool]
) -> str:
    """Perception against distortion, best to the upper right; SVG.

    Args:
        points: per model its look, and ``(mean, (low, high))`` on both axes.
        labels: of the axes, with units.
        lower: for both axes, whether lower is better; the axis is then turned round.
    """

    def draw(axes: Axes) -> None:
        for (colour, marker), (x, x_ends), (y, y_ends) in sorted(points, key=lambda p: p[2][0]):
            axes.plot(x, y, marker, color=colour, ms=9, alpha=0.95)
            axes.plot(x_ends, (y, y), (x, x), y_ends, color=colour, lw=1.2, alpha=0.95)
        axes.margins(0.16)
        axes.xaxis.set_inverted(lower[0])
        axes.yaxis.set_inverted(lower[1])
        axes.set(xlabel=labels[0], ylabel=labels[1])
        axes.annotate(
            "better \N{NORTH EAST ARROW}", (1, 1), (-4, -2), "axes fraction", "offset points",
            ha="right", va="top", alpha=0.7,
        )  # fmt: skip

    return _svg(f"scatter {labels[0]} {labels[1]}", draw, (4.8, 2.9))


def curves(lines: Mapping[str, Sequence[float]], look: Mapping[str, Look], label: str) -> str:
    """One value per frame and model, in the frames' order; ``label``: what they are. SVG."""

    def draw(axes: Axes) -> None:
        for name, values in lines.items():
            shown = np.where(np.isfinite(values), values, np.nan)
            axes.plot(
                np.arange(len(shown)), shown, color=look[name][0], lw=1.2, marker=look[name][1],
                ms=4 if len(shown) <= 60 else 0,
            )  # fmt: skip
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="frame")

    return _svg(f"curves {label}", draw, (4.8, 2.9))


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


def _encode(image: Image.Image, kind: str, **options: object) -> Picture:
    data = io.BytesIO()
    image.save(data, kind, **options)
    text = base64.b64encode(data.getvalue()).decode("ascii")
    return Picture(f"data:image/{kind};base64,{text}", *image.size)
