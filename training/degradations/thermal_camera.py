"""A physical thermal camera with a quarter of the resolution: lens, detectors, read-out, display.

Ranges are drawn from uniformly, unless they say otherwise, and anew for each sample. A range
without a source is a choice, and says so. Spatial frequencies are in cycles per pixel of the image
at hand. The names of the noise components follow the three-dimensional noise model of D'Agostino
and Webb (SPIE 1488, 1991), of which one frame shows sigma_TVH (per pixel), sigma_V (per row) and
sigma_H (per column).
"""

from __future__ import annotations

import io
import math
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le
from PIL import Image
from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from difiisr_models.radiometry import CountRange
from difiisr_models.resample import SCALE

_WHITE = 255
_BORDER = 16  # mirrored pixels around the image, so that its opposite edges do not blur together


def _ordered(limits: tuple[float, float]) -> tuple[float, float]:
    if not limits[0] <= limits[1]:
        raise ValueError("must be a range [low, high]")
    return limits


Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
"""Lowest and highest value of a setting that is drawn for each sample."""

Quality = Annotated[int, Ge(1), Le(100)]
QualityRange = Annotated[tuple[Quality, Quality], AfterValidator(_ordered)]
"""Lowest and highest quality of a JPEG, both drawn."""


@dataclass(frozen=True, config={"extra": "forbid"})
class ThermalConfig:
    """Ranges of the camera. Amplitudes in counts are shares of the span that the frame shows.

    Attributes:
        wavelength_um: effective wavelength. Boson and Lepton see 8 to 14 um (datasheets
            102-2013-40 and 500-0659-00-09); a 300 K scene is brightest near 10 um.
        f_number: of the lens. Boson's NETD is stated at f/1.0, Lepton has f/1.1.
        pitch_um: detector pitch of the simulated camera. Boson 12 um, Lepton 12 and 17 um.
        aberration: standard deviation of the Gaussian spot in detector pitches. A choice: none to
            a spot as wide as diffraction's.
        fill_factor: sensitive share of a detector's area. A choice: microbolometers with and
            without an umbrella over their legs.
        netd: temporal noise over the span, log-uniform. 20 mK in a scene that spans 20 K to 50 mK
            (Lepton's limit; Boson's is 40 mK) in one of 2.5 K.
        column_noise, row_noise: standard deviation over that of the temporal noise. All spatial
            noise is 0.68 of it (31.8 % of the energy: Feng, Jin, Si, Zhang, Chinese Optics 11,
            2018); columns carry more of it.
        stuck_share: largest share of stuck pixels, drawn uniformly from 0. A choice.
        gain_drift: largest root mean square of the relative gain error. A choice.
        offset_drift: largest root mean square of the offset error. 0.6 K was seen after
            calibration (Thomassen, van Rheenen, Proc. SPIE, 2020): 5 % of a span of 12 K.
        agc_share: share of the samples seen through an 8-bit automatic gain control.
        jpeg_share: share of those that are JPEG-compressed too.
        jpeg_quality: ROS' image transports default to 80 or to 95.
    """

    wavelength_um: Range = (8.0, 12.0)
    f_number: Range = (1.0, 1.4)
    pitch_um: Range = (12.0, 17.0)
    aberration: Range = (0.0, 0.4)
    fill_factor: Range = (0.6, 0.95)
    netd: Annotated[tuple[Annotated[float, Gt(0)], float], AfterValidator(_ordered)] = (0.001, 0.02)
    column_noise: Range = (0.0, 0.7)
    row_noise: Range = (0.0, 0.4)
    stuck_share: float = 0.001
    gain_drift: float = 0.03
    offset_drift: float = 0.05
    agc_share: float = 0.3
    jpeg_share: float = 0.3
    jpeg_quality: QualityRange = (70, 95)


def thermal_pair(
    hr: np.ndarray, shown: CountRange, config: ThermalConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Photograph a scene.

    What a camera with more pixels would show as well stays in the target: the drift, which no one
    can tell from the scene, and the saturation of the gain control. The rest is to be undone.

    Arguments and results as those of ``mix.degrade``; the low resolution is in whole counts where
    ``hr`` is.
    """
    # The order of the draws is part of every seeded run: a new one comes last.
    scene, middle = hr.astype(np.float32), (shown.lo + shown.hi) / 2
    gain = drift_field(hr.shape, rng.uniform(0, config.gain_drift), rng)
    offset = drift_field(hr.shape, rng.uniform(0, config.offset_drift) * shown.span, rng)
    target = scene + gain * (scene - middle) + offset

    pixel_um = rng.uniform(*config.pitch_um) / SCALE
    wavelength_um, f_number = rng.uniform(*config.wavelength_um), rng.uniform(*config.f_number)
    seen = blur_by_lens(
        target, pixel_um / (wavelength_um * f_number), SCALE * rng.uniform(*config.aberration)
    )
    lr = sample_by_detector(seen, rng.uniform(*config.fill_factor))

    netd = shown.span * math.exp(rng.uniform(*np.log(config.netd)))
    lr = lr + rng.normal(0.0, netd, lr.shape).astype(np.float32)  # sigma_TVH
    sigma_v, sigma_h = (netd * rng.uniform(*x) for x in (config.row_noise, config.column_noise))
    lr = lr + stripes(lr.shape, sigma_v, sigma_h, rng)
    share = rng.uniform(0, config.stuck_share)
    lr = stick_pixels(lr, share, shown.lo - shown.span, shown.hi + shown.span, rng)
    if hr.dtype.kind != "f":
        lr = np.rint(lr)

    if rng.random() < config.agc_share:
        picture = to_eight_bit(lr, shown)
        if rng.random() < config.jpeg_share:
            picture = random_jpeg(picture, config.jpeg_quality, rng)
        lr, target = from_eight_bit(picture, shown), target.clip(shown.lo, shown.hi)
    return lr, target


def blur_by_lens(image: np.ndarray, cutoff: float, spot: float) -> np.ndarray:
    """Filter ``(H, W)`` by the modulation transfer function of a lens with a circular aperture.

    2/pi (arccos r - r sqrt(1 - r^2)), r = frequency / cutoff, 0 beyond it: a perfect lens in
    incoherent light (Boreman, Modulation Transfer Function in Optical and Electro-Optical Systems,
    SPIE TT52, 1.5.1). Times exp(-2 (pi spot f)^2), which stands for aberrations and defocus
    together, as performance models of infrared cameras have it.

    Args:
        image: any unit, more than 16 pixels on a side.
        cutoff: frequency above which nothing passes, pixel / (wavelength f-number).
        spot: standard deviation of the Gaussian spot, pixels.
    """
    padded = np.pad(image, _BORDER, mode="reflect")
    rows, columns = np.fft.fftfreq(padded.shape[0]), np.fft.rfftfreq(padded.shape[1])
    frequency = np.hypot(rows[:, None], columns[None, :])
    r = np.minimum(frequency / cutoff, 1.0)
    factors = 2 / np.pi * (np.arccos(r) - r * np.sqrt(1 - r * r))
    factors = factors * np.exp(-2 * (np.pi * spot * frequency) ** 2)
    filtered = np.fft.irfft2(np.fft.rfft2(padded) * factors, padded.shape)
    return filtered[_BORDER:-_BORDER, _BORDER:-_BORDER].astype(np.float32)


def sample_by_detector(image: np.ndarray, fill_factor: float) -> np.ndarray:
    """Average the sensitive square of each detector: ``(4h, 4w)`` -> ``(h, w)`` float32.

    A detector spans 4x4 pixels and is sensitive on a centred square of ``fill_factor`` (0..1) of
    that area. What lies above the sampling rate's half aliases, as it does in a camera.
    """
    width = SCALE * np.sqrt(fill_factor)
    edges = np.clip(np.arange(SCALE + 1) - SCALE / 2, -width / 2, width / 2)
    weights = (np.diff(edges) / width).astype(np.float32)
    h, w = (side // SCALE for side in image.shape)
    return np.einsum("iyjx,y,x->ij", image.reshape(h, SCALE, w, SCALE), weights, weights)


def stripes(
    shape: tuple[int, ...], row_sigma: float, column_sigma: float, rng: np.random.Generator
) -> np.ndarray:
    """sigma_V and sigma_H: one Gaussian offset per row plus one per column, in counts.

    Rows and columns share amplifiers of the read-out (Appl. Sci. 9(10), 1993, 2019).
    """
    rows = rng.normal(0.0, row_sigma, (shape[0], 1))
    columns = rng.normal(0.0, column_sigma, (1, shape[1]))
    return (rows + columns).astype(np.float32)


def stick_pixels(
    image: np.ndarray, share: float, lo: float, hi: float, rng: np.random.Generator
) -> np.ndarray:
    """Replace a random ``share`` of the pixels by constants drawn from ``lo``..``hi`` counts.

    Weak, flickering and drifting pixels (Gross, Hierl, Schulz, Opt. Eng. 38(5), 1999) all are, in
    one frame, pixels of a wrong, constant value.
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


def agc_range(counts: np.ndarray, tail: float = 0.01) -> CountRange:
    """The counts of a frame ``(H, W)`` that a linear gain control shows as black and as white.

    ``tail`` of the pixels saturate at either end. FLIR calls it tail rejection and advises 1 % or
    less ("FLIR Camera Adjustments", 102-PS242-100-01, 2.2 and 2.3).
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


def random_jpeg(
    picture: np.ndarray, limits: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """Grey baseline JPEG and back, of a quality 1..100 within ``limits``: ``(H, W)`` uint8."""
    buffer = io.BytesIO()
    quality = int(rng.integers(limits[0], limits[1] + 1))
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as decoded:
        return np.asarray(decoded)
