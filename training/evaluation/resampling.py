"""How sure a score of a whole set is: its images are drawn with replacement (Efron 1979)."""

from __future__ import annotations

import numpy as np

from difiisr_training.evaluation.bootstrap import LEVEL, SEED

DRAWS = 200


def draw_images(count: int) -> np.ndarray:
    """How often each of ``count`` images is in each of the resamples: ``(DRAWS, count)`` int64."""
    rng = np.random.default_rng(SEED)
    return rng.multinomial(count, np.full(count, 1 / count), DRAWS)


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where all is."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=-1) / known.sum(axis=-1)


def interval_of(scores: np.ndarray) -> list[float] | None:
    """95 % of the resamples' scores: ``[low, high]``; ``None`` where no resample has any."""
    scores = scores[~np.isnan(scores)]
    if not scores.size:
        return None
    return np.quantile(scores, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
