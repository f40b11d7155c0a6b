"""The authors' own way from a frame to its result, to compare with; ours is ``upscaler.py``.

Full scale is [-1, 1] whatever the frame shows, tiles are averaged without weights, and nothing
makes the result agree with the frame: no noise is taken off and no projection follows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from difiisr_models.diffusion import NoiseSource
from difiisr_models.frame_model import FrameModel
from difiisr_models.resample import PHASES, unpack
from difiisr_models.tiling import Tile, pad_to

CHOP, STRIDE, MULTIPLE = 256, 224, 64
"""Side and distance of tiles, and what sides are padded to a multiple of, low-resolution pixels."""


@torch.inference_mode()
def super_resolve_as_published(
    model: FrameModel,
    counts: np.ndarray,
    noise_of: Callable[[list[Tile], tuple[int, ...]], NoiseSource],
    steps: int,
    device: str = "cpu",
) -> np.ndarray:
    """x / 127.5 - 1, padded by reflection, tiles of 256 every 224, plain mean, clipped, rounded.

    Args:
        model: what super-resolves a tile.
        counts: ``(h, w)`` uint8, or uint16 whose full scale is taken alike; floats have none.
        noise_of: the draws for tiles of a frame of a size, see ``frame_model.FrameModel``.
        steps: diffusion steps.
        device: where the model runs.
    """
    if counts.dtype.kind != "u":
        raise ValueError("pipeline 'published' takes frames of 8 or 16 bit: floats have no scale")
    half = np.float32(np.iinfo(counts.dtype).max / 2)
    frame = torch.from_numpy(counts.astype(np.float32) / half - 1).to(device)[None, None]
    height, width = (side + -side % MULTIPLE for side in counts.shape)
    padded = pad_to(frame, height, width)
    total, count = (torch.zeros(1, n, height, width, device=device) for n in (PHASES, 1))
    for place in published_tiles(height, width):
        noise = noise_of([place], (height, width))
        result = model.super_resolve(place.cut(padded), noise, steps, 1.0)
        place.cut(total)[...] += result
        place.cut(count)[...] += 1
    image = unpack(total / count)[0, 0, : 4 * counts.shape[0], : 4 * counts.shape[1]]
    values = (image.clamp(-1, 1) + 1) * float(half)
    return values.round().cpu().numpy().astype(counts.dtype)


def published_tiles(height: int, width: int) -> list[Tile]:
    """The windows of the reference's chop: every 224 pixels, the last ones flush with the end."""
    rows, columns = (
        [(start, start + CHOP) for start in (*range(0, side - CHOP, STRIDE), side - CHOP)]
        if side > CHOP
        else [(0, side)]
        for side in (height, width)
    )
    return [Tile(*row, *column) for row in rows for column in columns]
