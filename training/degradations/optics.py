"""What a lens does to a scene, as modulation transfer functions (MTF) in the frequency domain.

Spatial frequencies are in cycles per pixel of the image at hand.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_BORDER = 16  # mirrored pixels around the image, so that its opposite edges do not blur together


def cutoff_frequency(wavelength_um: float, f_number: float, pixel_um: float) -> float:
    """Frequency above which a lens passes nothing, cycles per pixel: pixel / (wavelength N)."""
    return pixel_um / (wavelength_um * f_number)


def diffraction_mtf(frequency: np.ndarray, cutoff: float) -> np.ndarray:
    """MTF of a perfect lens with a circular aperture, incoherent light.

    2/pi (arccos r - r sqrt(1 - r^2)) with r = frequency / cutoff; 0 beyond the cutoff. Source:
    Boreman, Modulation Transfer Function in Optical and Electro-Optical Systems (SPIE TT52), 1.5.1.
    """
    r = np.minimum(np.abs(frequency) / cutoff, 1.0)
    return 2 / np.pi * (np.arccos(r) - r * np.sqrt(1 - r * r))


def gaussian_mtf(frequency: np.ndarray, sigma: float) -> np.ndarray:
    """MTF of a Gaussian spot of standard deviation ``sigma`` pixels: exp(-2 (pi sigma f)^2).

    Stands for aberrations and defocus together, as performance models of infrared cameras do.
    """
    return np.exp(-2 * (np.pi * sigma * frequency) ** 2)


def apply_mtf(image: np.ndarray, mtf: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Filter an image by a rotationally symmetric MTF.

    Args:
        image: ``(H, W)`` float, any unit, more than 16 pixels on a side.
        mtf: frequencies (cycles per pixel, distance from zero) -> factors.

    Returns:
        ``(H, W)`` float32.
    """
    padded = np.pad(image, _BORDER, mode="reflect")
    rows, columns = (np.fft.fftfreq(padded.shape[0]), np.fft.rfftfreq(padded.shape[1]))
    factors = mtf(np.hypot(rows[:, None], columns[None, :]))
    filtered = np.fft.irfft2(np.fft.rfft2(padded) * factors, padded.shape)
    return filtered[_BORDER:-_BORDER, _BORDER:-_BORDER].astype(np.float32)
