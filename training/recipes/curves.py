"""Learning curve of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from difiisr_training.checkpoints import STATISTICS_NAME, VALIDATION_NAME, read_journal


def save_learning_curve(run: Path, out: Path) -> None:
    """Plot loss, and validation PSNR over bicubic's, against the iteration.

    Args:
        run: run folder, with statistics.
        out: picture to write.
    """
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
