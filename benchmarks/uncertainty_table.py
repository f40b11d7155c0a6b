"""Calibrates ``uncertainty`` of a shipped model and measures what its intervals hold.

``python -m benchmarks.uncertainty_table --fit FOLDER... --test FOLDER...`` in the checkout: middle
crops of eight images a folder, 14-bit counts, LR = D(HR) + noise of 0, 1 and 2 % of the span. A
recurrent model sees pans of ten frames over such crops, and all ten count. The table goes into the
model's manifest, coverage into ``--out``.
"""

import json
from itertools import product
from pathlib import Path
from typing import Annotated

import cyclopts
import numpy as np
from cyclopts import Parameter

from benchmarks.robot_thermal import Degradation, degraded, read_scene
from difiisr_models import Stream, Upscaler, load_upscaler
from difiisr_models.files import write_json
from difiisr_models.resample import SCALE
from difiisr_models.uncertainty import COVERED, DEVIATIONS, fitted_table, scores
from difiisr_models.weights import find_weights_folder, read_manifest, write_manifest
from difiisr_training.data.images import list_images
from difiisr_training.evaluation.films import PAN_SPEEDS, PAN_TURN, pan_over

EACH, NOISES = 8, (0, 1, 2)
HEIGHT, WIDTH = 288, 384
PAN, SIDE = 10, 192  # frames, and pixels of each


def blocks_of(folders: list[Path], up: Upscaler) -> list[np.ndarray]:
    """Score ``(n,)`` and error ``(n, 16)`` of the blocks of the images, network units."""
    blocks = []
    for folder, noise in product(folders, NOISES):
        found = list_images(folder)
        for seed, path in enumerate(found[:: max(1, len(found) // EACH)][:EACH]):
            try:
                scene = read_scene(path, HEIGHT, WIDTH)
            except ValueError:  # too small
                continue
            film, stream = [scene.hr], Stream()
            if up.is_recurrent:
                speed = PAN_SPEEDS[(3 * seed + noise) % len(PAN_SPEEDS)]
                film = pan_over(scene.hr, speed, PAN_TURN * seed + noise, PAN, SIDE)
            for frame, hr in enumerate(film):
                lr = degraded(scene._replace(hr=hr), Degradation(noise), seed + 100 * frame)
                result = up(lr, stream)
                assert stream.seen is not None, path
                error = (result - hr) * stream.seen.range.gain
                rows = error.reshape(len(hr) // SCALE, SCALE, -1, SCALE).swapaxes(1, 2)
                score = scores(result, stream.seen.range, stream.seen.noise)
                blocks.append((score.ravel(), rows.reshape(score.size, -1)))
    return [np.concatenate(part) for part in zip(*blocks, strict=True)]


Folders = Annotated[list[Path], Parameter(consume_multiple=True)]


def calibrate(
    *, fit: Folders, test: Folders, model: str = "difiisr-rt-x4", out: Path | None = None
) -> None:
    """Fit on ``fit``, write the manifest, measure on ``test``; print, and write ``out``."""
    up = load_upscaler(model, backend="torch")
    table = fitted_table(*blocks_of(fit, up))
    folder = find_weights_folder(model)
    numbers = {"scores": table.scores, "deviations": table.deviations}
    rounded = {name: [float(f"{x:.4g}") for x in values] for name, values in numbers.items()}
    write_manifest(folder, read_manifest(folder) | {"uncertainty": rounded})
    held = {}
    for place in test:
        score, error = blocks_of([place], up)
        deviation = table(score)
        inside = np.abs(error) <= DEVIATIONS * deviation[:, None]
        tenths = np.array_split(np.argsort(deviation), 10)
        held["/".join(place.parts[-2:])] = {
            "overall": round(float(inside.mean()), 3),
            "deciles": [round(float(inside[tenth].mean()), 3) for tenth in tenths],
        }
    content = {"aim": COVERED, "fitted on": ["/".join(p.parts[-2:]) for p in fit], "held": held}
    print(json.dumps(content, indent=1))
    if out is not None:
        write_json(out, content)


if __name__ == "__main__":
    cyclopts.run(calibrate)
