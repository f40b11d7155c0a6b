"""Radial power spectra: how much detail of each size a picture holds."""

from __future__ import annotations

import numpy as np

BINS = 48


def radial_power(image: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Mean power per ring of spatial frequency, 0 to 0.5 cycles per pixel; ``(bins,)`` float64.

    The mean is taken off and a Hann window laid over the picture, so that its borders add nothing.
    The power is per pixel of the window's energy, counts squared: pictures of any size compare.

    Args:
        image: ``(H, W)`` counts.
        bins: rings of equal width; one that no frequency falls into is NaN.
    """
    height, width = image.shape
    window = np.hanning(height)[:, None] * np.hanning(width)
    centred = (image.astype(np.float64) - image.mean(dtype=np.float64)) * window
    power = np.abs(np.fft.rfft2(centred)) ** 2 / max(float(np.square(window).sum()), 1e-12)
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    ring = (radius * 2 * bins).astype(int)
    inside = ring < bins
    count = np.bincount(ring[inside], minlength=bins)
    total = np.bincount(ring[inside], weights=power[inside], minlength=bins)
    return np.divide(total, count, out=np.full(bins, np.nan), where=count > 0)


def frequencies(bins: int = BINS) -> np.ndarray:
    """Centres of the rings, cycles per pixel."""
    return (np.arange(bins) + 0.5) / (2 * bins)
