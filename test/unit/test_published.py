"""The published model behind the frame upscaler: tiles, frames, precision, steps."""

import copy

import numpy as np
import pytest
import torch

from difiisr_models.diffusion import draw_noise, exponential_schedule
from difiisr_models.published.sampler import PublishedModel
from difiisr_models.published.swin_unet import SwinUNet, SwinUNetConfig
from difiisr_models.published.vq_autoencoder import VQAutoencoder, VQConfig
from difiisr_models.resample import unpack
from difiisr_models.settings import Runtime
from difiisr_models.upscaler import Upscaler


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


def test_one_step_is_the_denoiser_at_the_noisiest_level(model, networks):
    unet, autoencoder = networks
    lr = torch.rand(1, 1, 16, 16) * 2 - 1
    lq = lr.expand(-1, 3, -1, -1)
    y = autoencoder.encode(torch.nn.functional.interpolate(lq, scale_factor=4, mode="bicubic"))
    x_t = y + 2.0 * 0.99 * noise_for(lr)(0)
    x0 = unet(x_t / np.sqrt(4.0 * 0.99**2 + 1.0), torch.tensor([14]), lq)
    torch.testing.assert_close(model.sample_latent(lq, noise_for(lr), 1), x0, atol=1e-4, rtol=1e-4)


def test_noise_decides_and_repeats(model):
    lr = torch.rand(1, 1, 16, 16) * 2 - 1
    first = model.super_resolve(lr, noise_for(lr, 1), 1)
    assert torch.equal(first, model.super_resolve(lr, noise_for(lr, 1), 1))
    assert not torch.equal(first, model.super_resolve(lr, noise_for(lr, 2), 1))


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


@pytest.mark.parametrize("shape", [(16, 16), (17, 45)])
def test_frames_of_any_size(model, shape):
    up = Upscaler("published", model, runtime=Runtime(tile=32, overlap=8))
    y, x = np.mgrid[: shape[0], : shape[1]]
    counts = (20000 + 300 * np.sin(x / 5) * np.cos(y / 7)).astype(np.uint16)
    result = up(counts)
    assert result.shape == (4 * shape[0], 4 * shape[1])
    assert result.dtype == np.uint16
    assert abs(result.mean() - counts.mean()) < 30
