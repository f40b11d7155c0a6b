"""The published noise schedule, value by value, and sampler algebra against closed forms."""

import math

import numpy as np
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
PUBLISHED_SQRT_ETA = [
    0.02, 0.11716508, 0.17630456, 0.23362892, 0.29157413, 0.35100928, 0.41235614, 0.47585773,
    0.54167168, 0.60990993, 0.68065802, 0.75398526, 0.82995066, 0.90860639, 0.99,
]  # fmt: skip


def test_the_fifteen_published_levels():
    np.testing.assert_allclose(np.sqrt(exponential_schedule().eta), PUBLISHED_SQRT_ETA, atol=5e-9)


@pytest.mark.parametrize("steps", range(1, 16))
def test_respacing_keeps_the_heaviest_step_and_the_order(steps):
    full = exponential_schedule()
    kept = respace(full, steps)
    assert kept.steps == steps
    assert kept.timesteps[-1] == 14
    assert (np.diff(kept.timesteps) > 0).all()
    np.testing.assert_array_equal(kept.eta, full.eta[kept.timesteps])


@pytest.mark.parametrize(
    ("steps", "kept"), [(1, [0]), (2, [0, 7]), (4, [0, 3, 7, 11]), (15, list(range(15)))]
)
def test_the_authors_respacing_keeps_the_first_step(steps, kept):
    full = exponential_schedule(respacing="first")
    assert respace(full, steps).timesteps.tolist() == kept
    np.testing.assert_array_equal(respace(full, steps).eta, full.eta[kept])
    with pytest.raises(ValueError, match="last or first, got 'middle'"):
        exponential_schedule(respacing="middle")


@pytest.mark.parametrize("steps", [0, 16, -1])
def test_respacing_outside_the_schedule_names_both_numbers(steps):
    with pytest.raises(ValueError, match=rf"1\.\.15.*{steps}"):
        respace(exponential_schedule(), steps)


@pytest.mark.parametrize(
    ("wrong", "text"), [({"steps": 1}, "respace"), ({"sqrt_eta_end": 0.01}, "sqrt")]
)
def test_a_schedule_of_one_step_or_of_falling_levels_is_refused(wrong, text):
    with pytest.raises(ValueError, match=text):
        exponential_schedule(**wrong)


def normal(seed: int, shape: tuple[int, ...] = (2, 3, 4, 4)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_forward_process_shifts_the_residual_by_eta_and_adds_kappa_sqrt_eta():
    x0, y, eps = normal(0), normal(1), normal(2)
    x_t = q_sample(x0, y, 0.25, eps, kappa=2.0)
    torch.testing.assert_close(x_t, 0.75 * x0 + 0.25 * y + 1.0 * eps)


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
