"""The Swin-UNet: its size, its shapes, and what it must not depend on."""

import pytest
import torch

from difiisr_models.published.swin_unet import SwinUNet, SwinUNetConfig

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
