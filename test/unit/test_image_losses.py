"""The losses of L_g that need no network: of the spectrum, and of a pattern of the 4x4 blocks."""

import pytest
import torch
import torch.nn.functional as F

from difiisr_training.guidance import pattern_loss, spectral_loss


@pytest.fixture
def image():
    """A smooth random image in [-1, 1], ``(1, 1, 64, 64)`` float64."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 1, 72, 72, generator=rng, dtype=torch.float64)
    smooth = F.avg_pool2d(noise, 9, stride=1)
    return smooth / smooth.abs().max()


def blur(image):
    return F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="circular"), 3, stride=1)


def test_whole_pixel_translation_and_negation_change_nothing(image):
    degraded = blur(image)
    loss = spectral_loss(degraded, image)
    for moved in (image.roll((5, -9), dims=(-2, -1)), image.flip(-2, -1), -image):
        assert spectral_loss(moved, image).item() == pytest.approx(0, abs=1e-12)
        torch.testing.assert_close(spectral_loss(degraded, moved), loss)


def test_gain_is_forgotten_where_magnitudes_are_far_from_one_and_matters_little_between(image):
    doubled = {s: spectral_loss(2 * s * image, s * image).item() for s in (1e-4, 0.1, 1, 1e2, 1e4)}
    assert doubled[1e4] < 1e-8
    assert doubled[1e-4] < 1e-4
    assert doubled[1e4] < doubled[1e2] < doubled[1] < doubled[0.1]
    assert 1e-3 < doubled[0.1] < 0.1 * spectral_loss(blur(image), image).item()


def test_samples_do_not_mix_and_flat_images_have_a_finite_gradient(image):
    sr = torch.cat([blur(image), image, torch.zeros_like(image)]).requires_grad_()
    batch = spectral_loss(sr, image.expand_as(sr))
    torch.testing.assert_close(batch[:1], spectral_loss(blur(image), image))
    assert batch[1] == 0
    batch[2].backward()
    assert sr.grad.isfinite().all()
    assert not sr.grad[:2].any()


@pytest.mark.parametrize("loss", [spectral_loss, pattern_loss])
def test_gradient_agrees_with_finite_differences(loss):
    rng = torch.Generator().manual_seed(2)
    sr, hr = torch.randn(2, 1, 1, 4, 8, generator=rng, dtype=torch.float64)
    assert torch.autograd.gradcheck(loss, (sr.requires_grad_(), hr.requires_grad_()))


SIDE = 128


def noise(seed=0):
    return 0.1 * torch.randn(3, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def tiled(amplitude):
    """One and the same 4x4 pattern everywhere."""
    pattern = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    pattern = amplitude * (pattern - pattern.mean()) / pattern.std(unbiased=False)
    return pattern.repeat(1, 1, SIDE // 4, SIDE // 4)


def test_a_pattern_costs_its_energy_and_noise_a_level_or_a_slope_next_to_nothing():
    value = pattern_loss(noise() + tiled(0.1), noise())
    torch.testing.assert_close(value, torch.full((3,), 0.01))
    slope = torch.linspace(0, 1, SIDE).expand(3, 1, SIDE, SIDE)
    for innocent in (noise(seed=2), torch.full_like(slope, 0.5), slope):
        assert pattern_loss(noise() + innocent, noise()).max() < 0.01 / 25
    assert pattern_loss(tiled(0.1)[..., :12, :8], torch.zeros(1, 1, 12, 8)).item() > 0.001
