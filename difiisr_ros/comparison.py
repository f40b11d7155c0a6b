"""The picture that shows input, interpolation and result side by side, whole and zoomed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from difiisr_models.files import replaced

ZOOM = 4  # the window is so many times smaller than the frame, in each direction
_INCHES, _TITLE, _BAR = 4.6, 0.34, 0.9  # of a tile's width, a title's height, the colours' bar
_DARK, _LIGHT = "#15171a", "#e8e8e8"


def window_to_show(
    one: NDArray[np.floating], other: NDArray[np.floating]
) -> tuple[float, float, float, float]:
    """Where two ``(H, W)`` results differ most: left, top, width, height as parts of the frame."""
    sides = [max(side // ZOOM, 1) for side in one.shape]
    difference = np.nan_to_num(np.abs(one.astype(np.float64) - other))
    means = uniform_filter(difference, sides, mode="constant")
    # Borders may be dark rims: an eighth of the window is left out around them.
    margins = [side // 2 + side // 8 for side in sides]
    ends = zip(margins, one.shape, strict=True)
    inner = means[tuple(slice(margin, side - margin) for margin, side in ends)]
    place = np.unravel_index(inner.argmax(), inner.shape)
    top, left = (int(at) + side // 8 for at, side in zip(place, sides, strict=True))
    height, width = one.shape
    return left / width, top / height, sides[1] / width, sides[0] / height


def draw_panel(
    path: Path,
    images: Sequence[tuple[str, NDArray[np.floating]]],
    unit: str,
    palette: str = "inferno",
    force: bool = True,
) -> None:
    """Save a PNG with the images, (title, (H, W) values), side by side, whole and zoomed.

    The first is the input, whose 0.2 and 99.8 percentiles are the ends of the colours in every
    image; the zoom is where the second and the third differ most.

    Args:
        path: of the PNG.
        images: input, interpolation, result, and what else there is.
        unit: of the values, above the bar of colours.
        palette: a colour map of matplotlib's.
        force: replace a file that is there.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    frame = images[0][1]
    low, high = np.nanpercentile(frame, (0.2, 99.8))
    style = {"cmap": palette, "vmin": low, "vmax": max(high, low + 1e-6), "aspect": "auto"}
    tile = _INCHES * frame.shape[0] / frame.shape[1]
    wide, tall = _INCHES * len(images) + _BAR, 2 * tile + _TITLE
    figure = Figure(figsize=(wide, tall), facecolor=_DARK)
    left, top, width, height = window_to_show(images[1][1], images[2][1])
    for column, (title, pixels) in enumerate(images):
        rows, columns = pixels.shape
        y, x = round(top * rows), round(left * columns)
        h, w = round(height * rows), round(width * columns)
        for row, shown in enumerate((pixels[y : y + h, x : x + w], pixels)):
            place = (_INCHES * column / wide, tile * row / tall, _INCHES / wide, tile / tall)
            axes = figure.add_axes(place)
            axes.set_axis_off()
            drawn = axes.imshow(shown, interpolation="nearest", **style)
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), w, h, fill=False, color="cyan", lw=1.5))
        axes.set_title(title, fontsize=12, color=_LIGHT, pad=5)
    bar = figure.add_axes((1 - 0.75 * _BAR / wide, 0.05, 0.18 * _BAR / wide, 0.82))
    figure.colorbar(drawn, cax=bar)
    bar.set_title(unit, fontsize=10, color=_LIGHT)
    bar.tick_params(colors=_LIGHT)
    with replaced(path, force) as beside:
        figure.savefig(beside, dpi=100, facecolor=_DARK, format="png")
