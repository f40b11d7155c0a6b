"""The losses of L_g that need no network: of the spectrum, and of a pattern of the 4x4 blocks."""

import pytest
import torch
import torch.nn.functional as F

from difiisr_models.resample import pack
from difiisr_training.guidance import log_spectrum, pattern_loss, spectral_loss


@pytest.fixture
def image():
    """A smooth random image in [-1, 1], ``(1, 1, 64, 64)`` float64."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 1, 72, 72, generator=rng, dtype=torch.float64)
    smooth = F.avg_pool2d(noise, 9, stride=1)
    return smooth / smooth.abs().max()


def blur(image):
    return F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="circular"), 3, stride=1)


def test_normalised_spectrum_has_zero_mean_and_unit_variance(image):
    spectrum = log_spectrum(3 * image + 1)
    assert spectrum.mean().item() == pytest.approx(0, abs=1e-9)
    assert spectrum.square().mean().item() == pytest.approx(1, abs=1e-6)
    assert spectrum.argmax().item() == 32 * 64 + 32  # zero frequency in the centre


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


def test_samples_do_not_mix(image):
    degraded = blur(image)
    batch = spectral_loss(torch.cat([degraded, image]), torch.cat([image, image]))
    torch.testing.assert_close(batch, torch.stack([*spectral_loss(degraded, image), batch[1]]))
    assert batch[1] == 0
    pair = torch.cat([degraded, image]).requires_grad_()
    gradient = torch.autograd.grad(spectral_loss(pair, torch.cat([image, degraded]))[0], pair)[0]
    assert gradient[0].abs().max() > 0
    assert gradient[1].abs().max() == 0


@pytest.mark.parametrize("loss", [spectral_loss, pattern_loss])
def test_gradient_agrees_with_finite_differences(loss):
    rng = torch.Generator().manual_seed(2)
    sr, hr = torch.randn(2, 1, 1, 4, 8, generator=rng, dtype=torch.float64)
    assert torch.autograd.gradcheck(loss, (sr.requires_grad_(), hr.requires_grad_()))


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_flat_images_have_a_finite_loss_and_gradient(image, value):
    flat = torch.full_like(image, value).requires_grad_()
    loss = spectral_loss(flat, image)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert flat.grad.isfinite().all()


def test_half_precision_is_computed_in_float32(image):
    loss = spectral_loss(blur(image).half(), image.half())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), spectral_loss(blur(image), image), rtol=0.1, atol=0)


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
