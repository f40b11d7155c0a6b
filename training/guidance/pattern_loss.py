"""What forbids a texture that is made of the blocks of the upscaling.

Perceptual losses reward texture where the sensor's noise was, and a network without a source of
chance can only repeat one pattern in every 4x4 block. Noise has no such memory of its place in the
block: over a neighbourhood the error of each of the 16 places has the same mean.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from difiisr_models.resample import pack

_WINDOW = 8  # blocks on a side of a neighbourhood


def pattern_loss(sr: Tensor, hr: Tensor) -> Tensor:
    """Variance over the 16 places of a 4x4 block of their mean error in a neighbourhood.

    Args:
        sr: ``(B, 1, 4h, 4w)``, any unit; neighbourhoods are 8x8 blocks, or all where there are
            fewer.
        hr: likewise.

    Returns:
        ``(B,)`` in that unit squared, 0 when the error is the same everywhere in the block.
    """
    error = pack(sr - hr)
    window = min(_WINDOW, *error.shape[-2:])
    return F.avg_pool2d(error, window).var(dim=1, unbiased=False).mean(dim=(1, 2))
