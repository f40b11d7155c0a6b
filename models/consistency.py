"""The consistency step: what was measured stays measured.

Of all images x' with D x' = y_0, the one nearest to the network's output x is

    x' = x + D^T (D D^T)^{-1} (y_0 - D x),

an orthogonal projection: where y_0 = D x_true it can only bring x closer to x_true, whatever the
network. (D D^T)^{-1} is applied as a short separable filter; a second pass settles the borders.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from difiisr_models.resample import convolve, downsample, downsample_adjoint

_HALF_WIDTH = 6  # low-resolution pixels on either side of the inverse filter


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
    correction = _inverse_filter(residual)
    # The second pass: D is linear, so its residual needs no corrected image.
    residual = residual - downsample(downsample_adjoint(correction))
    correction = correction + _inverse_filter(residual)
    return downsample_adjoint(correction).add_(packed)  # in place: large frames are mostly memory


def _inverse_filter(residual: Tensor) -> Tensor:
    """(D D^T)^{-1} as two one-dimensional convolutions, replicating the borders."""
    taps = _inverse_taps(residual.device, residual.dtype)
    padded = F.pad(residual, (_HALF_WIDTH,) * 4, mode="replicate")
    return convolve(convolve(padded, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))


@lru_cache(maxsize=4)
@torch.inference_mode(False)  # the cached tensor serves training too
def _inverse_taps(device: torch.device, dtype: torch.dtype) -> Tensor:
    """The one-dimensional factor of (D D^T)^{-1}, measured on an impulse far from any border."""
    n = 64
    impulse = torch.zeros(1, 1, n, n, dtype=torch.float64)
    impulse[..., n // 2, n // 2] = 1.0
    response = downsample(downsample_adjoint(impulse))[0, 0].numpy()
    row = response[n // 2] / np.sqrt(response[n // 2, n // 2])
    spectrum = np.fft.fft(np.fft.ifftshift(row)).real
    inverse = np.fft.fftshift(np.fft.ifft(1.0 / spectrum).real)
    taps = inverse[n // 2 - _HALF_WIDTH : n // 2 + _HALF_WIDTH + 1]
    return torch.tensor(taps, device=device, dtype=dtype)
