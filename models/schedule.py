"""The residual-shifting noise schedule (ResShift; every number in ``Schedule``'s docstring)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Schedule:
    """A shifting sequence eta_1 < ... < eta_T and the noise scale kappa.

    Attributes:
        eta: float64 ``(T,)``, the paper's eta_t for t = 1..T; index 0 holds eta_1.
        kappa: noise scale; q(x_t | x_0, y) has variance kappa^2 eta_t.
        timesteps: int64 ``(T,)``, what the network is told: the paper's t minus one. A respaced
            schedule keeps the numbers of the schedule that the network was trained with.
    """

    eta: np.ndarray
    kappa: float
    timesteps: np.ndarray

    @property
    def steps(self) -> int:
        """T, the number of sampling steps."""
        return len(self.eta)

    def eta_at(self, t: int) -> float:
        """eta_t for the paper's t in 0..T, with eta_0 = 0."""
        return 0.0 if t == 0 else float(self.eta[t - 1])


def exponential_schedule(
    steps: int = 15,
    kappa: float = 2.0,
    power: float = 0.3,
    sqrt_eta_end: float = 0.99,
    min_noise_level: float = 0.04,
) -> Schedule:
    """sqrt(eta_t) = sqrt(eta_1) b^{u_t} with u_t = ((t-1)/(T-1))^p (T-1).

    b = (sqrt(eta_T) / sqrt(eta_1))^{1/(T-1)}.

    The first level is sqrt(eta_1) = min(min_noise_level / kappa, min_noise_level, sqrt(0.001)).

    Raises:
        ValueError: fewer than two steps, or levels that do not increase.
    """
    if steps < 2:
        raise ValueError(f"a schedule needs at least 2 steps, got {steps}; respace it for fewer")
    sqrt_eta_1 = min(min_noise_level / kappa, min_noise_level, math.sqrt(0.001))
    if not sqrt_eta_1 < sqrt_eta_end < 1.0:
        raise ValueError(
            f"need sqrt(eta_1) < sqrt(eta_T) < 1, got {sqrt_eta_1:g} and {sqrt_eta_end:g}"
        )
    b = math.exp(math.log(sqrt_eta_end / sqrt_eta_1) / (steps - 1))
    u = np.linspace(0.0, 1.0, steps) ** power * (steps - 1)
    return Schedule(
        eta=(sqrt_eta_1 * b**u) ** 2, kappa=kappa, timesteps=np.arange(steps, dtype=np.int64)
    )


def respace(schedule: Schedule, steps: int) -> Schedule:
    """Keep ``steps`` of the T levels, evenly spread and always with the last (t = T).

    One step keeps t = T alone: the published one-step sampler.

    Raises:
        ValueError: ``steps`` outside 1..T.
    """
    if not 1 <= steps <= schedule.steps:
        raise ValueError(f"steps must be 1..{schedule.steps} for this schedule, got {steps}")
    kept = np.linspace(schedule.steps - 1, 0, steps).round().astype(np.int64)[::-1]
    return Schedule(
        eta=schedule.eta[kept], kappa=schedule.kappa, timesteps=schedule.timesteps[kept]
    )
