"""The published model on tiles: sizes, noise, precision, steps."""

import copy

import pytest
import torch

from difiisr_models.diffusion import draw_noise, exponential_schedule
from difiisr_models.published.sampler import PublishedModel
from difiisr_models.published.swin_unet import SwinUNet, SwinUNetConfig
from difiisr_models.published.vq_autoencoder import VQAutoencoder, VQConfig
from difiisr_models.resample import unpack


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    unet = SwinUNet(
        SwinUNetConfig(
            channels=32, multipliers=(1, 1), blocks=1, swin_channels=32, heads=2, mlp_ratio=1,
            latent_size=16,
        )
    )  # fmt: skip
    autoencoder = VQAutoencoder(VQConfig(channels=32, multipliers=(1, 1, 1), blocks=1, codes=64))
    return unet.eval().requires_grad_(False), autoencoder.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model(networks):
    return PublishedModel(*networks, exponential_schedule())


def noise_for(lr, seed=0):
    return lambda k: draw_noise((lr.shape[0], 3, *lr.shape[2:]), seed, k)


@pytest.mark.parametrize("steps", [1, 4, 15])
def test_tiles_grow_by_four(model, steps):
    lr = torch.rand(2, 1, 16, 32) * 2 - 1
    image = unpack(model.super_resolve(lr, noise_for(lr), steps))
    assert image.shape == (2, 1, 64, 128)
    assert image.dtype == torch.float32
    assert torch.isfinite(image).all()


# Half precision is emulated, very slowly, by CPUs without it.
HALF = [pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.bfloat16, torch.float16)]


@pytest.mark.parametrize("autocast", [None, *HALF])
@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_flat_tiles_stay_finite(networks, autocast, value):
    model = PublishedModel(*networks, exponential_schedule(), autocast)
    lr = torch.full((1, 1, 16, 16), value)
    result = model.super_resolve(lr, lambda k: torch.zeros(1, 3, 16, 16), 1)
    assert torch.isfinite(result).all()
    assert result.abs().max() > 0


@pytest.mark.slow
def test_an_overflow_in_half_precision_is_computed_again(networks):
    unet, autoencoder = copy.deepcopy(networks)
    unet.stem.weight *= 1e6
    model = PublishedModel(unet, autoencoder, exponential_schedule(), torch.float16)
    lr = torch.rand(1, 1, 16, 16) * 2 - 1
    scaled = unet.stem(torch.ones(1, 6, 8, 8)).abs().max()
    assert scaled > torch.finfo(torch.float16).max
    result = model.super_resolve(lr, noise_for(lr), 1)
    assert torch.isfinite(result).all()
    precise = PublishedModel(unet, autoencoder, exponential_schedule())
    assert torch.equal(result, precise.super_resolve(lr, noise_for(lr), 1))
