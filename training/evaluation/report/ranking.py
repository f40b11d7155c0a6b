"""Which model is best in a metric, which is second, and which cannot be told from the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from difiisr_training.evaluation.bootstrap import mean_and_interval

Better = Literal["higher", "lower", "zero"]


@dataclass(frozen=True)
class Mark:
    """A model's place: 1 = best, 2 = second, 0 = other; ``tied``: not told from the best."""

    place: int = 0
    tied: bool = False


def goodness(value: float, better: Better) -> float:
    """A number that is the larger the better the value is."""
    if better == "higher":
        return value
    return -value if better == "lower" else -abs(value)


def places(values: Mapping[str, float | None], better: Better) -> dict[str, int]:
    """1 for the best, 2 for the second, 0 for all others; equal values share a place.

    Values that are ``None`` or NaN have no place. Fewer than two values, or all of them equal,
    give none: there is nothing to mark.
    """
    scores = {
        name: goodness(value, better)
        for name, value in values.items()
        if value is not None and not math.isnan(value)
    }
    order = sorted(set(scores.values()), reverse=True)[:2]
    if len(order) < 2:
        return dict.fromkeys(values, 0)
    return {
        name: order.index(scores[name]) + 1 if scores.get(name) in order else 0 for name in values
    }


def tied(own: Sequence[float], best: Sequence[float]) -> bool:
    """Whether 0 lies in the 95 % interval of the mean difference, frame by frame.

    Args:
        own: values of a model, one per frame; NaN = no value.
        best: values of the best model on the same frames.

    Returns:
        ``False`` where fewer than two frames have both values.
    """
    with np.errstate(invalid="ignore"):  # two infinite values have no difference
        difference = np.asarray(own, np.float64) - np.asarray(best, np.float64)
    difference = difference[np.isfinite(difference)]
    if len(difference) < 2:
        return False
    _, (low, high) = mean_and_interval(difference)
    return low <= 0 <= high


def marks(
    means: Mapping[str, float | None], frames: Mapping[str, Sequence[float]], better: Better
) -> dict[str, Mark]:
    """Marks of all models in one metric.

    Args:
        means: per model; ``None`` with an infinite frame counts as infinite (PSNR of equal images).
        frames: per model, one value per frame in a common order.
        better: which way is good.
    """
    means = {
        name: math.inf if mean is None and any(map(math.isinf, frames[name])) else mean
        for name, mean in means.items()
    }
    place = places(means, better)
    best = next((name for name, found in place.items() if found == 1), None)
    return {
        name: Mark(
            found,
            best is not None
            and found != 1
            and means[name] is not None
            and better != "zero"
            and tied(frames[name], frames[best]),
        )
        for name, found in place.items()
    }
