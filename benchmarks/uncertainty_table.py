"""Calibrates ``uncertainty`` of the shipped model and measures what its intervals hold.

``python -m benchmarks.uncertainty_table --fit FOLDER... --test FOLDER...`` in the checkout: middle
crops of eight images a folder, 14-bit counts, LR = D(HR) + noise of 0, 1 and 2 % of the span. The
table goes into the model's manifest, coverage into ``benchmarks/uncertainty.json``.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import cyclopts
import numpy as np

from benchmarks.robot_thermal import Degradation, degraded, read_scene
from difiisr_models import Stream, Upscaler, load_upscaler
from difiisr_models.resample import SCALE
from difiisr_models.uncertainty import COVERED, DEVIATIONS, fitted_table, scores
from difiisr_models.weights import find_weights_folder, read_manifest, write_manifest

MODEL, EACH, NOISES = "difiisr-rt-x4", 8, (0, 1, 2)
HEIGHT, WIDTH = 288, 384


def blocks_of(folder: Path, up: Upscaler) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Score ``(n,)`` and error ``(n, 16)`` of the blocks of each image, network units."""
    found = sorted(p for p in folder.rglob("*") if p.suffix in (".png", ".jpg", ".bmp"))
    for seed, path in enumerate(found[:: max(1, len(found) // EACH)][:EACH]):
        try:
            scene = read_scene(path, HEIGHT, WIDTH)
        except ValueError:  # too small
            continue
        for noise in NOISES:
            counts = degraded(scene, Degradation(noise), seed)
            stream = Stream()
            result = up(counts, stream)
            seen = stream.seen
            error = (result - scene.hr) * seen.range.gain
            rows = error.reshape(HEIGHT // SCALE, SCALE, -1, SCALE).swapaxes(1, 2)
            score = scores(result, seen.range, seen.noise)
            yield score.ravel(), rows.reshape(score.size, -1)


def calibrate(*, fit: list[Path], test: list[Path], out: Path | None = None) -> None:
    """Fit on ``fit``, write the manifest, measure on ``test``; print, and write ``out``."""
    up = load_upscaler(MODEL, backend="torch")
    together = [
        np.concatenate(part)
        for part in zip(*(b for f in fit for b in blocks_of(f, up)), strict=True)
    ]
    table = fitted_table(*together)
    folder = find_weights_folder(MODEL)
    numbers = {"scores": table.scores, "deviations": table.deviations}
    rounded = {name: [float(f"{x:.4g}") for x in values] for name, values in numbers.items()}
    write_manifest(folder, read_manifest(folder) | {"uncertainty": rounded})
    held = {}
    for place in test:
        score, error = (np.concatenate(part) for part in zip(*blocks_of(place, up), strict=True))
        deviation = table(score)
        inside = np.abs(error) <= DEVIATIONS * deviation[:, None]
        tenths = np.array_split(np.argsort(deviation), 10)
        held[f"{place.parent.name}/{place.name}"] = {
            "overall": round(float(inside.mean()), 3),
            "deciles": [round(float(inside[tenth].mean()), 3) for tenth in tenths],
        }
        print(place, held[f"{place.parent.name}/{place.name}"])
    if out is not None:
        names = [f"{place.parent.name}/{place.name}" for place in fit]
        content = {"aim": COVERED, "fitted on": names, "held": held}
        out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    cyclopts.run(calibrate)
