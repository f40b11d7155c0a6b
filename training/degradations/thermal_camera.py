"""A physical thermal camera with a quarter of the resolution: lens, detectors, read-out, display.

Ranges are drawn from uniformly, unless they say otherwise, and anew for each sample. A range
without a source is a choice, and says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from difiisr_models.radiometry import CountRange
from difiisr_models.resample import SCALE
from difiisr_training.degradations.compression import (
    check_quality,
    from_eight_bit,
    jpeg,
    to_eight_bit,
)
from difiisr_training.degradations.optics import (
    apply_mtf,
    cutoff_frequency,
    diffraction_mtf,
    gaussian_mtf,
)
from difiisr_training.degradations.sensor import (
    drift_field,
    sample_by_detector,
    stick_pixels,
    stripes,
    temporal_noise,
)
from difiisr_training.ranges import IntRange, Range, check_ranges


@dataclass(frozen=True)
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
            noise is 0.68 of it, on the mean of hundreds of arrays (spatial noise is 31.8 % of the
            energy: Feng, Jin, Si, Zhang, Chinese Optics 11, 2018); columns carry more of it.
        stuck_share: largest share of stuck pixels, drawn uniformly from 0. A choice: cameras
            replace the pixels they know to be dead.
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
    netd: Range = (0.001, 0.02)
    column_noise: Range = (0.0, 0.7)
    row_noise: Range = (0.0, 0.4)
    stuck_share: float = 0.001
    gain_drift: float = 0.03
    offset_drift: float = 0.05
    agc_share: float = 0.3
    jpeg_share: float = 0.3
    jpeg_quality: IntRange = (70, 95)

    def __post_init__(self) -> None:
        check_ranges(self)
        check_quality(self.jpeg_quality)
        if self.netd[0] <= 0:
            raise ValueError(f"netd is log-uniform and must be above 0, got {list(self.netd)}")


def thermal_pair(
    hr: np.ndarray, shown: CountRange, config: ThermalConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Photograph a scene.

    What a camera with more pixels would show as well stays in the target: the drift, which no one
    can tell from the scene, and the saturation of the gain control. The rest is to be undone.

    Args:
        hr: ``(4h, 4w)`` uint8, uint16 or float32 counts.
        shown: :func:`~difiisr_training.degradations.compression.agc_range` of the whole frame.
        config: ranges to draw from.
        rng: where everything random comes from.

    Returns:
        low resolution ``(h, w)`` in whole counts where ``hr`` is, and target ``(4h, 4w)``; float32.
    """
    target = _drift(hr.astype(np.float32), shown, config, rng)
    lr = sample_by_detector(_through_lens(target, config, rng), rng.uniform(*config.fill_factor))
    lr = _read_out(lr, shown, config, rng)
    if hr.dtype.kind != "f":
        lr = np.rint(lr)
    if rng.random() < config.agc_share:
        picture = to_eight_bit(lr, shown)
        if rng.random() < config.jpeg_share:
            low, high = config.jpeg_quality
            picture = jpeg(picture, int(rng.integers(low, high + 1)))
        lr, target = from_eight_bit(picture, shown), target.clip(shown.lo, shown.hi)
    return lr, target


def _drift(
    scene: np.ndarray, shown: CountRange, config: ThermalConfig, rng: np.random.Generator
) -> np.ndarray:
    gain = drift_field(scene.shape, rng.uniform(0, config.gain_drift), rng)
    offset = drift_field(scene.shape, rng.uniform(0, config.offset_drift) * shown.span, rng)
    middle = (shown.lo + shown.hi) / 2
    return scene + gain * (scene - middle) + offset


def _through_lens(scene: np.ndarray, config: ThermalConfig, rng: np.random.Generator) -> np.ndarray:
    pixel_um = rng.uniform(*config.pitch_um) / SCALE
    cutoff = cutoff_frequency(
        rng.uniform(*config.wavelength_um), rng.uniform(*config.f_number), pixel_um
    )
    sigma = SCALE * rng.uniform(*config.aberration)
    return apply_mtf(scene, lambda f: diffraction_mtf(f, cutoff) * gaussian_mtf(f, sigma))


def _read_out(
    lr: np.ndarray, shown: CountRange, config: ThermalConfig, rng: np.random.Generator
) -> np.ndarray:
    sigma = shown.span * math.exp(rng.uniform(*np.log(config.netd)))
    lr = lr + temporal_noise(lr.shape, sigma, rng)
    row_sigma, column_sigma = (
        sigma * rng.uniform(*limits) for limits in (config.row_noise, config.column_noise)
    )
    lr = lr + stripes(lr.shape, row_sigma, column_sigma, rng)
    share = rng.uniform(0, config.stuck_share)
    return stick_pixels(lr, share, shown.lo - shown.span, shown.hi + shown.span, rng)
