"""The x4 resampling pair of the whole project, in packed space.

A high-resolution image ``(B, 1, 4h, 4w)`` is *packed* as ``(B, 16, h, w)`` (pixel-unshuffle:
channel 4i + j is the pixel in row i, column j of each 4x4 block). There, resampling by 4 is one
5x5 convolution at low resolution. Both directions use the cubic convolution kernel of Keys (1981)
with a = -0.5, pixel centres aligned, renormalised at the borders: what Pillow calls BICUBIC,
and what made the low-resolution images of the published pairs. ``downsample`` is antialiased.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SCALE = 4
PHASES = SCALE * SCALE
_REACH = 2  # blocks on either side of a pixel that the kernels touch

_Made = TypeVar("_Made")


def kept(make: Callable[..., _Made]) -> Callable[..., _Made]:
    """``make``, whose last four tensors are kept, and serve training too."""
    return lru_cache(maxsize=4)(torch.inference_mode(False)(make))


@contextmanager
def tf32_products(allowed: bool) -> Iterator[None]:
    """Whether a GPU may round the factors of float32 matrix products to TF32, while this lasts.

    It is a switch of the process, which any library or the environment may have set.
    """
    switch = torch.backends.cuda.matmul
    # From torch 2.9 on there are two names for it: writing the old one sets both, reading it fails
    # where they differ.
    newer = hasattr(switch, "fp32_precision")
    before = switch.fp32_precision == "tf32" if newer else switch.allow_tf32
    switch.allow_tf32 = allowed
    try:
        yield
    finally:
        switch.allow_tf32 = before


def pack(hr: Tensor) -> Tensor:
    """``(B, 1, 4h, 4w)`` -> ``(B, 16, h, w)``."""
    return F.pixel_unshuffle(hr, SCALE)


def unpack(packed: Tensor) -> Tensor:
    """``(B, 16, h, w)`` -> ``(B, 1, 4h, 4w)``."""
    return F.pixel_shuffle(packed, SCALE)


def upsample(lr: Tensor) -> Tensor:
    """Bicubic x4: ``(B, 1, h, w)`` -> packed ``(B, 16, h, w)``."""
    gain = _up_border_gain(*lr.shape[-2:], lr.device, lr.dtype)
    return convolve(lr, _spreading_kernel(False, lr.device, lr.dtype), _REACH) * gain


def downsample(packed: Tensor) -> Tensor:
    """Antialiased bicubic /4, the operator D: packed ``(B, 16, h, w)`` -> ``(B, 1, h, w)``."""
    gain = _down_border_gain(*packed.shape[-2:], packed.device, packed.dtype)
    over_rows, over_columns = _down_kernels(packed.device, packed.dtype)
    columns = convolve(packed, over_rows, (_REACH, 0))
    return convolve(columns, over_columns, (0, _REACH)) * gain


def halve(image: Tensor) -> Tensor:
    """Antialiased bicubic /2 with the same kernel: ``(B, 1, 2h, 2w)`` -> ``(B, 1, h, w)``."""
    return F.interpolate(image, scale_factor=0.5, mode="bicubic", antialias=True)


def downsample_adjoint(lr: Tensor) -> Tensor:
    """D transposed: ``(B, 1, h, w)`` -> packed ``(B, 16, h, w)``; <D x, r> = <x, D^T r>."""
    gain = _down_border_gain(*lr.shape[-2:], lr.device, lr.dtype)
    return convolve(lr * gain, _spreading_kernel(True, lr.device, lr.dtype), _REACH)


def convolve(x: Tensor, kernel: Tensor, padding: int | tuple[int, int]) -> Tensor:
    """``F.conv2d`` in all the bits of ``x``; kernel odd, padding such that the size is kept.

    A GPU convolves float32 in TF32 unless it is told not to: 11 bits, fewer than counts have. Told
    not to, it is slow at kernels of so few channels: there it is a matrix product.
    """
    if not x.is_cuda:
        return F.conv2d(x, kernel, padding=padding)
    return as_matrix_product(x, kernel, padding)


def as_matrix_product(x: Tensor, kernel: Tensor, padding: int | tuple[int, int]) -> Tensor:
    """``F.conv2d`` of an odd kernel that keeps the size, as a product over positions.

    What takes the memory, and the time, is every tap of every channel: of those that go in, laid
    out before the product, or of those that come out, added up after it; the fewer are taken.
    """
    out_channels, in_channels = kernel.shape[:2]
    taps, size = kernel.shape[2:], x.shape[-2:]
    with tf32_products(False):
        if in_channels <= out_channels:
            around = F.unfold(x, taps, padding=padding)
            return (kernel.flatten(1) @ around).unflatten(-1, size)
        # What x at one place adds to its surroundings: the kernel mirrored.
        spread = kernel.flip(-2, -1).permute(0, 2, 3, 1).flatten(0, 2)
        return F.fold(spread @ x.flatten(2), size, taps, padding=padding)


def _keys_cubic(x: np.ndarray) -> np.ndarray:
    a, x = -0.5, np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _phase_taps() -> np.ndarray:
    """Kernel values ``(4, 5)``: phase i of a block against the blocks at offsets -2..2.

    The distance from the centre of block n to the pixel i of block 0 is n - (2 i - 3) / 8 blocks.
    """
    phase = (2 * np.arange(SCALE) - (SCALE - 1)) / (2 * SCALE)
    offset = np.arange(-_REACH, _REACH + 1)
    return _keys_cubic(offset[None, :] - phase[:, None])


@kept
def _spreading_kernel(is_adjoint: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
    """From one channel to 16 phases, ``(16, 1, 5, 5)``: bicubic, or D transposed."""
    taps = np.ascontiguousarray(_down_taps()[:, ::-1]) if is_adjoint else _phase_taps()
    kernel = np.einsum("iy,jx->ijyx", taps, taps).reshape(PHASES, 1, 5, 5)
    return torch.tensor(kernel, device=device, dtype=dtype)


@kept
def _down_kernels(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """D in two steps: 16 phases to the 4 of each row ``(4, 16, 5, 1)``, to one ``(1, 4, 1, 5)``."""
    taps, same = _down_taps(), np.eye(SCALE)
    over_rows = np.einsum("iy,jk->kijy", taps, same).reshape(SCALE, PHASES, 5, 1)
    over_columns = taps.reshape(1, SCALE, 1, 5)
    return tuple(torch.tensor(x, device=device, dtype=dtype) for x in (over_rows, over_columns))


def down_matrix(n: int) -> np.ndarray:
    """D along one axis, ``(n, 4n)`` float64: D of an image X ``(4h, 4w)`` is R_h X R_w^T."""
    window = _down_taps().T.ravel()  # block by block
    matrix = np.zeros((n, SCALE * (n + 2 * _REACH)))
    for row in range(n):
        matrix[row, SCALE * row : SCALE * row + window.size] = window
    matrix = matrix[:, SCALE * _REACH : -SCALE * _REACH]
    return matrix / matrix.sum(axis=1, keepdims=True)


def _down_taps() -> np.ndarray:
    """Kernel values ``(4, 5)`` seen from the low-resolution pixel, with sum 1."""
    taps = _phase_taps()[:, ::-1]
    return np.ascontiguousarray(taps / taps.sum())


@kept
def _up_border_gain(height: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """What renormalises the upsampling kernel at the borders, ``(16, h, w)``; 1 elsewhere."""
    rows, columns = (_weight_sums(n, _phase_taps()) for n in (height, width))
    weight_sum = torch.einsum("iy,jx->ijyx", rows, columns).reshape(PHASES, height, width)
    return (1 / weight_sum).to(device, dtype)


@kept
def _down_border_gain(height: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """What renormalises the kernel of D at the borders, ``(h, w)``; 1 elsewhere."""
    rows, columns = (_weight_sums(n, _down_taps()).sum(0) for n in (height, width))
    return (1 / torch.outer(rows, columns)).to(device, dtype)


def _weight_sums(n: int, taps: np.ndarray) -> Tensor:
    """Per phase, the part of ``taps`` that falls inside ``n`` blocks: ``(4, n)`` float64."""
    inside = torch.ones(1, 1, n, dtype=torch.float64)
    return F.conv1d(inside, torch.tensor(taps)[:, None], padding=_REACH)[0]
