"""Residual-shifting diffusion: schedule, forward process, prior, posterior and step back.

Free functions on tensors of any shape; t is the paper's (1..T). Noise is always an argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

NoiseSource = Callable[[int], Tensor]
"""``noise(k)`` -> the k-th standard normal draw of a sampling run; k = 0 is x_T's."""


@dataclass(frozen=True)
class Schedule:
    """A shifting sequence eta_1 < ... < eta_T and the noise scale kappa.

    Attributes:
        eta: float64 ``(T,)``, the paper's eta_t for t = 1..T; index 0 holds eta_1.
        kappa: noise scale; q(x_t | x_0, y) has variance kappa^2 eta_t.
        timesteps: int64 ``(T,)``, what the network is told: the paper's t minus one. A respaced
            schedule keeps the numbers of the schedule that the network was trained with.
        respacing: which level :func:`respace` always keeps: "last", t = T, or "first", t = 1, as
            the authors' code does.
    """

    eta: np.ndarray
    kappa: float
    timesteps: np.ndarray
    respacing: Literal["last", "first"] = "last"

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
    respacing: Literal["last", "first"] = "last",
) -> Schedule:
    """sqrt(eta_t) = sqrt(eta_1) b^{u_t} with u_t = ((t-1)/(T-1))^p (T-1).

    b = (sqrt(eta_T) / sqrt(eta_1))^{1/(T-1)}.

    The first level is sqrt(eta_1) = min(min_noise_level / kappa, min_noise_level, sqrt(0.001)).

    Raises:
        ValueError: fewer than two steps, levels that do not increase, or no such respacing.
    """
    if respacing not in ("last", "first"):
        raise ValueError(f"respacing is last or first, got {respacing!r}")
    if steps < 2:
        raise ValueError(f"a schedule needs at least 2 steps, got {steps}; respace it for fewer")
    sqrt_eta_1 = min(min_noise_level / kappa, min_noise_level, math.sqrt(0.001))
    if not sqrt_eta_1 < sqrt_eta_end < 1.0:
        raise ValueError(
            f"need sqrt(eta_1) < sqrt(eta_T) < 1, got {sqrt_eta_1:g} and {sqrt_eta_end:g}"
        )
    b = math.exp(math.log(sqrt_eta_end / sqrt_eta_1) / (steps - 1))
    u = np.linspace(0.0, 1.0, steps) ** power * (steps - 1)
    return Schedule((sqrt_eta_1 * b**u) ** 2, kappa, np.arange(steps, dtype=np.int64), respacing)


def respace(schedule: Schedule, steps: int) -> Schedule:
    """Keep ``steps`` of the T levels, evenly spread and always with the last (t = T).

    One step keeps t = T alone: the published one-step sampler. With respacing "first", t = 1 is
    always kept, and t = T by all T steps alone.

    Raises:
        ValueError: ``steps`` outside 1..T.
    """
    if not 1 <= steps <= schedule.steps:
        raise ValueError(f"steps must be 1..{schedule.steps} for this schedule, got {steps}")
    kept = np.linspace(schedule.steps - 1, 0, steps).round().astype(np.int64)[::-1]
    if schedule.respacing == "first":
        kept = (schedule.steps / steps * np.arange(steps)).astype(np.int64)
    return replace(schedule, eta=schedule.eta[kept], timesteps=schedule.timesteps[kept])


def q_sample(x0: Tensor, y: Tensor, eta: Tensor | float, eps: Tensor, kappa: float) -> Tensor:
    """x_t ~ q(x_t | x_0, y) = N(x_0 + eta_t (y - x_0), kappa^2 eta_t I); eta_t broadcasts."""
    return x0 + eta * (y - x0) + kappa * eta**0.5 * eps


def prior_sample(y: Tensor, eps: Tensor, schedule: Schedule) -> Tensor:
    """x_T = y + kappa sqrt(eta_T) eps."""
    return y + schedule.kappa * math.sqrt(schedule.eta_at(schedule.steps)) * eps


def posterior(x_t: Tensor, x0: Tensor, t: int, schedule: Schedule) -> tuple[Tensor, float]:
    """Mean and variance of q(x_{t-1} | x_t, x_0), with alpha_t = eta_t - eta_{t-1}.

    mean = (eta_{t-1}/eta_t) x_t + (alpha_t/eta_t) x_0,
    variance = kappa^2 (eta_{t-1}/eta_t) alpha_t.
    """
    eta, eta_previous = schedule.eta_at(t), schedule.eta_at(t - 1)
    alpha = eta - eta_previous
    mean = (eta_previous / eta) * x_t + (alpha / eta) * x0
    return mean, schedule.kappa**2 * (eta_previous / eta) * alpha


def deterministic_step(x_t: Tensor, x0: Tensor, y: Tensor, t: int, schedule: Schedule) -> Tensor:
    """x_{t-1} on the deterministic path (SinSR): the noise found in x_t is kept, not drawn anew.

    x_{t-1} = x_0 + eta_{t-1} (y - x_0) + kappa sqrt(eta_{t-1}) eps with eps solved from x_t.
    """
    eta, eta_previous = schedule.eta_at(t), schedule.eta_at(t - 1)
    noise = x_t - x0 - eta * (y - x0)
    return x0 + eta_previous * (y - x0) + math.sqrt(eta_previous / eta) * noise


def latent_input_scale(t: int, schedule: Schedule) -> float:
    """1 / sqrt(kappa^2 eta_t + 1): makes x_t unit variance for data of unit variance."""
    return 1.0 / math.sqrt(schedule.kappa**2 * schedule.eta_at(t) + 1.0)


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal embedding of a diffusion step (Vaswani et al. 2017, cosines before sines).

    Args:
        t: (B,) steps counted from 0, any real or integer dtype.
        dim: even number of features.
        max_period: period of the slowest wave over 2 pi.

    Returns:
        (B, dim) float32: cos(t w_i) for the dim/2 frequencies, then sin(t w_i).

    Raises:
        ValueError: dim is odd.
    """
    if dim % 2:
        raise ValueError(f"time embedding needs an even number of features, got {dim}")
    half = dim // 2
    index = torch.arange(half, dtype=torch.float32, device=t.device)
    phase = t.float()[:, None] * torch.exp(-math.log(max_period) * index / half)
    return torch.cat((phase.cos(), phase.sin()), dim=-1)


def ancestral_step(x_t: Tensor, x0: Tensor, t: int, schedule: Schedule, noise: Tensor) -> Tensor:
    """x_{t-1}, drawn from the posterior for t > 1; at t = 1 the posterior is x_0 itself."""
    mean, variance = posterior(x_t, x0, t, schedule)
    # sqrt(variance), rounded as the reference rounds it: exp of half the float32 logarithm.
    half = 0.5 * torch.tensor(math.log(variance), dtype=torch.float32)
    return mean + float(half.exp()) * noise


def draw_noise(shape: tuple[int, ...], seed: int, k: int) -> Tensor:
    """The k-th standard normal field of a stream: the same seed gives the same field, anywhere.

    Drawn on the CPU in float32, so that all devices agree. A seed of -1 means no noise: zeros.
    """
    if seed < 0:
        return torch.zeros(shape)
    generator = torch.Generator().manual_seed(stream_seed(seed, k))
    return torch.randn(shape, generator=generator)


def stream_seed(seed: int, k: int) -> int:
    """The generator's seed for the k-th draw of a stream: 32 bits, all that torch's on a CPU read.

    The factor is the golden ratio of Knuth's multiplicative hashing: streams lie far apart.
    """
    return (seed * 0x9E3779B1 + k) & 0xFFFFFFFF
