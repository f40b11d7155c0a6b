"""What the page shows: the same place of a frame as every model sees it, and a plot.

Pictures are data URIs of PNG and WebP, the plot is SVG in the page's text colour.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from difiisr_models.resample import SCALE
from difiisr_training.degradations import bicubic, pillow_resize
from difiisr_training.evaluation.inputs import evenly
from difiisr_training.evaluation.results import (
    HR_FOLDER,
    LR_FOLDER,
    SetResult,
    frames_folder,
    read_frame,
)

CROP_SIDE = 64
MOST_LOOKED_AT = 48
_LARGEST_SIDE, _QUALITY = 960, 88
_INK = "#000000"  # replaced by the page's text colour
_COLOURS = (
    "#3b82c4", "#d9722e", "#2f9a57", "#c2498a", "#8467cf", "#a88a1e", "#2197a0", "#cf4a44",
)  # fmt: skip
_STYLE = {"text.parse_math": False, "font.family": "sans-serif", "font.size": 11}


class Picture(NamedTuple):
    """An inline picture: source and size in pixels."""

    uri: str
    width: int
    height: int


def colour_of(index: int) -> str:
    """A colour that is seen on white and on black; they repeat after eight."""
    return _COLOURS[index % len(_COLOURS)]


def gray_range(counts: np.ndarray) -> tuple[float, float]:
    """Counts shown as black and as white, but for 0.2 % at either end: hot and dead pixels."""
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
    points: Sequence[tuple[Any, ...]], labels: tuple[str, str], lower: Sequence[bool]
) -> str:
    """Perception against distortion, best to the upper right; SVG.

    Args:
        points: per model its colour, and ``(mean, (low, high))`` on both axes.
        labels: of the axes, with units.
        lower: for both axes, whether lower is better; the axis is then turned round.
    """
    with matplotlib.rc_context(_STYLE):  # names are shown as they are
        figure = Figure(figsize=(4.8, 2.9), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(alpha=0.13, color=_INK)
        for colour, (x, x_ends), (y, y_ends) in sorted(points, key=lambda point: point[2][0]):
            axes.plot(x, y, "o", color=colour, ms=9, alpha=0.95)
            axes.plot(x_ends, (y, y), (x, x), y_ends, color=colour, lw=1.2, alpha=0.95)
        axes.margins(0.16)
        axes.xaxis.set_inverted(lower[0])
        axes.yaxis.set_inverted(lower[1])
        axes.set(xlabel=labels[0], ylabel=labels[1])
        axes.annotate(
            "better \N{NORTH EAST ARROW}", (1, 1), (-4, -2), "axes fraction", "offset points",
            ha="right", va="top", alpha=0.7,
        )  # fmt: skip
        return svg_of(figure, f"scatter {labels[0]} {labels[1]}")


def svg_of(figure: Figure, salt: str) -> str:
    """A figure as an SVG element in the page's text colour; ``salt``: names apart from others'."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    text, nothing = io.StringIO(), dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata=nothing, transparent=True)
    return text.getvalue()[text.getvalue().index("<svg") :].replace(_INK, "currentColor")


def _encode(image: Image.Image, kind: str, **options: object) -> Picture:
    data = io.BytesIO()
    image.save(data, kind, **options)
    text = base64.b64encode(data.getvalue()).decode("ascii")
    return Picture(f"data:image/{kind};base64,{text}", *image.size)


class Window(NamedTuple):
    """A square of a high-resolution frame, pixels, and the mean disagreement in it, counts."""

    top: int
    left: int
    side: int
    score: float


class FrameImages(NamedTuple):
    """A frame, or a window of it, as all see it, ``(H, W)`` counts.

    Attributes:
        name: of the frame.
        lr: what the models saw.
        hr: what they should have made of it; ``None`` in camera mode.
        results: per model's name.
        errors: per model result minus ``hr``; without it, downsampled result minus ``lr``.
    """

    name: str
    lr: np.ndarray
    hr: np.ndarray | None
    results: dict[str, np.ndarray]
    errors: dict[str, np.ndarray]

    def cut(self, window: Window) -> FrameImages:
        """What lies in a window."""

        def part(image: np.ndarray) -> np.ndarray:
            scale = SCALE if image.shape == self.lr.shape else 1
            top, left, side = (n // scale for n in window[:3])
            return image[top : top + side, left : left + side]

        hr = None if self.hr is None else part(self.hr)
        parts = ({m: part(i) for m, i in images.items()} for images in (self.results, self.errors))
        return FrameImages(self.name, part(self.lr), hr, *parts)


def read_images(out: Path, chosen: SetResult, frame: str) -> FrameImages:
    """All pictures of a frame; FileNotFoundError where one is missing."""
    hr_folder = frames_folder(out, chosen.name, HR_FOLDER)
    lr = read_frame(frames_folder(out, chosen.name, LR_FOLDER), frame)
    hr = read_frame(hr_folder, frame) if hr_folder.is_dir() else None
    names = [model.name for model in chosen.models]
    results = {name: read_frame(frames_folder(out, chosen.name, name), frame) for name in names}
    errors = {
        name: pillow_resize(sr, *lr.shape) - np.float64(lr) if hr is None else sr - np.float64(hr)
        for name, sr in results.items()
    }
    return FrameImages(frame, lr, hr, results, errors)


def choose_window(images: Sequence[np.ndarray], side: int, step: int) -> Window:
    """The square in which images differ most: the largest mean standard deviation over them.

    Args:
        images: two or more ``(H, W)`` arrays of one shape: results, and the reference if known.
        side: of the square, pixels; at most the frame's own sides.
        step: rows and columns start at multiples of it.
    """
    spread = np.std(np.stack(images).astype(np.float64), axis=0)
    side = min(side, *spread.shape) // step * step
    scores = F.avg_pool2d(torch.from_numpy(spread)[None], side, step)[0].numpy()
    row, column = np.unravel_index(np.argmax(scores), scores.shape)
    return Window(int(row) * step, int(column) * step, side, float(scores[row, column]))


def choose_frames(out: Path, chosen: SetResult, most: int) -> list[tuple[FrameImages, Window]]:
    """The frames whose window differs most, relative to the frame's own range; worst first.

    A single result without reference is compared with the interpolated input.
    """
    found = []
    for frame in evenly(sorted(chosen.frame_names), MOST_LOOKED_AT):
        images = read_images(out, chosen, frame)
        compared = [*images.results.values(), *([] if images.hr is None else [images.hr])]
        if len(compared) < 2:
            compared.append(bicubic(images.lr))
        window = choose_window(compared, CROP_SIDE, SCALE)
        low, high = gray_range(images.lr)
        found.append((-window.score / (high - low), frame, window))
    return [(read_images(out, chosen, frame), window) for _, frame, window in sorted(found)[:most]]


def panel(images: FrameImages, window: Window) -> dict[str, Any]:
    """What lies in ``window``, in exact pixels; gray scale and colours are those of the window."""
    whole = bicubic(images.lr) if images.hr is None else images.hr
    height, width = whole.shape
    top, left, side, _ = window
    return {
        "context": compact_picture(to_gray(whole)),
        "percent": [100 * n for n in (left / width, top / height, side / width, side / height)],
        "window": window,
        "tiles": side_by_side(images.cut(window), exact_picture),
    }


def side_by_side(images: FrameImages, encode: Callable[[np.ndarray], Picture]) -> dict[str, Any]:
    """One place as all see it, in one gray scale.

    Error maps are in one colour scale, which ends at the 99th percentile of all models' absolute
    errors there.
    """
    lr, hr, errors = images.lr, images.hr, images.errors
    shown = gray_range(lr if hr is None else hr)
    limit = float(np.quantile(np.abs(list(errors.values())), 0.99)) or 1.0
    return {
        "frame": images.name,
        "shown": shown,
        "limit": limit,
        "input": encode(to_gray(lr, shown)),
        "results": [
            (name, encode(to_gray(sr, shown)), encode(to_signed_colour(errors[name], limit)))
            for name, sr in images.results.items()
        ],
        "reference": None if hr is None else encode(to_gray(hr, shown)),
    }
