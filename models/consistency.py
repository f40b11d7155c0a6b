"""The consistency step: what was measured stays measured.

Of all images x' with D x' = y_0, the one nearest to the network's output x is

    x' = x + D^T (D D^T)^{-1} (y_0 - D x),

an orthogonal projection: where y_0 = D x_true it can only bring x closer to x_true, whatever the
network. D works along rows and columns apart, D X = R_h X R_w^T, and so does the inverse:
(D D^T)^{-1} Y = (R_h R_h^T)^{-1} Y (R_w R_w^T)^{-1}, exact up to the borders.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from difiisr_models.precision import tf32_products
from difiisr_models.resample import down_matrix, downsample, downsample_adjoint


def enforce_consistency(packed: Tensor, lr: Tensor, strength: float = 1.0) -> Tensor:
    """Move ``packed`` towards the images whose antialiased /4 is ``lr``.

    Args:
        packed: ``(B, 16, h, w)`` super-resolved image, any unit.
        lr: ``(B, 1, h, w)`` measured image in the same unit.
        strength: 1 projects (downsampled output = input), 0 leaves ``packed`` as it is; between
            the two, that share of the disagreement is removed.

    Returns:
        ``(B, 16, h, w)``.

    Raises:
        ValueError: ``strength`` outside [0, 1].
    """
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"consistency must lie in 0..1, got {strength}")
    if strength == 0.0:
        return packed
    residual = strength * (lr - downsample(packed))
    over_rows, over_columns = (_inverse_gram(n, lr.device, lr.dtype) for n in lr.shape[-2:])
    with tf32_products(False):
        correction = over_rows @ residual @ over_columns
    return downsample_adjoint(correction).add_(packed)  # in place: large frames are mostly memory


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # the cached tensor serves training too
def _inverse_gram(n: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(R R^T)^{-1} of an axis of ``n`` pixels, ``(n, n)``, symmetric."""
    matrix = down_matrix(n)
    return torch.tensor(np.linalg.inv(matrix @ matrix.T), device=device, dtype=dtype)
