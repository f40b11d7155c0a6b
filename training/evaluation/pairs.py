"""Low-resolution frames made of high-resolution ones by a named degradation."""

from __future__ import annotations

import hashlib

import numpy as np

from difiisr_models.resample import SCALE
from difiisr_training.data.images import crop_to_multiple, pillow_resize
from difiisr_training.degradations.compression import agc_range
from difiisr_training.degradations.mix import DegradationConfig, Kind, degrade


def make_pair(
    hr: np.ndarray, degradation: Kind = "bicubic", name: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """A frame cut to multiples of 4 and what a camera with a quarter of its resolution saw.

    Args:
        hr: ``(H, W)`` uint8, uint16 or float32 counts.
        degradation: ``"bicubic"``, antialiased bicubic /4, the paper's; or ``"thermal"`` or
            ``"second_order"`` with the ranges that training draws from by default.
        name: of the frame; the same name draws the same degradation, whatever frames are beside.

    Returns:
        ``(lr, hr)``, ``(h, w)`` and ``(4h, 4w)``, of the dtype of ``hr``. The second is the frame
        itself, but for what a camera with more pixels would show as well (a thermal camera's
        drift, the range of an 8-bit picture).
    """
    hr = crop_to_multiple(hr, SCALE)
    if degradation == "bicubic":
        return pillow_resize(hr, hr.shape[0] // SCALE, hr.shape[1] // SCALE), hr
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    rng = np.random.default_rng(seed)
    lr, target = degrade(degradation, hr, agc_range(hr), DegradationConfig(), rng)
    return to_dtype(lr, hr.dtype), to_dtype(target, hr.dtype)


def to_dtype(counts: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Round and clip float counts to what ``dtype`` holds; float32 stays as it is."""
    if dtype == np.float32:
        return counts.astype(np.float32)
    limits = np.iinfo(dtype)
    return np.rint(counts).clip(limits.min, limits.max).astype(dtype)
