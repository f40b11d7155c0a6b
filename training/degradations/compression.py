"""From counts to the 8-bit pictures that many cameras and drivers give instead, and back."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from difiisr_models.radiometry import CountRange

_WHITE = 255


def agc_range(counts: np.ndarray, tail: float = 0.01) -> CountRange:
    """The counts that a linear automatic gain control shows as black and as white.

    Args:
        counts: ``(H, W)`` of any dtype, a whole frame.
        tail: share of the pixels that saturates at either end. FLIR calls it tail rejection and
            advises 1 % or less ("FLIR Camera Adjustments", 102-PS242-100-01, 2.2 and 2.3).
    """
    lo, hi = (float(q) for q in np.quantile(counts, (tail, 1 - tail)))
    return CountRange(lo, max(hi, lo + 1))


def to_eight_bit(counts: np.ndarray, shown: CountRange) -> np.ndarray:
    """Counts -> uint8, 0 at ``shown.lo`` and 255 at ``shown.hi``, clipped beyond."""
    scaled = (counts.astype(np.float32) - shown.lo) * (_WHITE / shown.span)
    return np.rint(scaled).clip(0, _WHITE).astype(np.uint8)


def from_eight_bit(picture: np.ndarray, shown: CountRange) -> np.ndarray:
    """The inverse of :func:`to_eight_bit`, but for what it rounded and clipped: float32 counts."""
    return picture.astype(np.float32) * np.float32(shown.span / _WHITE) + np.float32(shown.lo)


def jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    """Grey baseline JPEG and back: ``(H, W)`` uint8 -> uint8; ``quality`` 1..100."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as decoded:
        return np.asarray(decoded)


def check_quality(limits: tuple[int, int]) -> None:
    """Raise ValueError unless JPEG has qualities within ``limits``."""
    if not 1 <= limits[0] <= limits[1] <= 100:
        raise ValueError(f"jpeg_quality must lie in 1..100, got {list(limits)}")
