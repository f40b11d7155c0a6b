"""How far each pixel of a result may be off: a standard deviation, calibrated on images.

Where the network draws much detail it errs much: with v the variance of a result within 4x4 pixels,
averaged over 3x3 such blocks, and sigma the noise of the stream, both in network units, the score
of a block is

    v + sigma^2 / 2.

A table turns it into a deviation. It was made so that an interval of 1.645 deviations either side
holds 90 % of the errors at every score (conformal calibration by bins of the score; Romano et al.,
NeurIPS 2019; Angelopoulos & Bates, 2021). It holds for scenes like those that it was made from:
where the true scene has detail that the camera averages away, errors are larger than their score.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from difiisr_models.frame_model import BICUBIC
from difiisr_models.radiometry import CountRange
from difiisr_models.resample import SCALE
from difiisr_models.weights import WeightsError, find_weights_folder, read_manifest

COVERED = 0.9
DEVIATIONS = 1.645
"""Either side of a normal variable, that hold :data:`COVERED` of it."""

_BINS = 16
_NOISE = 0.5
_LEAST = 1e-9  # score


@dataclass(frozen=True)
class DeviationTable:
    """Deviations by score, network units, both ascending; between two, logarithms are linear."""

    scores: tuple[float, ...]
    deviations: tuple[float, ...]

    def __call__(self, score: np.ndarray) -> np.ndarray:
        """Deviations of scores of any shape; beyond the ends those at the ends."""
        logs = np.log(np.array(self.scores)), np.log(np.array(self.deviations))
        return np.exp(np.interp(np.log(score + _LEAST), *logs)).astype(np.float32)


def table_of_model(name: str) -> DeviationTable:
    """The table in the manifest of a model.

    Raises:
        FileNotFoundError, WeightsError: there is no such model.
        ValueError: it has no table, or a damaged one.
    """
    manifest = {} if name in BICUBIC else read_manifest(find_weights_folder(name))
    found = manifest.get("uncertainty")
    if found is None:
        raise ValueError(f"uncertainty: {name} has no calibrated deviations; set it to false")
    try:
        scores, deviations = (np.array(found[key], float) for key in ("scores", "deviations"))
        ascending = (np.diff(scores) > 0).all() and (np.diff(deviations) >= 0).all()
        if not (len(scores) == len(deviations) and scores[0] > 0 < deviations[0] and ascending):
            raise ValueError("positive numbers in ascending order are needed, as many of both")
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{name}: the uncertainty in its manifest is damaged: {error}") from None
    return DeviationTable(tuple(scores), tuple(deviations))


def standard_deviations(
    result: np.ndarray, shown: CountRange, noise: float, table: DeviationTable
) -> np.ndarray:
    """Standard deviation of the error of each pixel.

    Args:
        result: ``(4H, 4W)`` or ``(4H, 4W, C)`` super-resolved, of which the first channel counts.
        shown: the range that it was made with.
        noise: standard deviation of the noise of the stream, counts.
        table: of the model.

    Returns:
        ``(4H, 4W)`` float32, in the unit of ``result``.
    """
    deviation = table(scores(result, shown, noise)) * np.float32(shown.half_span)
    smooth = torch.from_numpy(deviation)[None, None]
    return F.interpolate(smooth, scale_factor=SCALE, mode="bilinear")[0, 0].numpy()


def scores(result: np.ndarray, shown: CountRange, noise: float) -> np.ndarray:
    """The score of each block of 4x4 pixels, ``(H, W)``; arguments as above."""
    plane = result if result.ndim == 2 else result[..., 0]
    values = torch.from_numpy(shown.normalise(plane))[None]
    mean, square = (F.avg_pool2d(x, SCALE) for x in (values, values.square()))
    variance = (square - mean.square()).clamp_(min=0)
    around = F.avg_pool2d(F.pad(variance, (1,) * 4, mode="replicate"), 3, 1)[0]
    return around.numpy() + np.float32(_NOISE * (noise * shown.gain) ** 2)


def fitted_table(score: np.ndarray, error: np.ndarray) -> DeviationTable:
    """The table for which 90 % of the errors lie within 1.645 deviations, at every score.

    Args:
        score: ``(n,)`` of blocks.
        error: ``(n, k)`` of the pixels in them, network units.
    """
    ends = np.quantile(score, np.linspace(0, 1, _BINS + 1)[1:-1])
    bins = np.searchsorted(ends, score)
    at = [np.exp(np.median(np.log(score[bins == n] + _LEAST))) for n in range(_BINS)]
    most = [np.quantile(np.abs(error[bins == n]), COVERED) for n in range(_BINS)]
    deviations = np.maximum.accumulate(most) / DEVIATIONS
    return DeviationTable(tuple(at), tuple(deviations))
