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

_LONGEST_AXIS = 1280  # of the usual cameras, low-resolution pixels: the inverse has its square
_MARGIN = 20  # pixels; so far away the inverse's values have fallen to 1e-10 of the largest


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
    with tf32_products(False):
        correction = _solve(_solve(residual).mT).mT
    return downsample_adjoint(correction).add_(packed)  # in place: large frames are mostly memory


def _solve(y: Tensor) -> Tensor:
    """Y (R R^T)^{-1} along the last axis, a long one in pieces."""
    n = y.shape[-1]
    if n <= _LONGEST_AXIS:
        return y @ _inverse_gram(n, False, False, y.device, y.dtype)
    pieces, kept = [], _LONGEST_AXIS - 2 * _MARGIN
    for first in range(0, n, kept):
        begin, end = max(0, first - _MARGIN), min(n, first + kept + _MARGIN)
        inverse = _inverse_gram(end - begin, begin > 0, end < n, y.device, y.dtype)
        columns = slice(first - begin, min(n, first + kept) - begin)
        pieces.append(y[..., begin:end] @ inverse[:, columns])
    return torch.cat(pieces, dim=-1)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # the cached tensor serves training too
def _inverse_gram(
    n: int, goes_on_before: bool, goes_on_after: bool, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """(R R^T)^{-1} of ``n`` pixels, ``(n, n)``, symmetric: of a whole axis, or of part of one."""
    before, after = (_MARGIN * goes_on for goes_on in (goes_on_before, goes_on_after))
    matrix = down_matrix(before + n + after)[before : before + n]
    return torch.tensor(np.linalg.inv(matrix @ matrix.T), device=device, dtype=dtype)
