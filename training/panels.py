"""Pictures side by side: one row per scene, one column per result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure


def save_panel(titles: Sequence[str], rows: Sequence[Sequence[np.ndarray]], out: Path) -> None:
    """Draw ``(H, W)`` images in counts; the last image of a row sets that row's grey scale.

    Args:
        titles: of the columns.
        rows: as many images each as there are titles.
        out: picture to write; folders are made.
    """
    size = (2.6 * len(titles), 2.6 * len(rows) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for row, places in zip(rows, axes, strict=True):
        low, high = np.percentile(row[-1], (0.5, 99.5))
        for image, place in zip(row, places, strict=True):
            place.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
            place.set_axis_off()
    for title, place in zip(titles, axes[0], strict=True):
        place.set_title(title, fontsize=9)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
