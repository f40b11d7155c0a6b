"""Sensor noise: how much of it there is, and what a frame looks like without most of it.

Standard deviations are in the unit of the frame that is given.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import dctn
from torch import Tensor

_BLOCK = 8  # pixels on a side of the blocks that noise is looked for in
_BLOCKS = 4_000  # that are looked at
_FLATTEST = 0.02  # share of the blocks; in them the scene has least to add
_FLATTEST_OF_WHITE_NOISE = 0.733  # their deviation over that of the noise, by simulation
_TEXTURE = 0.009  # of the span: what the flattest blocks of clean frames show as noise
_PATCH = 5  # pixels on a side of the patches that are denoised
_THRESHOLD = 2.7  # deviations below which a coefficient is taken for noise


def scene_noise(deviation: float, frame: np.ndarray) -> float:
    """Standard deviation of the noise, from what :func:`flattest_deviation` finds in one frame.

    What it finds in clean frames, up to 0.9 % of the span of the scene (0.2 to 99.8 % of its
    pixels), is taken off in the square: weaker noise cannot be told from texture in one frame, and
    counts as none.

    Args:
        deviation: of the ``frame``, same unit.
        frame: ``(H, W)``.
    """
    stride = max(1, int((frame.size / _BLOCKS) ** 0.5))
    lo, hi = np.quantile(frame[::stride, ::stride], (0.002, 0.998))
    return float(np.sqrt(max(0.0, deviation**2 - (_TEXTURE * float(hi - lo)) ** 2)))


def difference_noise(frame: np.ndarray, before: np.ndarray) -> float:
    """Standard deviation of the noise, from two frames of one stream: what differs in still places.

    Args:
        frame: ``(H, W)``, any unit.
        before: the frame before it.

    Returns:
        standard deviation of the noise of either, same unit; more, where nothing stands still.
    """
    return flattest_deviation((frame.astype(np.float32) - before) / np.float32(np.sqrt(2)))


def flattest_deviation(frame: np.ndarray) -> float:
    """Deviation of the noise in the flattest places of a frame.

    Noise is white, a scene is not: in the flattest 2 % of all 8x8 blocks the upper half of the DCT
    holds noise, and little else. Saturated blocks hold nothing, and are left out.

    Args:
        frame: ``(H, W)``, any unit, without gaps.

    Returns:
        standard deviation, same unit; texture that is everywhere adds to it.
    """
    stride = max(1, int((frame.size / _BLOCKS) ** 0.5))
    blocks = np.lib.stride_tricks.sliding_window_view(frame, (_BLOCK, _BLOCK))
    blocks = blocks[::stride, ::stride].reshape(-1, _BLOCK, _BLOCK)
    if frame.dtype.kind in "iu":
        ends = (np.iinfo(frame.dtype).min, np.iinfo(frame.dtype).max)
        blocks = blocks[~np.isin(blocks, ends).all(axis=(1, 2))]
    upper = np.add.outer(np.arange(_BLOCK), np.arange(_BLOCK)) >= _BLOCK
    if len(blocks) == 0:
        return 0.0
    unit = max(float(blocks.max()), -float(blocks.min()), np.finfo(np.float32).tiny)
    blocks = (blocks / np.float32(unit)).astype(np.float32)
    power = (dctn(blocks, axes=(1, 2), norm="ortho")[:, upper] ** 2).mean(axis=1)
    return unit * float(np.sqrt(np.quantile(power, _FLATTEST))) / _FLATTEST_OF_WHITE_NOISE


def denoise(frame: Tensor, sigma: float) -> Tensor:
    """The frame with most of its white noise taken off, for a network that knows clean frames.

    Two passes over the DCT of all overlapping 5x5 patches: small coefficients are set to zero, then
    an empirical Wiener filter takes that result for the signal (Yu & Sapiro, IPOL 2011; Dabov et
    al., 2007 without the grouping).

    Args:
        frame: ``(1, 1, h, w)`` float32.
        sigma: standard deviation of its noise, same unit; 0 leaves it as it is.

    Returns:
        ``(1, 1, h, w)``.
    """
    if sigma <= 0:
        return frame
    basis = _patch_basis(frame.device, frame.dtype)
    noisy = _patch_coefficients(frame, basis)
    gain = (noisy.abs() > _THRESHOLD * sigma).to(frame.dtype)
    gain[:, 0] = 1
    first = _from_patches(noisy * gain, 1 / gain.sum(1, keepdim=True), basis)
    gain = _patch_coefficients(first, basis).square_()
    gain = gain.div_(gain + sigma * sigma)
    gain[:, 0] = 1
    weight = 1 / gain.square().sum(1, keepdim=True)
    return _from_patches(noisy.mul_(gain), weight, basis)


def _patch_coefficients(frame: Tensor, basis: Tensor) -> Tensor:
    """DCT of every patch that touches the frame, ``(1, 25, h + 4, w + 4)``."""
    return F.conv2d(F.pad(frame, (_PATCH - 1,) * 4, mode="reflect"), basis)


def _from_patches(coefficients: Tensor, weight: Tensor, basis: Tensor) -> Tensor:
    """The weighted mean of overlapping patches, ``(1, 1, h, w)``."""
    ones = torch.ones_like(basis[:1])
    total = F.conv_transpose2d(coefficients * weight, basis)
    mean = total / F.conv_transpose2d(weight, ones)
    inside = slice(_PATCH - 1, -(_PATCH - 1))
    return mean[..., inside, inside]


@lru_cache(maxsize=4)
@torch.inference_mode(False)
def _patch_basis(device: torch.device, dtype: torch.dtype) -> Tensor:
    """The two-dimensional DCT-II of a patch as convolution kernels, ``(25, 1, 5, 5)``."""
    n = _PATCH
    axis = np.cos(np.pi * np.outer(np.arange(n), 2 * np.arange(n) + 1) / (2 * n)) * np.sqrt(2 / n)
    axis[0] /= np.sqrt(2)
    kernels = np.einsum("ia,jb->ijab", axis, axis).reshape(n * n, 1, n, n)
    return torch.tensor(kernels, device=device, dtype=dtype)
