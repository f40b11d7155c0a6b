"""Counts to 8 bits for eyes and detectors: local contrast, without flicker and without pumping.

After Fieldscale (Gil, Jeon and Kim, RA-L 2024): each place is scaled by the darkest and the
brightest of its surroundings, two coarse fields from which the extremes of small hot or cold
objects are taken out, which are smoothed in space, and which follow the frames slowly.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter, median_filter

from difiisr_models.frame_statistics import thinned
from difiisr_models.settings import Palette

_CELLS = (6, 8)
_DARK, _BRIGHT = 0.02, 0.98  # quantiles of a cell
_AROUND = (1, 5, 7)  # cells: what fills less than half of them is an object, no surroundings
_LEAST_SPAN = 0.3  # of the whole frame's: flat places are not blown up to noise
_RATE = 0.1  # share of the change of most cells that is taken with a frame
_LEAK = 0.01  # share of the change of a cell by itself, ...
_MOST = 0.1  # ... of which no more than this share of the span counts
_SHIFT = 0.1  # of the span: most cells have moved by more, as after a shutter event
_STRETCH = 1.5  # times: most cells' spans have changed by more, as with another gain
_TOE, _SHOULDER = 20.0, 215.0  # grey levels of the fields' ends; objects beyond have the rest
_STEPS = 256  # of the curve, over the fields' span
_BELOW, _ABOVE = 1, 4  # spans on either side that the curve covers
_INFERNO = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))


class ToneMapper:
    """The tone curve of one stream; see the module."""

    def __init__(self) -> None:
        self._fields: np.ndarray | None = None  # darkest and brightest, (2, *_CELLS)

    def update(self, counts: np.ndarray) -> None:
        """Take in a frame ``(H, W)`` without gaps, any dtype, 16x16 at least."""
        found = _fields_of(counts)
        tracked = self._fields
        if tracked is None:
            self._fields = found
            return
        spans = np.maximum(np.stack([found[1] - found[0], tracked[1] - tracked[0]]), 1e-9)
        span, stretch = np.median(spans[1]), np.median(spans[0] / spans[1])
        shift = np.median(found - tracked)
        if max(stretch, 1 / stretch) > _STRETCH:
            self._fields = found
            return
        if abs(shift) > _SHIFT * span:
            tracked = tracked + shift
        change = found - tracked
        around = np.median(change, axis=(1, 2), keepdims=True)
        alone = np.clip(change, -_MOST * span, _MOST * span)
        self._fields = tracked + _RATE * around + _LEAK * alone

    def grey(self, image: np.ndarray) -> np.ndarray:
        """The look of an image ``(sH, sW)`` of such counts: uint8, same shape; NaN is 0.

        Raises:
            ValueError: no frame has been taken in.
        """
        if self._fields is None:
            raise ValueError("update comes first: nothing is known of the stream yet")
        rows, columns = (_interpolation(n, m) for n, m in zip(image.shape, _CELLS, strict=True))
        dark, bright = _surroundings(self._fields).astype(np.float32)
        level = image.astype(np.float32)
        level -= rows @ dark @ columns.T
        level *= rows @ (np.float32(_STEPS) / (bright - dark)) @ columns.T
        np.nan_to_num(level, copy=False, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        level += _BELOW * _STEPS
        return _curve()[np.clip(level, 0, len(_curve()) - 1, out=level).astype(np.uint16)]


def coloured(grey: np.ndarray, palette: Palette) -> np.ndarray:
    """``(H, W)`` uint8 in the colours of a palette: ``(H, W, 3)`` red, green, blue; grey as is."""
    return grey if palette == "grey" else _inferno()[grey]


def _fields_of(counts: np.ndarray) -> np.ndarray:
    """Darkest and brightest of each cell, ``(2, *_CELLS)`` float64."""
    values = thinned(counts).astype(np.float32)
    rows, columns = _CELLS
    height, width = values.shape[0] // rows, values.shape[1] // columns
    cells = values[: rows * height, : columns * width].reshape(rows, height, columns, width)
    return np.quantile(cells.swapaxes(1, 2).reshape(rows, columns, -1), (_DARK, _BRIGHT), axis=-1)


def _surroundings(fields: np.ndarray) -> np.ndarray:
    """The fields without objects, brighter or darker than most around them, and smooth."""
    around = median_filter(fields, _AROUND, mode="nearest")
    dark = gaussian_filter(np.maximum(fields[0], around[0]), 1.0, mode="nearest")
    bright = gaussian_filter(np.minimum(fields[1], around[1]), 1.0, mode="nearest")
    magnitude = max(abs(dark).max(), abs(bright).max(), 1.0)
    least = max(_LEAST_SPAN * float(bright.max() - dark.min()), 1e-5 * magnitude)
    widening = np.maximum(least - (bright - dark), 0) / 2
    return np.stack([dark - widening, bright + widening])


@lru_cache(maxsize=8)
def _interpolation(pixels: int, cells: int) -> np.ndarray:
    """Linear interpolation between the centres of ``cells``, ``(pixels, cells)`` float32."""
    place = np.clip((np.arange(pixels) + 0.5) * cells / pixels - 0.5, 0, cells - 1)
    distance = np.abs(place[:, None] - np.arange(cells))
    return np.maximum(1 - distance, 0).astype(np.float32)


@lru_cache
def _curve() -> np.ndarray:
    """Grey level, uint8: straight within the fields' span, flattening out beyond either end."""
    x = np.arange(-_BELOW * _STEPS, (1 + _ABOVE) * _STEPS) / _STEPS
    slope, rest = _SHOULDER - _TOE, 255 - _SHOULDER
    grey = _TOE + slope * x
    above = _SHOULDER + rest * -np.expm1(-slope / rest * np.maximum(x - 1, 0))
    below = _TOE * np.exp(slope / _TOE * np.minimum(x, 0))
    grey = np.where(x < 0, below, np.where(x > 1, above, grey))
    return np.rint(grey).astype(np.uint8)


@lru_cache
def _inferno() -> np.ndarray:
    places, levels = np.linspace(0, 255, len(_INFERNO)), np.arange(256)
    channels = [np.interp(levels, places, channel) for channel in zip(*_INFERNO, strict=True)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
