"""Plots of a run and of a model: learning curve, and what ``fidelity`` trades.

``python -m difiisr_training.curves learning RUN OUT.png`` and
``python -m difiisr_training.curves fidelity MODEL OUT.png --images DIR --weights DIR``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from difiisr_training.data.images import list_images, read_counts
from difiisr_training.evaluation.judge import Judge, Scene
from difiisr_training.evaluation.pairs import make_pair
from difiisr_training.evaluation.peers import load_contestant
from difiisr_training.journal import STATISTICS_NAME, VALIDATION_NAME, read_journal

FIDELITIES = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0)


def save_learning_curve(run: Path, out: Path) -> None:
    """Loss, and validation PSNR over bicubic's, against the iteration.

    Raises:
        FileNotFoundError: the run has no statistics yet.
    """
    statistics, validation = (read_journal(run, n) for n in (STATISTICS_NAME, VALIDATION_NAME))
    if not statistics:
        raise FileNotFoundError(f"{run} has no {STATISTICS_NAME}: is it a run folder?")
    columns = 2 if validation else 1
    figure = Figure(figsize=(5 * columns, 3.6), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)
    loss, losses = axes[0, 0], np.array([x["loss"] for x in statistics])
    iterations = np.array([x["iteration"] for x in statistics])
    loss.plot(iterations, losses, lw=0.8, alpha=0.4)
    window = 1 + len(losses) // 20
    kernel = np.ones(window) / window
    means = (np.convolve(x, kernel, mode="valid") for x in (iterations, losses))
    loss.plot(*means, color="C0", label=f"running mean, {window} points")
    loss.legend()
    is_logarithm = losses.min() <= 0  # of norm: psnr
    loss.set(xlabel="iteration", ylabel="loss", yscale="linear" if is_logarithm else "log")
    if validation:
        gain = axes[0, 1]
        for key in ("psnr_fidelity_1", "psnr_fidelity_0"):
            points = [x for x in validation if key in x]
            if points:
                over_bicubic = [x[key] - x["psnr_bicubic"] for x in points]
                label = key.removeprefix("psnr_").replace("_", " ")
                gain.plot([x["iteration"] for x in points], over_bicubic, marker=".", label=label)
        gain.set(xlabel="iteration", ylabel="PSNR over bicubic, dB (validation)")
        gain.legend()
    for place in axes.flat:
        place.grid(alpha=0.3)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)


def measure_fidelity(
    model: str, images: Sequence[Path], weights: Path, fidelities: Sequence[float] = FIDELITIES
) -> list[dict[str, float]]:
    """Mean PSNR and LPIPS-squeeze of a model at each fidelity.

    Args:
        model: name or folder.
        images: high-resolution frames; low resolution is antialiased bicubic /4 of them.
        weights: folder of the LPIPS-squeeze networks.
        fidelities: 0..1.
    """
    judge = Judge("reference", ("psnr", "lpips_squeeze"), weights)
    models = [load_contestant(f"{model}@{fidelity}", weights, "cpu") for fidelity in fidelities]
    scores: list[list[dict[str, float]]] = [[] for _ in models]
    for path in tqdm(images, unit="image"):
        lr, hr = make_pair(read_counts(path))
        for one, found in zip(models, scores, strict=True):
            one.reset()
            found.append(judge(one.upscale(lr), Scene(lr, hr)))
    return [
        {"fidelity": fidelity}
        | {key: float(np.mean([score[key] for score in found])) for key in found[0]}
        for fidelity, found in zip(fidelities, scores, strict=True)
    ]


def save_fidelity_curve(points: Sequence[dict[str, float]], out: Path) -> None:
    """PSNR and LPIPS-squeeze over fidelity, and one against the other."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    over, against = figure.subplots(1, 2)
    fidelity, quality, distance = (
        [point[key] for point in points] for key in ("fidelity", "psnr", "lpips_squeeze")
    )
    over.plot(fidelity, quality, marker="o", color="C0")
    over.set(xlabel="fidelity", ylabel="PSNR, dB")
    over.yaxis.label.set_color("C0")
    twin = over.twinx()
    twin.plot(fidelity, distance, marker="s", color="C1")
    twin.set_ylabel("LPIPS-squeeze (lower is better)", color="C1")
    against.plot(quality, distance, marker="o", color="C2")
    for point in points[:: max(1, len(points) // 4)]:
        against.annotate(f"{point['fidelity']:g}", (point["psnr"], point["lpips_squeeze"]))
    against.set(xlabel="PSNR, dB", ylabel="LPIPS-squeeze", title="perception and distortion")
    for place in (over, against):
        place.grid(alpha=0.3)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m difiisr_training.curves")
    kinds = parser.add_subparsers(required=True, metavar="PLOT", dest="plot")
    learning = kinds.add_parser("learning", help="of a run folder")
    learning.add_argument("run", type=Path)
    learning.add_argument("out", type=Path, metavar="OUT.png")
    fidelity = kinds.add_parser("fidelity", help="of a model; OUT.json lies beside the picture")
    fidelity.add_argument("model")
    fidelity.add_argument("out", type=Path, metavar="OUT.png")
    fidelity.add_argument("--images", type=Path, required=True, help="high-resolution frames")
    fidelity.add_argument("--weights", type=Path, required=True, help="LPIPS-squeeze networks")
    fidelity.add_argument("--limit", type=int, default=16, help="images, evenly spaced")
    options = parser.parse_args(argv)
    if options.plot == "learning":
        save_learning_curve(options.run, options.out)
        return 0
    paths = list_images(options.images)
    chosen = np.linspace(0, len(paths) - 1, min(options.limit, len(paths))).round().astype(int)
    points = measure_fidelity(options.model, [paths[i] for i in chosen], options.weights)
    save_fidelity_curve(points, options.out)
    described = {"model": options.model, "images": len(chosen), "points": points}
    options.out.with_suffix(".json").write_text(json.dumps(described, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
