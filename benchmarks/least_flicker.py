"""How little a film can flicker whose frames, scaled down, are the camera's.

Of all changes between two such results the smallest, in the sum of squares, is D^+ of the change
between the two measured frames, whatever made the results. This measures its flicker as
``difiisr evaluate`` does, by the mean magnitude; for that, changes gathered in few pixels are less:

    python -m benchmarks.least_flicker DATA/optris_sequence
"""

from __future__ import annotations

from pathlib import Path

import cyclopts
import numpy as np
import torch

from difiisr_models.consistency import enforce_consistency
from difiisr_models.resample import unpack, upsample
from difiisr_training.data.images import list_images, read_counts
from difiisr_training.evaluation.measures import Flicker


def main(folder: Path) -> None:
    """Print the flicker of D^+ y and of bicubic x4 made consistent, means over the film.

    ``folder``: frames of a standing camera, in order.
    """
    film = [read_counts(path) for path in list_images(folder)]
    for name, method in (
        ("least squares", lambda lr: torch.zeros_like(upsample(lr))),
        ("bicubic, consistent", upsample),
    ):
        flicker, found = Flicker(), []
        for counts in film:
            lr = torch.from_numpy(counts.astype(np.float64))[None, None]
            sr = unpack(enforce_consistency(method(lr), lr))[0, 0].numpy()
            found.append(flicker(sr, counts)[0])
        print(f"{name:20} {np.nanmean(found):.3f} x bicubic")


if __name__ == "__main__":
    cyclopts.run(main)
