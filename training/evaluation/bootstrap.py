"""How sure a mean over frames is: percentile bootstrap (Efron 1979)."""

from __future__ import annotations

import numpy as np

RESAMPLES, SEED, LEVEL = 2000, 0, 0.95
_BLOCK = 100  # resamples at a time; bounds the memory


def mean_and_interval(values: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Mean over frames and its 95 % interval.

    Frames are drawn with replacement, 2000 times, with a fixed seed: frames of one film resemble
    each other, so that the interval holds for these scenes and is too narrow for others.

    Args:
        values: ``(N,)`` one number per frame; NaN = no value, left out.

    Returns:
        mean and ``(low, high)``; all NaN without any value, and the mean alone, twice, for one
        frame. An infinite value makes the mean infinite and the interval NaN.
    """
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return float("nan"), (float("nan"), float("nan"))
    mean = float(values.mean())
    if not np.isfinite(values).all():
        return mean, (float("nan"), float("nan"))
    rng = np.random.default_rng(SEED)
    count = len(values)
    means = [
        values[rng.integers(0, count, (_BLOCK, count))].mean(axis=1)
        for _ in range(RESAMPLES // _BLOCK)
    ]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return mean, (float(low), float(high))
