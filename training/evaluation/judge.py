"""Which metrics are applied to a result, and how each is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from difiisr_models.radiometry import robust_range
from difiisr_models.resample import SCALE
from difiisr_models.weights import sha256_file
from difiisr_training.evaluation.external_metrics import (
    CLIP_FILE,
    LPIPS_BACKBONES,
    MUSIQ_FILE,
    LpipsPackage,
    load_clip_iqa,
    load_musiq,
)
from difiisr_training.evaluation.metrics import (
    LpipsSqueeze,
    Niqe,
    consistency,
    psnr,
    spectral_distance,
    ssim,
)
from difiisr_training.evaluation.peers import full_range
from difiisr_training.evaluation.results import MetricInfo, Mode
from difiisr_training.evaluation.temperature import Radiometry

SQUEEZE_FILE, SQUEEZE_LINEAR_FILE = "squeezenet1_1_features_lpips.pth", "lpips_lin_v0.1_squeeze.pth"
NIQE_FILE = "niqe_pris_params.npz"

_FILES: dict[str, tuple[str, ...]] = {
    "lpips_squeeze": (SQUEEZE_FILE, SQUEEZE_LINEAR_FILE),
    "lpips_alex": (LPIPS_BACKBONES["alex"],),
    "lpips_vgg": (LPIPS_BACKBONES["vgg"],),
    "niqe": (NIQE_FILE,),
    "clip_iqa": (CLIP_FILE,),
    "musiq": (MUSIQ_FILE,),
}
_SMALL = 64  # pixels; what a network fails at below is for want of pixels

_COLUMNS: dict[str, dict[str, MetricInfo]] = {
    "psnr": {"psnr": MetricInfo("PSNR", "dB", "higher")},
    "ssim": {"ssim": MetricInfo("SSIM", "", "higher")},
    "lpips_squeeze": {"lpips_squeeze": MetricInfo("LPIPS-squeeze", "", "lower")},
    "lpips_alex": {"lpips_alex": MetricInfo("LPIPS-alex", "", "lower")},
    "lpips_vgg": {"lpips_vgg": MetricInfo("LPIPS-vgg", "", "lower")},
    "spectral": {"spectral": MetricInfo("Spectral distance (L_visual)", "", "lower")},
    "consistency": {
        "consistency_mean": MetricInfo("|D(SR) - LR|, mean", "counts", "lower"),
        "consistency_p95": MetricInfo("|D(SR) - LR|, 95th percentile", "counts", "lower"),
        "consistency_max": MetricInfo("|D(SR) - LR|, largest", "counts", "lower"),
    },
    "error": {
        "error_bias": MetricInfo("Bias", "counts", "zero"),
        "error_p95": MetricInfo("|SR - HR|, 95th percentile", "counts", "lower"),
    },
    "kelvin": {
        "kelvin_bias": MetricInfo("Bias", "K", "zero"),
        "kelvin_p95": MetricInfo("|SR - HR|, 95th percentile", "K", "lower"),
    },
    "niqe": {"niqe": MetricInfo("NIQE", "", "lower")},
    "clip_iqa": {"clip_iqa": MetricInfo("CLIP-IQA", "", "higher")},
    "musiq": {"musiq": MetricInfo("MUSIQ", "", "higher")},
    "flicker": {
        "flicker": MetricInfo("Flicker over that of bicubic", "", "lower"),
        "flicker_counts": MetricInfo("Flicker", "counts", "lower"),
    },
}
METRICS: dict[Mode, tuple[str, ...]] = {
    "reference": (
        "psnr", "ssim", "lpips_squeeze", "lpips_alex", "lpips_vgg", "spectral", "consistency",
        "error", "kelvin", "niqe", "clip_iqa", "musiq",
    ),
    "camera": ("niqe", "clip_iqa", "musiq", "flicker", "consistency"),
}  # fmt: skip
"""What can be asked for, and what is measured unless one asks for less."""


@dataclass(frozen=True)
class Scene:
    """What a result is compared with.

    Attributes:
        lr: ``(h, w)`` counts, what the model saw.
        hr: ``(4h, 4w)`` counts, what it should have made of it; ``None`` in camera mode.
    """

    lr: np.ndarray
    hr: np.ndarray | None

    @property
    def flat(self) -> bool:
        """Whether all pixels are equal, as behind a camera's shutter: there is no picture."""
        seen = self.lr if self.hr is None else self.hr
        return bool(seen.min() == seen.max())

    def shown_range(self) -> tuple[float, float]:
        """Black level and span of the picture that the frame is judged as.

        8 bit: 0..255. Otherwise the smallest to the largest count of ``hr``, or without it the
        robust range of ``lr``, which dead pixels and small hot objects do not set.
        """
        if self.hr is not None or self.lr.dtype == np.uint8:
            return full_range(self.lr if self.hr is None else self.hr)
        shown = robust_range(self.lr)
        return shown.lo, shown.span


Measure = Callable[[np.ndarray, Scene], Mapping[str, float]]
"""A result ``(4h, 4w)`` and its scene -> the columns of a metric."""


class Judge:
    """The chosen metrics, ready to measure single frames.

    Attributes:
        metrics: what is measured, e.g. ``("psnr", "consistency", "flicker")``.
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

        Args:
            mode: with reference, or of a camera's own frames.
            metrics: some of :data:`METRICS`; ``None``: all that can be measured here.
            weights: folder of the metrics' networks, under the names that their authors gave.
            device: where networks run.
            radiometry: of the counts; the error in kelvin needs it.

        Raises:
            ValueError: a metric that is unknown in this mode, or that was asked for and cannot
                be measured.
        """
        if unknown := sorted(set(metrics or ()) - set(METRICS[mode])):
            raise ValueError(
                f"no metric {', '.join(unknown)} in {mode} mode; there are "
                f"{', '.join(METRICS[mode])}"
            )
        self.not_run: dict[str, str] = {}
        self.files: dict[str, str] = {}
        self._measures: dict[str, Measure] = {}
        kept = []
        for name in METRICS[mode] if metrics is None else dict.fromkeys(metrics):
            try:
                files = _files(weights, _FILES.get(name, ()))
                measure = _load_measure(name, files, device, radiometry)
                self.files |= {path.name: sha256_file(path) for path in files}
            except (ImportError, OSError, RuntimeError, ValueError, KeyError) as error:
                reason = (str(error) or type(error).__name__).splitlines()[0]
                if metrics is not None:
                    raise ValueError(f"{name} cannot be measured: {reason}") from error
                self.not_run[name] = reason
                continue
            kept.append(name)
            if measure is not None:
                self._measures[name] = measure
        self.metrics = tuple(kept)
        self.columns = {key: info for name in kept for key, info in _COLUMNS[name].items()}

    def __call__(self, sr: np.ndarray, scene: Scene) -> dict[str, float]:
        """Measure one result; NaN where a metric has no value.

        Those are a flat scene's picture metrics (it would be perfect in each), and what a frame is
        too small for. Flicker, which needs the frame before, is measured by
        :class:`~difiisr_training.evaluation.flicker.FlickerMeter`.

        Raises:
            ValueError: the result is not four times as large as what the model saw.
        """
        due = tuple(SCALE * side for side in scene.lr.shape)
        for image in (sr, scene.hr):
            if image is not None and image.shape != due:
                raise ValueError(
                    f"of {scene.lr.shape} pixels, images of {due} are compared, got {image.shape}"
                )
        values: dict[str, float] = {}
        for name, measure in self._measures.items():
            values |= dict.fromkeys(_COLUMNS[name], float("nan"))
            try:
                values |= measure(sr, scene)
            except ValueError:  # too small or too flat for this metric
                continue
            except RuntimeError as error:
                if min(due) >= _SMALL or isinstance(error, torch.cuda.OutOfMemoryError):
                    raise
        return values


def _load_measure(
    name: str, files: Sequence[Path], device: str, radiometry: Radiometry | None
) -> Measure | None:
    """The measuring function of a metric, of its :data:`_FILES`; ``None`` for flicker."""
    if name == "flicker":
        return None
    if name == "psnr":
        return _compared(name, psnr)
    if name == "ssim":
        return _compared(name, ssim)
    if name == "spectral":
        return _compared(name, spectral_distance)
    if name == "consistency":
        return _measure_consistency
    if name == "error":
        return lambda sr, scene: _errors("error", _difference(sr, scene))
    if name == "kelvin":
        if radiometry is None:
            raise ValueError("no radiometry: give --radiometry 'kelvin=a*counts+b'")
        gain = radiometry.gain
        return lambda sr, scene: _errors("kelvin", gain * _difference(sr, scene))
    if name == "lpips_squeeze":
        return _compared(name, LpipsSqueeze(*files, device))
    if name == "lpips_alex":
        return _compared(name, LpipsPackage("alex", *files, device))
    if name == "lpips_vgg":
        return _compared(name, LpipsPackage("vgg", *files, device))
    if name == "niqe":
        return _rated(name, Niqe(*files))
    if name == "clip_iqa":
        return _rated(name, load_clip_iqa(*files, device))
    return _rated(name, load_musiq(*files, device))


def _files(weights: Path | None, names: Sequence[str]) -> list[Path]:
    if not names:
        return []
    if weights is None:
        raise FileNotFoundError(f"needs {' and '.join(names)}: give their folder with --weights")
    if missing := [name for name in names if not (weights / name).is_file()]:
        raise FileNotFoundError(f"no {' and no '.join(missing)} in {weights}")
    return [weights / name for name in names]


def _compared(name: str, metric: Callable[[np.ndarray, np.ndarray, float], float]) -> Measure:
    def measure(sr: np.ndarray, scene: Scene) -> dict[str, float]:
        if scene.flat:
            return {name: float("nan")}
        lo, span = scene.shown_range()
        return {name: metric(sr - np.float64(lo), scene.hr - np.float64(lo), span)}

    return measure


def _rated(name: str, metric: Callable[[np.ndarray, float], float]) -> Measure:
    def measure(sr: np.ndarray, scene: Scene) -> dict[str, float]:
        if scene.flat:
            return {name: float("nan")}
        lo, span = scene.shown_range()
        picture = sr - np.float64(lo)
        if scene.hr is None:
            picture = picture.clip(0, span)
        return {name: metric(picture, span)}

    return measure


def _measure_consistency(sr: np.ndarray, scene: Scene) -> dict[str, float]:
    found = consistency(sr, scene.lr)
    return {
        "consistency_mean": float(found.mean()),
        "consistency_p95": float(np.quantile(found, 0.95)),
        "consistency_max": float(found.max()),
    }


def _difference(sr: np.ndarray, scene: Scene) -> np.ndarray:
    return sr.astype(np.float64) - scene.hr


def _errors(name: str, difference: np.ndarray) -> dict[str, float]:
    return {
        f"{name}_bias": float(difference.mean()),
        f"{name}_p95": float(np.quantile(np.abs(difference), 0.95)),
    }
