"""Pictures of a run: its samples, frames side by side, and its learning curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from difiisr_training.checkpoints import STATISTICS_NAME, VALIDATION_NAME, read_journal


def save_panel(titles: Sequence[str], rows: Sequence[Sequence[np.ndarray]], out: Path) -> None:
    """Draw ``(H, W)`` images, pixels as squares: one row per scene, one column per result.

    Args:
        titles: of the columns.
        rows: as many images each as there are titles. 8-bit ones are shown as they are; of others
            in counts the last of a row sets that row's grey scale.
        out: picture to write, its type by its suffix; folders are made.
    """
    figure = Figure(figsize=(2.6 * len(titles), 2.6 * len(rows) + 0.3), layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for row, places in zip(rows, axes, strict=True):
        low, high = (0, 255) if row[-1].dtype == np.uint8 else np.percentile(row[-1], (0.5, 99.5))
        for image, place in zip(row, places, strict=True):
            shades = {"cmap": "gray", "vmin": low, "vmax": max(high, low + 1e-6)}
            place.imshow(image, interpolation="nearest", **shades)
            place.set(xticks=[], yticks=[])
    for title, place in zip(titles, axes[0], strict=True):
        place.set_title(title, fontsize=9)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def save_learning_curve(run: Path, out: Path) -> None:
    """Plot a run folder's loss, and validation PSNR over bicubic's, against the iteration."""
    statistics, validation = (read_journal(run, n) for n in (STATISTICS_NAME, VALIDATION_NAME))
    columns = 2 if validation else 1
    figure = Figure(figsize=(5 * columns, 3.6), layout="constrained")
    loss, *gains = figure.subplots(1, columns, squeeze=False)[0]
    iterations, losses = np.array([(x["iteration"], x["loss"]) for x in statistics]).T
    loss.plot(iterations, losses, lw=0.8, alpha=0.4)
    window = 1 + len(losses) // 20
    means = (np.convolve(x, np.ones(window) / window, "valid") for x in (iterations, losses))
    loss.plot(*means, color="C0", label=f"running mean, {window} points")
    is_logarithm = losses.min() <= 0  # of norm: psnr
    loss.set(xlabel="iteration", ylabel="loss", yscale="linear" if is_logarithm else "log")
    for gain in gains:
        for end in ("fidelity 1", "fidelity 0"):
            key = "psnr_" + end.replace(" ", "_")
            points = [(x["iteration"], x[key] - x["psnr_bicubic"]) for x in validation if key in x]
            if points:
                gain.plot(*zip(*points, strict=True), marker=".", label=end)
        gain.set(xlabel="iteration", ylabel="PSNR over bicubic, dB (validation)")
    for place in (loss, *gains):
        place.legend()
        place.grid(alpha=0.3)
    figure.savefig(out, dpi=120)
