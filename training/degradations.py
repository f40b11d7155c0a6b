"""How a low-resolution frame comes about from a high-resolution one, in one of three ways.

"bicubic" is antialiased bicubic /4, the paper's. "thermal" is a physical camera with a quarter of
the resolution: lens, detectors, read-out, display. Ranges are drawn from uniformly, unless they say
otherwise, and anew for each sample; one without a source is a choice, and says so. Spatial
frequencies are in cycles per pixel of the image at hand. The names of the noise components follow
the three-dimensional noise model of D'Agostino and Webb (SPIE 1488, 1991), of which one frame shows
sigma_TVH (per pixel), sigma_V (per row) and sigma_H (per column).

"second_order" is that of the reference configuration, for one channel: blur, resize, noise, JPEG;
then, for half of the samples, blur, resize and noise again; last a sinc filter and JPEG in either
order. Source: Wang et al., Real-ESRGAN (ICCVW 2021), 3.1 to 3.3, with the generalised Gaussian and
the plateau-shaped kernels of Liu et al. (2020) it refers to, and with the numbers of ResShift's
realsr_swinunet_realesrgan256 configuration, which DifIISR's repeats. A picture of one channel makes
"grey" and "colour" noise the same thing, so that choice is gone; libjpeg stands in for a
differentiable JPEG.
"""

from __future__ import annotations

import io
import math
from dataclasses import field
from itertools import product
from typing import Annotated, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
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

    Arguments and results as those of :func:`degrade`; the low resolution is in whole counts where
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


KERNELS = tuple(product(("gaussian", "generalised", "plateau"), ("isotropic", "anisotropic")))

# Of both passes; shares are those of the samples, a range is [low, high].
_KERNEL_SHARES = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)  # of kernels that are no sinc
_SINC_KERNELS = 0.1
_BETA = {"gaussian": (1.0, 1.0), "generalised": (0.5, 4.0), "plateau": (1.0, 2.0)}
_GAUSSIAN_SHARE = 0.5  # the others get Poisson noise
_JPEG_QUALITY = (30, 95)
_SECOND_PASSES, _LAST_SINCS = 0.5, 0.8

_WIDE = 13  # pixels from which a sinc kernel may have a lower cutoff
_FILTERS = ("area", "bilinear", "bicubic")
_UNIT = CountRange(0.0, 1.0)


class Pass(NamedTuple):
    """One pass of the reference configuration.

    Attributes:
        blur_share: share of the samples that are blurred.
        sides: smallest and largest side of the kernel, pixels; odd.
        sigma: standard deviations of the kernel, pixels.
        resize_shares: of enlarging, shrinking and keeping the size.
        resize: smallest and largest factor.
        noise: standard deviation of Gaussian noise, of 255.
        poisson: factor on Poisson noise.
    """

    blur_share: float
    sides: tuple[int, int]
    sigma: tuple[float, float]
    resize_shares: tuple[float, float, float]
    resize: tuple[float, float]
    noise: tuple[float, float]
    poisson: tuple[float, float]


FIRST = Pass(1.0, (3, 19), (0.2, 3.0), (0.2, 0.7, 0.1), (0.15, 1.5), (1.0, 30.0), (0.05, 3.0))
"""At the size of the scene."""

SECOND = Pass(0.8, (3, 13), (0.2, 1.5), (0.3, 0.4, 0.3), (0.3, 1.2), (1.0, 25.0), (0.05, 2.5))
"""About the size of the result."""


def second_order_pair(
    hr: np.ndarray, shown: CountRange, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Degrade the 8-bit picture of a scene; arguments and results as those of :func:`degrade`.

    Both results are clipped to ``shown``.
    """
    # The order of the draws is part of every seeded run.
    target = hr.astype(np.float32).clip(shown.lo, shown.hi)
    size = (hr.shape[0] // SCALE, hr.shape[1] // SCALE)
    picture = (target - shown.lo) / shown.span
    picture = _compress(_one_pass(picture, hr.shape, FIRST, rng), rng)
    if rng.random() < _SECOND_PASSES:
        picture = _one_pass(picture, size, SECOND, rng)
    sinc_comes_first = rng.random() < 0.5
    if not sinc_comes_first:
        picture = _compress(picture, rng)
    picture = _resize(picture, size, rng)
    if rng.random() < _LAST_SINCS:
        side = _random_side(SECOND.sides, rng)
        picture = convolve(picture, sinc_kernel(side, rng.uniform(math.pi / 3, math.pi)))
    if sinc_comes_first:
        picture = _compress(picture, rng)
    return from_eight_bit(to_eight_bit(picture, _UNIT), shown), target


def _one_pass(
    picture: np.ndarray, size: tuple[int, int], drawn: Pass, rng: np.random.Generator
) -> np.ndarray:
    """Blur, resize to a random factor of ``size``, add noise."""
    if rng.random() < drawn.blur_share:
        picture = convolve(picture, random_kernel(drawn.sides, drawn.sigma, rng))
    low, high = drawn.resize
    limits = ((1.0, high), (low, 1.0), (1.0, 1.0))[rng.choice(3, p=drawn.resize_shares)]
    factor = rng.uniform(*limits)
    picture = _resize(picture, (int(size[0] * factor), int(size[1] * factor)), rng)
    if rng.random() < _GAUSSIAN_SHARE:
        noise = rng.normal(0.0, rng.uniform(*drawn.noise) / _WHITE, picture.shape)
        return (picture + noise).clip(0, 1).astype(np.float32)
    return add_poisson_noise(picture.clip(0, 1), rng.uniform(*drawn.poisson), rng)


def _compress(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    eight_bit = to_eight_bit(picture, _UNIT)
    return from_eight_bit(random_jpeg(eight_bit, _JPEG_QUALITY, rng), _UNIT)


def _resize(picture: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Resize by a random filter; like the reference's, none is antialiased but "area"."""
    mode = _FILTERS[rng.integers(len(_FILTERS))]
    return F.interpolate(_as_tensor(picture), size=size, mode=mode)[0, 0].numpy()


def convolve(picture: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Filter ``(H, W)`` by a kernel of odd side, mirrored at the borders; float32."""
    padded = F.pad(_as_tensor(picture), (len(kernel) // 2,) * 4, mode="reflect")
    return F.conv2d(padded, _as_tensor(kernel))[0, 0].numpy()


def _as_tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None, None]


def add_poisson_noise(picture: np.ndarray, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Shot noise on a picture 0..1, multiplied by ``scale`` and clipped.

    White is as many events as the picture has grey levels, rounded up to a power of two.
    """
    levels = np.rint(picture * _WHITE) / _WHITE
    white = 2 ** math.ceil(math.log2(np.unique(levels).size))
    noise = rng.poisson(levels * white) / white - levels
    return (picture + scale * noise).clip(0, 1).astype(np.float32)


def random_kernel(
    sides: tuple[int, int], sigma: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """Draw a kernel ``(side, side)`` float64 that sums to 1.

    The generalised Gaussian is exp(-d^beta / 2), the plateau 1 / (1 + d^beta). ``sides``, both odd,
    and ``sigma``: smallest and largest, pixels.
    """
    side = _random_side(sides, rng)
    if rng.random() < _SINC_KERNELS:
        return sinc_kernel(side, rng.uniform(math.pi / (3 if side < _WIDE else 5), math.pi))
    family, shape = KERNELS[rng.choice(len(KERNELS), p=_KERNEL_SHARES)]
    sigma_x = sigma_y = rng.uniform(*sigma)
    (low, high), angle, beta = _BETA[family], 0.0, 1.0
    if shape == "anisotropic":
        sigma_y, angle = rng.uniform(*sigma), rng.uniform(-math.pi, math.pi)
    if family != "gaussian":  # half of the time below 1, half of the time above
        beta = rng.uniform(low, 1.0) if rng.random() < 0.5 else rng.uniform(1.0, high)
    power = squared_distance(side, sigma_x, sigma_y, angle) ** beta
    kernel = 1 / (1 + power) if family == "plateau" else np.exp(-0.5 * power)
    return kernel / kernel.sum()


def squared_distance(side: int, sigma_x: float, sigma_y: float, angle: float) -> np.ndarray:
    """d^T Sigma^-1 d for each pixel of a kernel, ``(side, side)``; ``angle`` in radians."""
    offset = np.arange(side) - (side - 1) / 2
    x, y = np.meshgrid(offset, offset)
    along = (x * math.cos(angle) + y * math.sin(angle)) / sigma_x
    across = (y * math.cos(angle) - x * math.sin(angle)) / sigma_y
    return along**2 + across**2


def sinc_kernel(side: int, cutoff: float) -> np.ndarray:
    """The ideal low-pass filter of circular symmetry, cut to ``side`` pixels; it rings.

    w J1(w r) / (2 pi r) with ``cutoff`` w in radians per pixel, at most pi.
    """
    radius = np.sqrt(squared_distance(side, 1.0, 1.0, 0.0))
    radius[side // 2, side // 2] = 1.0  # not 0 / 0; the limit follows
    bessel = torch.special.bessel_j1(torch.from_numpy(cutoff * radius)).numpy()
    kernel = cutoff * bessel / (2 * math.pi * radius)
    kernel[side // 2, side // 2] = cutoff**2 / (4 * math.pi)
    return kernel / kernel.sum()


def _random_side(sides: tuple[int, int], rng: np.random.Generator) -> int:
    """An odd number of pixels between the two odd limits, both included."""
    low, high = sides
    return low + 2 * int(rng.integers((high - low) // 2 + 1))


Kind = Literal["bicubic", "thermal", "second_order"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, config={"extra": "forbid"})
class DegradationConfig:
    """Which degradations are used, and their ranges.

    Attributes:
        bicubic: weight of the paper's clean one, antialiased bicubic /4.
        thermal: weight of the physical camera.
        second_order: weight of the reference's pipeline.
        camera: of the physical camera.
        shown_tail: share of a frame's pixels that its 8-bit picture, which "thermal" and
            "second_order" are made of, shows as black, and as white; 0 clips no target.
    """

    bicubic: Annotated[float, Ge(0)] = 0.7
    thermal: Annotated[float, Ge(0)] = 0.25
    second_order: Annotated[float, Ge(0)] = 0.05
    camera: ThermalConfig = field(default_factory=ThermalConfig)
    shown_tail: Annotated[float, Ge(0), Le(0.1)] = 0.01

    def __post_init__(self) -> None:
        if not any(self.shares().values()):
            raise ValueError("the weights of the degradations must not all be 0")

    def shares(self) -> dict[Kind, float]:
        """Share of each kind among the samples, 1 in all (0 in all while none has a weight)."""
        weights = np.array([getattr(self, kind) for kind in KINDS])
        return dict(zip(KINDS, weights / (weights.sum() or 1.0), strict=True))


def choose_kind(config: DegradationConfig, rng: np.random.Generator) -> Kind:
    """Draw a degradation by its weight."""
    return KINDS[rng.choice(len(KINDS), p=list(config.shares().values()))]


def degrade(
    kind: Kind,
    hr: np.ndarray,
    shown: CountRange,
    config: DegradationConfig,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Make a training pair of a high-resolution crop.

    Args:
        kind: which degradation; "bicubic" draws nothing.
        hr: ``(4h, 4w)`` uint8, uint16 or float32 counts.
        shown: :func:`agc_range` of the frame that ``hr`` is cut from.
        config: ranges to draw from.
        rng: where everything random comes from.

    Returns:
        low resolution ``(h, w)`` and target ``(4h, 4w)``, float32 counts on the same scale. The
        target is ``hr`` itself, but for what a camera with more pixels would show as well.
    """
    if kind == "thermal":
        return thermal_pair(hr, shown, config.camera, rng)
    if kind == "second_order":
        return second_order_pair(hr, shown, rng)
    h, w = (side // SCALE for side in hr.shape)
    return pillow_resize(hr, h, w).astype(np.float32), hr.astype(np.float32)


def bicubic(lr: np.ndarray) -> np.ndarray:
    """``(h, w)`` uint8, uint16 or float32 counts -> ``(4h, 4w)``: plain interpolation, Pillow's."""
    return pillow_resize(lr, SCALE * lr.shape[0], SCALE * lr.shape[1])


def pillow_resize(
    image: np.ndarray, height: int, width: int, method: Image.Resampling = Image.Resampling.BICUBIC
) -> np.ndarray:
    """Antialiased resize; the dtype (uint8, uint16, float32) and its rounding are kept."""
    given = image.astype(np.float32) if image.dtype == np.uint16 else image
    resized = np.asarray(Image.fromarray(given).resize((width, height), method))
    if image.dtype == np.uint16:
        return resized.round().clip(0, 65535).astype(np.uint16)
    return resized
