"""How little a film can flicker whose frames, scaled down, are the camera's.

Of all changes between two such results the smallest, in the sum of squares, is D^+ of the change
between the two measured frames, whatever made the results. This measures its flicker as
``difiisr evaluate`` does, by the mean magnitude; for that, changes gathered in few pixels are less:

    python -m benchmarks.least_flicker DATA/optris_sequence
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from difiisr_models.consistency import enforce_consistency
from difiisr_models.resample import unpack, upsample
from difiisr_training.data.images import list_images, read_counts
from difiisr_training.evaluation.flicker import FlickerMeter


def main(folder: Path) -> None:
    """Print the flicker of D^+ y and of bicubic x4 made consistent, means over the film."""
    methods = {
        "least squares": lambda lr: torch.zeros_like(upsample(lr)),
        "bicubic, consistent": upsample,
    }
    meters = {name: FlickerMeter() for name in methods}
    found = {name: [] for name in methods}
    for path in list_images(folder):
        counts = read_counts(path)
        lr = torch.from_numpy(counts.astype(np.float64))[None, None]
        for name, method in methods.items():
            sr = unpack(enforce_consistency(method(lr), lr))[0, 0].numpy()
            found[name].append(meters[name].update(counts, sr)["flicker"])
    for name, values in found.items():
        print(f"{name:20} {np.nanmean(values):.3f} x bicubic")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="frames of a standing camera, in order")
    main(parser.parse_args().folder)
