"""What a microbolometer array does to the image that the lens throws on it.

The names of the noise components follow the three-dimensional noise model of D'Agostino and Webb
(SPIE 1488, 1991), of which one frame shows sigma_TVH (per pixel), sigma_V (per row) and sigma_H
(per column).
"""

from __future__ import annotations

import numpy as np

from difiisr_models.resample import SCALE


def sample_by_detector(image: np.ndarray, fill_factor: float) -> np.ndarray:
    """Average the sensitive square of each detector: ``(4h, 4w)`` -> ``(h, w)`` float32.

    A detector spans 4x4 pixels and is sensitive on a centred square of ``fill_factor`` (0..1) of
    that area. Its MTF is about |sinc(4 sqrt(fill_factor) f)|; what lies above the sampling rate's
    half aliases, as it does in a camera.
    """
    width = SCALE * np.sqrt(fill_factor)
    edges = np.clip(np.arange(SCALE + 1) - SCALE / 2, -width / 2, width / 2)
    weights = (np.diff(edges) / width).astype(np.float32)
    h, w = (side // SCALE for side in image.shape)
    return np.einsum("iyjx,y,x->ij", image.reshape(h, SCALE, w, SCALE), weights, weights)


def temporal_noise(shape: tuple[int, int], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """sigma_TVH: white Gaussian noise in counts. NETD is this sigma as a temperature."""
    return rng.normal(0.0, sigma, shape).astype(np.float32)


def stripes(
    shape: tuple[int, int], row_sigma: float, column_sigma: float, rng: np.random.Generator
) -> np.ndarray:
    """sigma_V and sigma_H: one Gaussian offset per row plus one per column, in counts.

    Rows and columns share amplifiers of the read-out circuit, hence stripes (Appl. Sci. 9(10),
    1993, 2019).
    """
    rows = rng.normal(0.0, row_sigma, (shape[0], 1))
    columns = rng.normal(0.0, column_sigma, (1, shape[1]))
    return (rows + columns).astype(np.float32)


def stick_pixels(
    image: np.ndarray, share: float, lo: float, hi: float, rng: np.random.Generator
) -> np.ndarray:
    """Replace a random ``share`` of the pixels by constants drawn from ``lo``..``hi`` counts.

    Weak, flickering and drifting pixels are what a calibrated array shows first (Gross, Hierl,
    Schulz, Opt. Eng. 38(5), 1999); in one frame they all are pixels of a wrong, constant value.
    """
    stuck = rng.random(image.shape) < share
    levels = rng.uniform(lo, hi, image.shape)
    return np.where(stuck, levels, image).astype(np.float32)


def drift_field(shape: tuple[int, int], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """A random offset and slope over the image with root mean square ``sigma``, ``(H, W)`` float32.

    Between two shutter events gain and offset of an uncooled array follow the camera's temperature
    (Wolf, Pezoa, Figueroa, Sensors 16(7), 1121, 2016), over the whole array and slowly across it.
    """
    level, down, across = rng.normal(0.0, sigma / np.sqrt(3), 3)
    y, x = (np.linspace(-1, 1, n) * np.sqrt(3 * (n - 1) / (n + 1)) for n in shape)
    return (level + down * y[:, None] + across * x[None, :]).astype(np.float32)
