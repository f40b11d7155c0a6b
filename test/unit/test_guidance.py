import pytest
import torch

from difiisr_models.diffusion import exponential_schedule, q_sample
from difiisr_training.guidance import (
    GuidanceConfig,
    GuidanceLoss,
    build_guidance_loss,
    guidance_gradient,
    guide,
    inject,
    predicted_noise,
    x0_from_noise,
)

SCHEDULE = exponential_schedule()
KAPPA = SCHEDULE.kappa
SHAPE = (3, 2, 4, 5)


def eta_of(*steps):
    return torch.tensor([SCHEDULE.eta_at(t) for t in steps]).double().view(-1, 1, 1, 1)


@pytest.fixture
def drawn():
    """x_t, x0, y, eta, eps in float64, at the first, a middle and the last step."""
    rng = torch.Generator().manual_seed(1)
    x0, y, eps = (torch.randn(SHAPE, generator=rng, dtype=torch.float64) for _ in range(3))
    eta = eta_of(1, 8, 15)
    return q_sample(x0, y, eta, eps, KAPPA), x0, y, eta, eps


def test_x0_and_noise_determine_each_other(drawn):
    x_t, x0, y, eta, eps = drawn
    torch.testing.assert_close(predicted_noise(x_t, x0, y, eta, KAPPA), eps)
    torch.testing.assert_close(x0_from_noise(x_t, eps, y, eta, KAPPA), x0)
    other = torch.randn_like(eps)
    back = predicted_noise(x_t, x0_from_noise(x_t, other, y, eta, KAPPA), y, eta, KAPPA)
    torch.testing.assert_close(back, other)


def test_injection_moves_x0_by_rho_c_times_the_gradient(drawn):
    x_t, x0, y, eta, gradient = drawn
    moved = inject(x_t, x0, y, eta, KAPPA, 0.3, gradient)
    torch.testing.assert_close(x0 - moved, 0.3 * KAPPA**2 * eta / (1 - eta) * gradient)


def test_gradient_agrees_with_finite_differences_and_keeps_samples_apart(drawn):
    x_t = drawn[0].requires_grad_()

    def loss(x):
        return (x**3).sum(dim=(1, 2, 3)) * torch.tensor([1.0, 10.0, 0.0], dtype=x.dtype)

    gradient = guidance_gradient(loss(x_t), x_t)
    step = torch.zeros_like(x_t)
    step[1, 0, 2, 3] = 1e-5
    difference = (loss(x_t + step) - loss(x_t - step)) / 2e-5
    torch.testing.assert_close(difference[1], gradient[1, 0, 2, 3], rtol=1e-6, atol=1e-8)
    assert difference[0] == difference[2] == 0
    assert gradient[2].abs().max() == 0
    assert not gradient.requires_grad


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
            x_t, x0, x0, y, eta, KAPPA,
            lambda x: (slope * x).sum(dim=(1, 2, 3)), torch.ones(1).double(),
            GuidanceConfig(kind="visual"),
        )  # fmt: skip
        torch.testing.assert_close((x0 - prediction).detach(), posterior * slope)


def test_with_fixed_noise_only_equation_5_is_differentiated(drawn):
    x_t, x0, y, eta, _ = drawn
    config = GuidanceConfig(kind="visual", gradient_path="fixed_noise")
    ones = torch.ones(3).double()
    prediction, *_ = guide(x_t, x0, x0, y, eta, KAPPA, lambda x: x.sum(dim=(1, 2, 3)), ones, config)
    wanted = KAPPA**2 * eta / (1 - eta) ** 2
    torch.testing.assert_close(x0 - prediction, wanted.expand(SHAPE))


@pytest.mark.parametrize(("corrects", "sign"), [("prediction", -1), ("target", +1)])
def test_correcting_the_prediction_subtracts_the_loss_and_correcting_the_target_adds_it(
    drawn, corrects, sign
):
    """The gradient that reaches the network, against that of |f - h|^2 +- 2 rho c / (1-eta) L."""
    x_t, f, y, eta, h = drawn
    f.requires_grad_()
    rho, ones = 0.4, torch.ones(3).double()

    def loss(x):
        return x.cos().sum(dim=(1, 2, 3))

    config = GuidanceConfig(kind="visual", rho=rho, corrects=corrects, gradient_path="fixed_noise")
    prediction, target, _ = guide(x_t, f, h, y, eta, KAPPA, loss, ones, config)
    reached = torch.autograd.grad((prediction - target).square().sum(), f)[0]
    weight = 2 * rho * (KAPPA**2 * eta / (1 - eta) ** 2).flatten()
    added = (f - h).square().sum() + sign * (weight * loss(f)).sum()
    torch.testing.assert_close(reached, torch.autograd.grad(added, f)[0])


@pytest.mark.parametrize(
    ("changes", "lower"),
    [
        ({"corrects": "prediction"}, False),
        ({"corrects": "target"}, True),
        ({"mode": "sum"}, True),
    ],
)
def test_what_a_network_learns_has_a_lower_loss_only_if_target_or_objective_is_guided(
    changes, lower
):
    """A free image trained towards a blurred one, guided by the spectrum of the sharp one."""
    rng = torch.Generator().manual_seed(3)
    sharp = torch.randn(1, 1, 8, 8, generator=rng).double()
    blurred = (sharp + sharp.roll(1, -1) + sharp.roll(-1, -1)) / 3
    y, eta = torch.zeros_like(sharp), eta_of(8)
    guidance = GuidanceLoss(1.0, 0.0, [])

    def loss(x):
        return guidance(x, sharp)

    config = GuidanceConfig(kind="visual", rho=0.05, gradient_path="fixed_noise", **changes)
    f = blurred.clone().requires_grad_()
    optimiser = torch.optim.SGD([f], lr=0.02)
    for _ in range(30):
        x_t = q_sample(f.detach(), y, eta, torch.zeros_like(f), KAPPA)
        ones = torch.ones(1).double()
        prediction, target, penalty = guide(x_t, f, blurred, y, eta, KAPPA, loss, ones, config)
        objective = (prediction - target).square().sum() + penalty
        optimiser.zero_grad()
        objective.backward()
        optimiser.step()
    assert (loss(f.detach()) < loss(blurred)).item() is lower


def test_samples_that_are_not_chosen_are_left_alone(drawn):
    x_t, x0, y, eta, _ = drawn
    acts = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    config = GuidanceConfig(kind="visual", gradient_path="fixed_noise")
    prediction, *_ = guide(
        x_t, x0, x0, y, eta, KAPPA, lambda x: x.square().sum(dim=(1, 2, 3)), acts, config
    )
    moved = (prediction - x0).abs().amax(dim=(1, 2, 3))
    assert moved[1] > 0.1
    assert moved[[0, 2]].max() < 1e-9


def test_sum_adds_the_mean_loss_of_the_chosen_and_corrects_nothing(drawn):
    x_t, x0, y, eta, _ = drawn
    acts = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    values = torch.tensor([5.0, 1.0, 2.0], dtype=torch.float64)
    config = GuidanceConfig(kind="visual", mode="sum")
    prediction, target, penalty = guide(x_t, x0, x0, y, eta, KAPPA, lambda _: values, acts, config)
    assert penalty.item() == pytest.approx(1.0)
    assert torch.equal(prediction, x0)
    assert torch.equal(target, x0)


def test_guidance_loss_weighs_its_terms():
    sr, hr = torch.rand(2, 2, 1, 16, 16)

    class Constant(torch.nn.Module):
        def forward(self, sr, hr):
            return torch.tensor([1.0, 2.0])

    visual = GuidanceLoss(1.0, 0.0, [])(sr, hr)
    both = GuidanceLoss(0.5, 0.1, [Constant(), Constant()])(sr, hr)
    torch.testing.assert_close(both, 0.5 * visual + torch.tensor([0.2, 0.4]))


def test_perceptual_guidance_without_any_network_says_what_is_missing():
    assert build_guidance_loss(GuidanceConfig(), None, None, torch.device("cpu")) is None
    with pytest.raises(ValueError, match=r"VGG.*SAM"):
        build_guidance_loss(GuidanceConfig(kind="both"), None, None, torch.device("cpu"))


def test_a_small_gradient_survives_a_network_in_half_precision():
    """L_g is a mean over pixels: 1e-8 of a pixel's own is less than fp16 can say."""
    x_t = torch.rand(2, 1, 64, 64, requires_grad=True)
    loss = (x_t.half().float() * 1e-8).sum(dim=(1, 2, 3))
    torch.testing.assert_close(
        guidance_gradient(loss, x_t), torch.full_like(x_t, 1e-8), rtol=1e-3, atol=0
    )
