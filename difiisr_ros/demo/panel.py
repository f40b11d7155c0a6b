"""The picture that the demo leaves: input, bicubic, ours, whole and zoomed, in one colour map."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CROP = 5  # the zoomed window is a fifth of the frame in each direction


@dataclass(frozen=True)
class PanelImage:
    """One column: (H, W) values in the unit of the panel, and its title."""

    title: str
    pixels: NDArray[np.floating]


def window_to_show(frame: NDArray[np.floating]) -> tuple[int, int, int, int]:
    """Left, top, width, height (pixels) of the window where warm things have most contours."""
    height, width = frame.shape
    rows, columns = max(height // CROP, 8), max(width // CROP, 8)
    filled = np.nan_to_num(frame.astype(np.float64), nan=float(np.nanmedian(frame)))
    gradient_y, gradient_x = np.gradient(filled)
    edges = np.hypot(gradient_x, gradient_y) * np.maximum(filled - np.median(filled), 0.0)
    sums = np.pad(edges.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    window = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns]
    window += sums[:-rows, :-columns]
    # Frame borders often carry dark rims; an eighth of the window is left out around them.
    margin_y, margin_x = (
        min(rows // 8, window.shape[0] // 3),
        min(columns // 8, window.shape[1] // 3),
    )
    inner = window[margin_y : window.shape[0] - margin_y, margin_x : window.shape[1] - margin_x]
    top, left = np.unravel_index(int(inner.argmax()), inner.shape)
    return int(left) + margin_x, int(top) + margin_y, columns, rows


def draw_panel(path: Path, images: list[PanelImage], unit: str) -> None:
    """Save a PNG with the images side by side, first the input whose size sets the window.

    The colours span the input's 0.5 to 99.9 percentiles in every image; ``unit`` labels the bar.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    frame = images[0].pixels
    low, high = np.nanpercentile(frame, (0.5, 99.9))
    style = {
        "cmap": "inferno",
        "vmin": low,
        "vmax": max(high, low + 1e-6),
        "interpolation": "nearest",
    }
    left, top, width, height = window_to_show(frame)
    ratio = frame.shape[0] / frame.shape[1]
    size = (4.2 * len(images) + 1.0, 2 * 4.2 * ratio + 0.8)
    figure, axes = pyplot.subplots(
        2, len(images), figsize=size, layout="constrained", squeeze=False
    )
    for column, image in enumerate(images):
        scale = image.pixels.shape[1] / frame.shape[1]
        x, y, w, h = (round(scale * v) for v in (left, top, width, height))
        whole, zoom = axes[:, column]
        shown = whole.imshow(image.pixels, **style)
        whole.add_patch(Rectangle((x - 0.5, y - 0.5), w, h, fill=False, color="cyan", linewidth=1))
        whole.set_title(image.title, fontsize=10)
        zoom.imshow(image.pixels[y : y + h, x : x + w], **style)
        for axis in (whole, zoom):
            axis.set_axis_off()
    figure.colorbar(shown, ax=axes, shrink=0.85, label=unit)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
