"""What a result can be judged by: every metric with its numbers, and how each is shown."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from difiisr_models.files import sha256_file
from difiisr_models.radiometry import robust_range
from difiisr_models.resample import SCALE
from difiisr_training.degradations import bicubic
from difiisr_training.evaluation import metrics
from difiisr_training.evaluation.inputs import full_range

SQUEEZE_FILE, SQUEEZE_LINEAR_FILE = "squeezenet1_1_features_lpips.pth", "lpips_lin_v0.1_squeeze.pth"
NIQE_FILE = "niqe_pris_params.npz"

Mode = Literal["reference", "camera"]
Function = Callable[[np.ndarray, np.ndarray, Any], "float | Sequence[float]"]
"""``sr (4h, 4w)``, ``lr (h, w)`` and ``hr (4h, 4w)`` or ``None``, in counts -> one number for each
of a measure's columns; ValueError where a frame is too small or too flat for it."""

_SMALL = 64  # pixels; what a network fails at below is for want of pixels


@dataclass(frozen=True)
class MetricInfo:
    """How a metric is shown."""

    label: str
    unit: str  # "" for a pure number
    better: Literal["higher", "lower", "zero"]  # zero: either sign is an error


@dataclass(frozen=True)
class Radiometry:
    """``kelvin = gain * counts + offset``."""

    gain: float
    offset: float

    @classmethod
    def parse(cls, text: str) -> Radiometry:
        """Read ``"kelvin=0.1*counts+173.15"``; the offset may be absent, ValueError: all else."""
        found = re.fullmatch(r"kelvin=(\S+?)\*counts([+-]\S+)?", re.sub(r"\s", "", text).lower())
        given = [float(found[1]), float(found[2] or 0)] if found else [0.0]
        if given[0] == 0 or not np.isfinite(given).all():
            raise ValueError(
                f"{text!r} is no linear radiometry; write e.g. 'kelvin=0.04*counts' or "
                "'kelvin=0.1*counts+173.15'"
            )
        return cls(*given)

    def kelvin(self, counts: np.ndarray) -> np.ndarray:
        """Temperatures, float64."""
        return self.gain * counts.astype(np.float64) + self.offset


def is_flat(counts: np.ndarray) -> bool:
    """Whether all pixels are equal, as behind a camera's shutter: there is no picture."""
    return bool(counts.min() == counts.max())


def _compared(metric: Callable[[np.ndarray, np.ndarray, float], float]) -> Function:
    """8 bit is judged on 0..255, all else from the smallest to the largest count of ``hr``."""

    def measure(sr: np.ndarray, _: np.ndarray, hr: np.ndarray) -> float:
        lo, span = full_range(hr)
        return math.nan if is_flat(hr) else metric(sr - np.float64(lo), hr - np.float64(lo), span)

    return measure


def _rated(metric: Callable[[np.ndarray, float], float]) -> Function:
    """Likewise, but without ``hr`` on the robust range of ``lr``, which dead pixels do not set."""

    def measure(sr: np.ndarray, lr: np.ndarray, hr: np.ndarray | None) -> float:
        seen = lr if hr is None else hr
        if is_flat(seen):
            return math.nan
        lo, span = full_range(seen)
        if hr is None and lr.dtype != np.uint8:
            shown = robust_range(lr)
            lo, span = shown.lo, shown.span
        picture = sr - np.float64(lo)
        return metric(picture.clip(0, span) if hr is None else picture, span)

    return measure


def _consistency(sr: np.ndarray, lr: np.ndarray, _: np.ndarray | None) -> Sequence[float]:
    found = metrics.consistency(sr, lr)
    return found.mean(), np.quantile(found, 0.95), found.max()


def _error(radiometry: Radiometry | None) -> Function:
    """Mean error, and 95th percentile of its magnitude, in kelvin."""
    if radiometry is None:
        raise ValueError("no radiometry: give --radiometry 'kelvin=a*counts+b'")

    def measure(sr: np.ndarray, _: np.ndarray, hr: np.ndarray) -> Sequence[float]:
        difference = radiometry.gain * (sr.astype(np.float64) - hr)
        return difference.mean(), np.quantile(np.abs(difference), 0.95)

    return measure


class Flicker:
    """How much a super-resolved film moves where the scene does not; give it the frames in order.

    A low-resolution pixel is *static* at frame t when its standard deviation over the last 5
    frames (fewer at the start, two at least) is at most 2 % of the range of frame t
    (``robust_range``). There,

        flicker_counts = mean |SR_t - SR_{t-1}|,
        flicker        = flicker_counts / the same of bicubic x4.

    1 = as steady as plain interpolation, which passes the camera's noise on; above, the model
    makes something that was not there. Only neighbours in the list are compared: leave no frames
    out of a film.
    """

    WINDOW, STILL, LEAST_SHARE = 5, 0.02, 0.01

    def __init__(self) -> None:
        self._window: deque[np.ndarray] = deque(maxlen=self.WINDOW)
        self._before: np.ndarray | None = None

    def reset(self) -> None:
        """A new film begins."""
        self._window.clear()

    def __call__(
        self, sr: np.ndarray, lr: np.ndarray, _: np.ndarray | None = None
    ) -> tuple[float, float]:
        """``(flicker, flicker_counts)`` of the newest frame, ``sr (4h, 4w)`` of ``lr (h, w)``.

        Both are NaN for the first frame, after a change of size, and where less than 1 % of the
        pixels are static; ``flicker`` also where bicubic stands still.
        """
        if self._window and self._window[-1].shape != lr.shape:
            self.reset()
        before, self._before = self._before, np.stack([sr, bicubic(lr)]).astype(np.float64)
        self._window.append(lr.astype(np.float64))
        still = np.std(self._window, axis=0) <= self.STILL * robust_range(lr).span
        if len(self._window) < 2 or still.mean() < self.LEAST_SHARE:
            return math.nan, math.nan
        mask = np.kron(still, np.ones((SCALE, SCALE), bool))
        own, plain = np.abs(self._before - before)[:, mask].mean(axis=1)
        return own / plain if plain > 0 else math.nan, own


Make = Callable[[Sequence[Path], str, "Radiometry | None"], Function]
"""Paths of a measure's network files, device and radiometry -> its function."""


def _by(load: Callable[..., Callable], shown: Callable[[Callable], Function]) -> Make:
    """Of a network: how its files are read, and how it is shown images."""
    return lambda files, device, _: shown(load(*files, device))


MEASURES: dict[str, tuple[Make, Sequence[str]]] = {
    "psnr": (lambda *_: _compared(metrics.psnr), ()),
    "ssim": (lambda *_: _compared(metrics.ssim), ()),
    "lpips_squeeze": (_by(metrics.LpipsSqueeze, _compared), (SQUEEZE_FILE, SQUEEZE_LINEAR_FILE)),
    "lpips_alex": (
        _by(partial(metrics.load_lpips, "alex"), _compared),
        ("alexnet-owt-7be5be79.pth",),
    ),
    "lpips_vgg": (_by(partial(metrics.load_lpips, "vgg"), _compared), ("vgg16-397923af.pth",)),
    "spectral": (lambda *_: _compared(metrics.spectral_distance), ()),
    "consistency": (lambda *_: _consistency, ()),
    "error": (lambda *_: _error(Radiometry(1, 0)), ()),
    "kelvin": (lambda _files, _device, radiometry: _error(radiometry), ()),
    "niqe": (lambda files, *_: _rated(metrics.Niqe(*files)), (NIQE_FILE,)),
    "clip_iqa": (_by(metrics.load_clip_iqa, _rated), ("RN50.pt",)),
    "musiq": (_by(metrics.load_musiq, _rated), ("musiq_koniq_ckpt-e95806b9.pth",)),
    "flicker": (lambda *_: Flicker(), ()),
}
"""What ``--metrics NAME`` asks for: how its function is made, and the files that it needs."""

COLUMNS = {
    "psnr": MetricInfo("PSNR", "dB", "higher"),
    "ssim": MetricInfo("SSIM", "", "higher"),
    "lpips_squeeze": MetricInfo("LPIPS-squeeze", "", "lower"),
    "lpips_alex": MetricInfo("LPIPS-alex", "", "lower"),
    "lpips_vgg": MetricInfo("LPIPS-vgg", "", "lower"),
    "spectral": MetricInfo("Spectral distance (L_visual)", "", "lower"),
    "consistency_mean": MetricInfo("|D(SR) - LR|, mean", "counts", "lower"),
    "consistency_p95": MetricInfo("|D(SR) - LR|, 95th percentile", "counts", "lower"),
    "consistency_max": MetricInfo("|D(SR) - LR|, largest", "counts", "lower"),
    "error_bias": MetricInfo("Bias", "counts", "zero"),
    "error_p95": MetricInfo("|SR - HR|, 95th percentile", "counts", "lower"),
    "kelvin_bias": MetricInfo("Bias", "K", "zero"),
    "kelvin_p95": MetricInfo("|SR - HR|, 95th percentile", "K", "lower"),
    "niqe": MetricInfo("NIQE", "", "lower"),
    "clip_iqa": MetricInfo("CLIP-IQA", "", "higher"),
    "musiq": MetricInfo("MUSIQ", "", "higher"),
    "flicker": MetricInfo("Flicker over that of bicubic", "", "lower"),
    "flicker_counts": MetricInfo("Flicker", "counts", "lower"),
}
"""The numbers that they give, in order: of the measure's name, or beginning with it and ``_``."""

METRICS: dict[Mode, tuple[str, ...]] = {
    "reference": tuple(name for name in MEASURES if name != "flicker"),
    "camera": ("niqe", "clip_iqa", "musiq", "flicker", "consistency"),
}
"""What can be asked for, and what is measured unless one asks for less."""


class Judge:
    """The chosen metrics, ready to measure single frames.

    Attributes:
        mode: with reference, or of a camera's own frames.
        radiometry: of the counts, if known; the error in kelvin needs it.
        columns: name and description of each value, in order.
        not_run: what cannot be measured, and why.
        files: SHA-256 of each network file that was loaded, by the file's name.
    """

    def __init__(
        self,
        mode: Mode,
        metrics: Sequence[str] | None,
        weights: Path | None,
        device: str = "cpu",
        radiometry: Radiometry | None = None,
    ) -> None:
        """Load what the metrics need.

        ``metrics``: some of :data:`METRICS`, ``None``: all that can be measured here. ``weights``:
        folder of their networks, under their authors' names. ValueError: a metric that is unknown
        in this mode, or that was asked for and cannot be measured.
        """
        self.mode, self.radiometry = mode, radiometry
        if unknown := sorted(set(metrics or ()) - set(METRICS[mode])):
            raise ValueError(
                f"no metric {', '.join(unknown)} in {mode} mode; there are "
                f"{', '.join(METRICS[mode])}"
            )
        self.columns: dict[str, MetricInfo] = {}
        self.not_run: dict[str, str] = {}
        self.files: dict[str, str] = {}
        self._functions: dict[str, Function] = {}
        self._columns: dict[str, list[str]] = {}
        for name in METRICS[mode] if metrics is None else metrics:
            make, needed = MEASURES[name]
            files = [(weights or Path()) / file for file in needed]
            try:
                if needed and weights is None:
                    raise ValueError("give the folder of the metrics' networks, --weights")
                if missing := [path for path in files if not path.is_file()]:
                    raise FileNotFoundError(f"no {missing[0].name} in {weights}")
                self._functions[name] = make(files, device, radiometry)
            except Exception as error:  # damaged files raise whatever their reader raises
                reason = (str(error) or type(error).__name__).splitlines()[0]
                if metrics is not None:
                    raise ValueError(f"{name} cannot be measured: {reason}") from error
                self.not_run[name] = reason
                continue
            self.files |= {path.name: sha256_file(path) for path in files}
            self._columns[name] = [c for c in COLUMNS if c == name or c.startswith(f"{name}_")]
            self.columns |= {column: COLUMNS[column] for column in self._columns[name]}

    def reset(self) -> None:
        """A new film, or the same by another model, begins."""
        if isinstance(flicker := self._functions.get("flicker"), Flicker):
            flicker.reset()

    def __call__(
        self,
        sr: np.ndarray,
        lr: np.ndarray,
        hr: np.ndarray | None = None,
        mask: np.ndarray | None = None,
    ) -> dict[str, float]:
        """Measure one result; NaN where a frame is too small for a metric, or flat.

        Flicker compares with the frame of the call before.

        Args:
            sr: ``(4h, 4w)`` counts, what the model made.
            lr: ``(h, w)`` counts, what it saw.
            hr: ``(4h, 4w)`` counts, what it should have made; ``None`` in camera mode.
            mask: ``(4h, 4w)``, False where the result counts as right; PSNR is of the other pixels.

        Raises:
            ValueError: the result is not four times as large as what the model saw.
        """
        due = tuple(SCALE * side for side in lr.shape)
        for image in (sr, hr):
            if image is not None and image.shape != due:
                raise ValueError(
                    f"of {lr.shape} pixels, images of {due} are compared, got {image.shape}"
                )
        sr = sr if mask is None or hr is None else np.where(mask, sr, hr)
        values = dict.fromkeys(self.columns, math.nan)
        for name, function in self._functions.items():
            try:
                found = np.atleast_1d(function(sr, lr, hr)).tolist()
                values |= zip(self._columns[name], found, strict=True)
            except ValueError:  # too small or too flat for this metric
                continue
            except RuntimeError as error:
                if min(due) >= _SMALL or isinstance(error, torch.cuda.OutOfMemoryError):
                    raise
        if mask is not None and "psnr" in values:
            values["psnr"] += 10 * math.log10(mask.mean())
        return values
