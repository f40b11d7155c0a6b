"""The loss that tells a texture of the 4x4 blocks from one without a grid."""

import pytest
import torch

from difiisr_models.resample import pack
from difiisr_training.guidance.pattern_loss import pattern_loss

SIDE = 128


def noise(seed=0):
    return 0.1 * torch.randn(3, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def tiled(amplitude):
    """One and the same 4x4 pattern everywhere."""
    pattern = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    pattern = amplitude * (pattern - pattern.mean()) / pattern.std(unbiased=False)
    return pattern.repeat(1, 1, SIDE // 4, SIDE // 4)


def test_a_pattern_costs_its_energy():
    value = pattern_loss(noise() + tiled(0.1), noise())
    torch.testing.assert_close(value, torch.full((3,), 0.01))


def test_noise_of_the_same_energy_costs_next_to_nothing():
    value = pattern_loss(noise(), torch.zeros_like(noise()))
    assert value.shape == (3,)
    assert value.max() < 0.01 / 50  # a mean of 64 blocks


def test_a_level_or_a_smooth_change_of_it_is_no_pattern():
    ramp = torch.linspace(0, 1, SIDE).expand(1, 1, SIDE, SIDE)
    assert pattern_loss(noise() + 0.5, noise()).max() < 1e-10
    assert pattern_loss(ramp, torch.zeros_like(ramp)).max() < 1e-4


def test_images_smaller_than_a_neighbourhood_are_compared_whole():
    small = tiled(0.1)[..., :12, :8]
    value = pattern_loss(small, torch.zeros_like(small))
    assert value.item() == pytest.approx(pack(small).mean((2, 3)).var(unbiased=False).item())


def test_gradient_agrees_with_finite_differences():
    rng = torch.Generator().manual_seed(6)
    sr, hr = torch.rand(2, 1, 1, 8, 12, generator=rng, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: pattern_loss(x, hr), sr.requires_grad_())
