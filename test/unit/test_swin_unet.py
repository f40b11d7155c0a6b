"""The Swin-UNet: its size, its shapes, and what it must not depend on."""

import pytest
import torch

from difiisr_models.diffusion import timestep_embedding
from difiisr_models.published.swin_unet import (
    SwinUNet,
    SwinUNetConfig,
    from_windows,
    shift_mask,
    to_windows,
)

SMALL = SwinUNetConfig(
    channels=32, multipliers=(1, 2), blocks=1, swin_channels=32, heads=2, mlp_ratio=1,
    latent_size=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return SwinUNet(SMALL).eval().requires_grad_(False)


def inputs(batch: int, height: int, width: int):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, height, width, generator=generator)
    lq = torch.randn(batch, 3, height, width, generator=generator).clamp(-1, 1)
    return x, lq


def test_published_size():
    with torch.device("meta"):
        network = SwinUNet(SwinUNetConfig())
    assert sum(p.numel() for p in network.parameters()) == 118_593_583
    assert SwinUNetConfig().stride == 64


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 48), (64, 32)])
def test_any_multiple_of_the_stride(network, height, width):
    x, lq = inputs(2, height, width)
    y = network(x, torch.tensor([14, 0]), lq)
    assert y.shape == x.shape
    assert torch.isfinite(y).all()
    with pytest.raises(ValueError, match="multiples of 16"):
        network(x[..., 1:], torch.tensor([14, 0]), lq[..., 1:])


def test_images_of_a_batch_do_not_mix(network):
    x, lq = inputs(2, 16, 32)
    t = torch.tensor([14, 3])
    together = network(x, t, lq)
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1], lq[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_step_and_condition_matter(network):
    x, lq = inputs(1, 16, 16)
    y = network(x, torch.tensor([14]), lq)
    assert (network(x, torch.tensor([3]), lq) - y).abs().max() > 1e-3
    assert (network(x, torch.tensor([14]), -lq) - y).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close_and_survives_constant_input(network, dtype):
    t = torch.tensor([14])
    x, lq = inputs(1, 16, 16)
    full = network(x, t, lq)
    with torch.autocast("cpu", dtype):
        assert (network(x, t, lq) - full).norm() < 0.1 * full.norm()
        for value in (-1.0, 0.0, 1.0):
            x = torch.full((1, 3, 16, 16), value)
            assert torch.isfinite(network(x, t, x)).all()


def test_windows_there_and_back():
    x = torch.arange(2 * 3 * 16 * 24.0).reshape(2, 3, 16, 24)
    windows = to_windows(x, 8)
    assert windows.shape == (2, 6, 64, 3)
    assert torch.equal(windows[0, 1, :, 0].reshape(8, 8), x[0, 0, :8, 8:16])
    assert torch.equal(from_windows(windows, 8, 16, 24), x)


def test_shift_mask_parts_only_the_lowest_windows():
    mask = shift_mask(16, 24, 8, torch.device("cpu"))
    assert mask.shape == (6, 64, 64)
    assert not mask[:3].any()
    left, right = 0, 4  # two tokens of the first row
    assert (mask[3:, left, right] == -100).all()
    assert (mask[3:, left, left + 8] == 0).all()


def test_embedding_is_cosines_then_sines():
    embedding = timestep_embedding(torch.tensor([0, 7]), 32)
    assert torch.equal(embedding[0], torch.cat((torch.ones(16), torch.zeros(16))))
    expected = torch.tensor([7.0]).cos(), torch.tensor([7.0]).sin()
    torch.testing.assert_close(embedding[1, [0, 16]], torch.cat(expected))
    with pytest.raises(ValueError, match="even"):
        timestep_embedding(torch.tensor([0]), 31)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 48}, "multiples of 32"),
        ({"heads": 5}, "also of heads"),
        ({"latent_size": 32}, "at least 64"),
        ({"blocks": 0}, "at least 1"),
        ({"multipliers": ()}, "at least 1"),
    ],
)
def test_impossible_sizes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        SwinUNetConfig(**changes)
