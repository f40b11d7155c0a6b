"""The published networks: sizes, any frame, half precision, the nearest code, the authors' way."""

import copy

import numpy as np
import pytest
import torch

from difiisr_models import load_upscaler
from difiisr_models.diffusion import draw_noise, exponential_schedule
from difiisr_models.frame_model import BicubicModel
from difiisr_models.published import vq_autoencoder
from difiisr_models.published.parity import TIE, compare_decoded
from difiisr_models.published.sampler import PublishedModel, published_tiles
from difiisr_models.published.swin_unet import SwinUNet, SwinUNetConfig
from difiisr_models.published.vq_autoencoder import VQAutoencoder, VQConfig, attend, nearest_codes
from difiisr_models.resample import unpack


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    unet = SwinUNet(
        SwinUNetConfig(
            channels=32, multipliers=(1, 2), blocks=1, swin_channels=32, heads=2, mlp_ratio=1,
            latent_size=32,
        )
    )  # fmt: skip
    autoencoder = VQAutoencoder(VQConfig(channels=32, multipliers=(1, 1, 2), blocks=1, codes=64))
    return unet.eval().requires_grad_(False), autoencoder.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model(networks):
    return PublishedModel(*networks, exponential_schedule())


def noise_for(lr, seed=0):
    return lambda k: draw_noise((lr.shape[0], 3, *lr.shape[2:]), seed, k)


def test_published_sizes():
    with torch.device("meta"):
        networks = SwinUNet(SwinUNetConfig()), VQAutoencoder(VQConfig())
    sizes = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert sizes == [118_593_583, 55_322_782]
    assert (SwinUNetConfig().stride, VQConfig().factor) == (64, 4)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (SwinUNetConfig, {"channels": 48}, "multiples of 32"),
        (SwinUNetConfig, {"heads": 5}, "also of heads"),
        (SwinUNetConfig, {"latent_size": 32}, "at least 64"),
        (SwinUNetConfig, {"blocks": 0}, "at least 1"),
        (SwinUNetConfig, {"multipliers": ()}, "at least 1"),
        (VQConfig, {"channels": 40}, "multiple of 32, got 40"),
        (VQConfig, {"codes": 0}, "at least 1"),
    ],
)
def test_impossible_sizes_are_named(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        kind(**changes)


@pytest.mark.parametrize("steps", [1, 4, 15])
def test_tiles_grow_by_four(model, steps):
    lr = torch.rand(2, 1, 16, 32) * 2 - 1
    image = unpack(model.super_resolve(lr, noise_for(lr), steps))
    assert image.shape == (2, 1, 64, 128)
    assert image.dtype == torch.float32
    assert torch.isfinite(image).all()
    with pytest.raises(ValueError, match="multiples of 16"):
        model.super_resolve(lr[..., 1:], noise_for(lr[..., 1:]), steps)


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(networks, dtype):
    unet, autoencoder = networks
    x, lq = torch.rand(2, 1, 3, 16, 16) * 2 - 1
    image = torch.zeros(1, 3, 32, 32)
    full, latent = unet(x, torch.tensor([14]), lq), autoencoder.encode(image)
    with torch.autocast("cpu", dtype):
        assert (unet(x, torch.tensor([14]), lq) - full).norm() < 0.1 * full.norm()
        assert (autoencoder.encode(image).float() - latent).abs().max() < 0.1


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


@pytest.mark.parametrize("codes", [1, 1024, 3000])
def test_the_nearest_code_is_taken_and_of_equals_the_first(codes):
    generator = torch.Generator().manual_seed(codes)
    z, codebook = (torch.randn(n, 3, generator=generator) for n in (200, codes))
    chosen = (z - codebook[nearest_codes(z, codebook)]).norm(dim=1)
    nearest = torch.cdist(z.double(), codebook.double()).amin(dim=1).float()
    torch.testing.assert_close(chosen, nearest, atol=1e-4, rtol=1e-4)
    equal = torch.ones(3000, 3)
    equal[:5] = 9.0
    assert nearest_codes(torch.zeros(4, 3), equal).tolist() == [5] * 4


def test_attention_in_parts_is_attention(monkeypatch):
    q, k, v = (torch.randn(2, 8, 35) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v))
    ).transpose(1, 2)
    monkeypatch.setattr(vq_autoencoder, "LOGITS_AT_ONCE", 35 * 4)
    torch.testing.assert_close(attend(q, k, v), expected)


def test_the_authors_pipeline_takes_full_scale_chops_and_means_without_weights():
    """Every tile gives its own constant: the mean of those that cover a pixel comes out."""

    class Counting(BicubicModel):
        def __init__(self):
            super().__init__(is_projected=True)
            self.seen = []

        def super_resolve(self, lr, noise, steps, fidelity):
            self.seen.append(lr)
            return torch.full((1, 16, *lr.shape[-2:]), 0.1 * len(self.seen))

    model = Counting()
    frame = np.full((200, 300), 255, np.uint8)
    frame[:, :150] = 0
    up = load_upscaler("bicubic", pipeline="published")
    up._model = model
    result = up(frame)
    assert [tuple(lr.shape[-2:]) for lr in model.seen] == [(256, 256), (256, 256)]  # of 256x320
    assert (model.seen[0].min(), model.seen[0].max()) == (-1, 1)
    assert torch.equal(model.seen[0][..., 64:], model.seen[1][..., :192])
    expected = [round((value + 1) * 127.5) for value in (0.1, 0.15, 0.2)]
    assert [result[0, 4 * x] for x in (63, 64, 256)] == expected
    assert result.shape == (800, 1200)
    with pytest.raises(ValueError, match="8 or 16 bit"):
        up(frame.astype(np.float32))


@pytest.mark.parametrize(
    ("length", "starts"), [(256, [0]), (320, [0, 64]), (480, [0, 224]), (704, [0, 224, 448])]
)
def test_the_authors_tiles_lie_every_224_pixels_and_end_flush(length, starts):
    assert [tile.left for tile in published_tiles(64, length)] == starts


def test_the_comparison_with_the_reference_forgives_a_pixel_between_two_codes_alone():
    torch.manual_seed(0)
    coder = VQAutoencoder(VQConfig(channels=32, multipliers=(1, 1), blocks=1, codes=2)).eval()
    with torch.no_grad():
        coder.codebook[:] = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    coder.requires_grad_(False)
    z = torch.full((1, 3, 4, 4), 0.5)
    z[0, 0, 1, 2] = TIE / 16  # halfway between the codes
    assert compare_decoded(coder, z, coder.decode(z)) == (0.0, 0)
    tie, other = z.clone(), z.clone()
    tie[0, 0, 1, 2] *= -1
    other[0, 0, 3, 0] *= -1  # no tie
    for side in (8, 4):  # 4: only the upper left corner of the image was recorded
        recorded = coder.decode(tie)[..., :side, :side]
        assert (coder.decode(z)[..., :side, :side] - recorded).abs().max() > 1e-3
        difference, settled = compare_decoded(coder, z, recorded)
        assert settled == 1
        assert difference < 1e-5
    assert compare_decoded(coder, z, coder.decode(other))[0] > 1e-3
