"""Sampler algebra against closed forms."""

import math

import pytest
import torch

from difiisr_models.diffusion import (
    ancestral_step,
    draw_noise,
    exponential_schedule,
    latent_input_scale,
    posterior,
    prior_sample,
    q_sample,
    respace,
)
from difiisr_models.frame_model import CompactModel

SCHEDULE = exponential_schedule()


def normal(seed: int, shape: tuple[int, ...] = (2, 3, 4, 4)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_forward_process_shifts_the_residual_by_eta_and_adds_kappa_sqrt_eta():
    x0, y, eps = normal(0), normal(1), normal(2)
    x_t = q_sample(x0, y, 0.25, eps, kappa=2.0)
    torch.testing.assert_close(x_t, 0.75 * x0 + 0.25 * y + 1.0 * eps)


def test_prior_is_the_forward_process_with_the_residual_fully_shifted():
    y, eps = normal(1), normal(2)
    torch.testing.assert_close(prior_sample(y, eps, SCHEDULE), y + 2.0 * 0.99 * eps)


@pytest.mark.parametrize("t", [2, 7, 15])
def test_posterior_is_the_product_of_the_two_gaussians(t):
    """q(x_{t-1} | x_t, x_0) by Bayes' rule from q(x_t | x_{t-1}) and q(x_{t-1} | x_0)."""
    x0, y, eps, kappa = normal(0), normal(1), normal(2), 2.0
    eta, previous = SCHEDULE.eta_at(t), SCHEDULE.eta_at(t - 1)
    x_t = q_sample(x0, y, eta, eps, kappa)
    alpha = eta - previous
    prior_mean, prior_variance = x0 + previous * (y - x0), kappa**2 * previous
    seen_mean, seen_variance = x_t - alpha * (y - x0), kappa**2 * alpha
    variance = 1 / (1 / prior_variance + 1 / seen_variance)
    mean = variance * (prior_mean / prior_variance + seen_mean / seen_variance)
    got_mean, got_variance = posterior(x_t, x0, t, SCHEDULE)
    torch.testing.assert_close(got_mean, mean)
    assert got_variance == pytest.approx(variance)


def test_the_step_back_keeps_the_posterior_spread():
    """With x0 = y = 0 the chain is linear in the noise: its variance must be the forward one's."""
    zero = torch.zeros(1, 1, 300, 300, dtype=torch.float64)
    two = respace(SCHEDULE, 2)
    x_2 = prior_sample(zero, normal(10, zero.shape), two)
    x_1 = ancestral_step(x_2, zero, 2, two, normal(11, zero.shape))
    for x_t, t in ((x_2, 2), (x_1, 1)):
        assert x_t.std().item() == pytest.approx(2 * math.sqrt(two.eta_at(t)), rel=0.02)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_sampler_asks_the_network_once_a_step_and_noise_before_each(tiny_network, steps):
    asked, seen = [], []

    def noise(k):
        asked.append(k)
        return normal(10 + k, (1, 16, 4, 4)).float()

    def runner(x_t, y, lr, t, fidelity):
        seen.append((int(t), x_t))
        return 3 * x_t

    model, lr = CompactModel(tiny_network, SCHEDULE, runner), torch.zeros(1, 1, 4, 4)
    result = model.super_resolve(lr, noise, steps, 1.0)
    assert asked == list(range(steps))
    assert [t for t, _ in seen] == list(reversed(respace(SCHEDULE, steps).timesteps))
    prior = 2.0 * 0.99 * normal(10, (1, 16, 4, 4)).float()
    torch.testing.assert_close(seen[0][1], latent_input_scale(15, SCHEDULE) * prior)
    torch.testing.assert_close(result, 3 * seen[-1][1])


def test_noise_is_a_function_of_seed_and_number():
    shape = (1, 2, 8, 8)
    assert torch.equal(draw_noise(shape, 3, 0), draw_noise(shape, 3, 0))
    assert not torch.equal(draw_noise(shape, 3, 0), draw_noise(shape, 3, 1))
    assert not torch.equal(draw_noise(shape, 3, 0), draw_noise(shape, 4, 0))
    assert not torch.equal(draw_noise(shape, 0, 0), draw_noise(shape, 1 << 24, 0))
    assert draw_noise(shape, -1, 0).abs().max() == 0
