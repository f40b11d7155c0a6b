"""Residual-shifting diffusion: forward process, prior, posterior and the sampling loop.

Free functions on tensors of any shape; t is the paper's (1..T). Noise is always an argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from difiisr_models.schedule import Schedule

Denoiser = Callable[[Tensor, int], Tensor]
"""``denoiser(x_t, t)`` -> x0 prediction; ``t`` counts 1..T of the schedule in use."""

NoiseSource = Callable[[int], Tensor]
"""``noise(k)`` -> the k-th standard normal draw of a sampling run; k = 0 is x_T's."""


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


def sample(denoiser: Denoiser, y: Tensor, schedule: Schedule, noise: NoiseSource) -> Tensor:
    """Ancestral sampling from x_T to x_0; with a one-step schedule a single network call.

    Args:
        denoiser: predicts x_0 from (x_t, t).
        y: upsampled (or encoded) low-resolution image, any shape.
        schedule: as respaced for this run.
        noise: draws; called with k = 0 for x_T, then once per step down to the last.

    Returns:
        x_0, shaped like ``y``.
    """
    x = prior_sample(y, noise(0), schedule)
    for k, t in enumerate(range(schedule.steps, 0, -1), start=1):
        x0 = denoiser(x, t)
        if t > 1:  # the last posterior is x_0 itself
            mean, variance = posterior(x, x0, t, schedule)
            x = mean + _deviation(variance) * noise(k)
    return x0


def _deviation(variance: float) -> float:
    """sqrt(variance), rounded as the reference rounds it: exp of half the float32 logarithm."""
    return float(torch.exp(0.5 * torch.tensor(math.log(variance), dtype=torch.float32)))


def draw_noise(shape: tuple[int, ...], seed: int | None, k: int) -> Tensor:
    """The k-th standard normal field of a stream: the same seed gives the same field, anywhere.

    Drawn on the CPU in float32, so that all devices agree. ``seed=None`` means no noise: zeros.
    """
    if seed is None:
        return torch.zeros(shape)
    generator = torch.Generator().manual_seed(stream_seed(seed, k))
    return torch.randn(shape, generator=generator)


def stream_seed(seed: int, k: int) -> int:
    """The generator's seed for the k-th draw of a stream: 32 bits, all that torch's on a CPU read.

    The factor is the golden ratio of Knuth's multiplicative hashing: streams lie far apart.
    """
    return (seed * 0x9E3779B1 + k) & 0xFFFFFFFF
