"""Arrays as pictures inside the page: data URIs of PNG and WebP."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import matplotlib
import numpy as np
from PIL import Image

_LARGEST_SIDE = 960
_QUALITY = 88
_DIVERGING = "RdBu_r"


@dataclass(frozen=True)
class Picture:
    """An inline picture: source and size in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class GrayRange:
    """Counts shown as black and as white."""

    low: float
    high: float


def gray_range(counts: np.ndarray) -> GrayRange:
    """The 0.2 % and 99.8 % quantiles: single hot or dead pixels do not set them."""
    low, high = np.quantile(counts, (0.002, 0.998))
    return GrayRange(float(low), float(high) if high > low else float(low) + 1)


def to_gray(counts: np.ndarray, shown: GrayRange) -> np.ndarray:
    """``(H, W)`` counts as uint8 gray."""
    scaled = (counts.astype(np.float64) - shown.low) / (shown.high - shown.low)
    return np.rint(scaled.clip(0, 1) * 255).astype(np.uint8)


def to_signed_colour(error: np.ndarray, limit: float) -> np.ndarray:
    """``(H, W)`` counts, ``-limit..limit``, as uint8 RGB: blue below, white at 0, red above."""
    scaled = (error / limit + 1) / 2
    colours = matplotlib.colormaps[_DIVERGING](scaled.clip(0, 1))
    return np.rint(colours[..., :3] * 255).astype(np.uint8)


def exact_picture(pixels: np.ndarray) -> Picture:
    """PNG without loss, for crops; uint8 ``(H, W)`` or ``(H, W, 3)``."""
    return _encode(Image.fromarray(pixels), "png", optimize=True)


def compact_picture(pixels: np.ndarray) -> Picture:
    """WebP with a little loss, at most 960 pixels on a side, for whole frames."""
    image = Image.fromarray(pixels)
    image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
    return _encode(image, "webp", quality=_QUALITY, method=4)


def colour_bar() -> Picture:
    """The colours of :func:`to_signed_colour` from left to right."""
    return exact_picture(to_signed_colour(np.linspace(-1, 1, 256)[None], 1.0))


def _encode(image: Image.Image, kind: str, **options: object) -> Picture:
    data = io.BytesIO()
    image.save(data, kind, **options)
    text = base64.b64encode(data.getvalue()).decode("ascii")
    return Picture(f"data:image/{kind};base64,{text}", *image.size)
