"""L_g and its gradient: what the losses forget, what is corrected, and where."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from random_vgg import random_vgg

from difiisr_models.diffusion import exponential_schedule, q_sample
from difiisr_training.config import from_dict
from difiisr_training.guidance import (
    GuidanceConfig,
    GuidanceLoss,
    guidance_gradient,
    guide,
    pattern_loss,
    spectral_loss,
)
from difiisr_training.losses import build_loss
from difiisr_training.perceptual import PerceptualLoss
from difiisr_training.train import build_network

SCHEDULE = exponential_schedule()
KAPPA = SCHEDULE.kappa


def eta_of(*steps):
    return torch.tensor([SCHEDULE.eta_at(t) for t in steps]).double().view(-1, 1, 1, 1)


def test_through_the_network_the_correction_is_the_posterior_covariance_times_the_gradient():
    """Tweedie: with the exact denoiser of a Gaussian, c_t d x0_hat / d x_t = Cov[x0 | x_t]."""
    variance, y = 0.7, torch.tensor(0.2, dtype=torch.float64).view(1, 1, 1, 1)
    slope = torch.tensor(1.3, dtype=torch.float64)
    for t in (1, 8, 15):
        eta = eta_of(t)
        noise = KAPPA**2 * eta
        posterior = 1 / (1 / variance + (1 - eta) ** 2 / noise)
        x_t = torch.full((1, 1, 1, 1), 0.9, dtype=torch.float64, requires_grad=True)
        x0 = posterior * (1 - eta) / noise * (x_t - eta * y)
        prediction, *_ = guide(
            x_t, x0, x0, y, eta,
            lambda x: (slope * x).sum(dim=(1, 2, 3)), GuidanceConfig(kind="visual"),
        )  # fmt: skip
        torch.testing.assert_close((x0 - prediction).detach(), posterior * slope)


@pytest.mark.parametrize(("corrects", "sign"), [("prediction", -1), ("target", +1)])
def test_correcting_the_prediction_subtracts_the_loss_and_correcting_the_target_adds_it(
    corrects, sign
):
    """The gradient that reaches the network, against that of |f - h|^2 +- 2 rho c / (1-eta) L."""
    rng, rho = torch.Generator().manual_seed(1), 0.4
    f, y, h = (torch.randn(3, 2, 4, 5, generator=rng, dtype=torch.float64) for _ in range(3))
    eta = eta_of(1, 8, 15)
    x_t = q_sample(f, y, eta, h, KAPPA)
    f.requires_grad_()

    def loss(x):
        return x.cos().sum(dim=(1, 2, 3))

    config = GuidanceConfig(kind="visual", rho=rho, corrects=corrects, gradient_path="fixed_noise")
    prediction, target, _ = guide(x_t, f, h, y, eta, loss, config)
    reached = torch.autograd.grad((prediction - target).square().sum(), f)[0]
    weight = 2 * rho * (KAPPA**2 * eta / (1 - eta) ** 2).flatten()
    added = (f - h).square().sum() + sign * (weight * loss(f)).sum()
    torch.testing.assert_close(reached, torch.autograd.grad(added, f)[0])


def test_guidance_loss_weighs_its_terms():
    sr, hr = torch.rand(2, 2, 1, 16, 16)
    weights = {"weight_visual": 0.5, "weight_pattern": 2.0}
    both = GuidanceLoss(GuidanceConfig(kind="visual", **weights))(sr, hr)
    torch.testing.assert_close(both, 0.5 * spectral_loss(sr, hr) + 2.0 * pattern_loss(sr, hr))
    with pytest.raises(ValueError, match=r"VGG.*SAM"):
        GuidanceLoss(GuidanceConfig(kind="both"))


@pytest.mark.parametrize("mode", ["gradient", "sum"])
def test_only_the_configured_timesteps_are_guided(mode):
    guidance = {"kind": "visual", "mode": mode, "timesteps": [15], "weight_visual": 10.0}
    guidance |= {"gradient_path": "fixed_noise", "corrects": "target"}
    settings = {"name": "x", "sources": [{"folder": "a"}], "perceptual_weight": 1.0}
    config = from_dict(settings | {"guidance": guidance}, "test")
    network = build_network(config)
    loss = build_loss(config, torch.device("cpu"))(network)
    lr, hr, eps = torch.rand(1, 1, 8, 8), torch.rand(1, 1, 32, 32), torch.randn(1, 16, 8, 8)

    def gradients(index, guided):
        value = loss(lr, hr, torch.tensor([index]), eps, guided)
        parts = torch.autograd.grad(value, list(network.parameters()))
        return torch.cat([part.flatten() for part in parts])

    for index, acts in ((7, False), (14, True)):
        assert torch.equal(gradients(index, False), gradients(index, True)) is not acts


def test_a_small_gradient_survives_a_network_in_half_precision():
    """L_g is a mean over pixels: 1e-8 of a pixel's own is less than fp16 can say."""
    x_t = torch.rand(2, 1, 64, 64, requires_grad=True)
    loss = (x_t.half().float() * 1e-8).sum(dim=(1, 2, 3))
    torch.testing.assert_close(
        guidance_gradient(loss, x_t), torch.full_like(x_t, 1e-8), rtol=1e-3, atol=0
    )


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


@pytest.fixture
def normalised(shared_weights):
    return partial(PerceptualLoss, weights=shared_weights("vgg19norm_to_relu3_1.pth"))


@pytest.fixture
def pair():
    rng = torch.Generator().manual_seed(5)
    hr = F.interpolate(torch.rand(2, 1, 8, 8, generator=rng), scale_factor=4, mode="bilinear")
    hr = 2 * hr - 1
    return F.avg_pool2d(hr, 3, stride=1, padding=1), hr


@pytest.mark.parametrize(
    ("layer", "index", "shape"),
    [("vgg16_relu3_3", 15, (2, 256, 8, 8)), ("vgg19_relu5_4", 35, (2, 512, 2, 2))],
)
def test_one_channel_is_seen_as_three_equal_ones(tmp_path, pair, layer, index, shape):
    """The paper's layer sees images normalised as in ImageNet, the reference's as they are."""
    network, (sr, hr) = random_vgg(layer[:5], tmp_path / "vgg.pth"), pair
    colours = hr.repeat(1, 3, 1, 1)
    if layer.startswith("vgg16"):
        mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        colours = ((colours + 1) / 2 - mean) / deviation
    loss = PerceptualLoss(layer, tmp_path / "vgg.pth")
    (features,) = loss.features(hr)
    assert features.shape == shape
    torch.testing.assert_close(features, network[: index + 1](colours))

    values = loss(torch.cat([sr.requires_grad_()[:1], hr[:1]]), torch.cat([hr[:1], hr[:1]]))
    assert values[0] > 0
    assert values[1] == 0
    values.sum().backward()
    assert sr.grad[0].any()
    assert not any(p.requires_grad for p in loss.parameters())


def test_true_vgg_features_lose_more_with_more_blur(normalised, pair):
    _, hr = pair
    blurred = [hr]
    for _ in range(3):
        blurred.append(F.avg_pool2d(F.pad(blurred[-1], (1,) * 4, mode="reflect"), 3, stride=1))
    loss = normalised("vgg19_relu3_1")
    values = [loss(sr, hr).mean().item() for sr in blurred]
    assert values[0] == 0
    assert values == sorted(values)
    assert values[1] > 0


def test_three_scales_forget_the_contrast_that_one_feature_map_does_not(normalised, pair):
    """Unit-length features: the same blur at a quarter of the contrast is nearly as bad."""
    scales, (sr, hr) = normalised("vgg19_scales"), pair
    ratios = {}
    for name, loss in (("scales", scales), ("one map", normalised("vgg19_relu3_1"))):
        ratios[name] = (loss(sr / 4, hr / 4) / loss(sr, hr)).mean().item()
    assert ratios["scales"] > 2 * ratios["one map"]


def test_another_network_is_refused(tmp_path):
    random_vgg("vgg16", tmp_path / "vgg16.pth")
    with pytest.raises(ValueError, match=r"size mismatch|Missing key"):
        PerceptualLoss("vgg19_relu5_4", tmp_path / "vgg16.pth")
