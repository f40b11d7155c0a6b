"""The VQ autoencoder: its size, its shapes, and the nearest code."""

import pytest
import torch

from difiisr_models.published import vq_autoencoder
from difiisr_models.published.vq_autoencoder import VQAutoencoder, VQConfig, attend, nearest_codes

SMALL = VQConfig(channels=32, multipliers=(1, 1, 2), blocks=1, codes=50)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return VQAutoencoder(SMALL).eval().requires_grad_(False)


def test_published_size():
    with torch.device("meta"):
        network = VQAutoencoder(VQConfig())
    assert sum(p.numel() for p in network.parameters()) == 55_322_782
    assert VQConfig().factor == 4


@pytest.mark.parametrize("codes", [1, 1023, 1024, 1025, 3000])
def test_nearest_code_is_the_nearest(codes):
    generator = torch.Generator().manual_seed(codes)
    z = torch.randn(200, 3, generator=generator)
    codebook = torch.randn(codes, 3, generator=generator)
    chosen = (z - codebook[nearest_codes(z, codebook)]).norm(dim=1)
    nearest = torch.cdist(z.double(), codebook.double()).amin(dim=1).float()
    torch.testing.assert_close(chosen, nearest, atol=1e-4, rtol=1e-4)


def test_the_first_of_equal_codes_is_taken():
    codebook = torch.ones(3000, 3)
    codebook[:5] = 9.0
    assert nearest_codes(torch.zeros(4, 3), codebook).tolist() == [5] * 4


def test_attention_in_parts_is_attention(monkeypatch):
    q, k, v = (torch.randn(2, 8, 35) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v))
    ).transpose(1, 2)
    torch.testing.assert_close(attend(q, k, v), expected)
    monkeypatch.setattr(vq_autoencoder, "LOGITS_AT_ONCE", 35 * 4)
    torch.testing.assert_close(attend(q, k, v), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_half_precision_survives_constant_images(network, dtype, value):
    image = torch.full((1, 3, 32, 32), value)
    with torch.autocast("cpu", dtype):
        z = network.encode(image)
        decoded = network.decode(z)
    assert torch.isfinite(z).all()
    assert torch.isfinite(decoded).all()
    assert (z.float() - network.encode(image)).abs().max() < 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"channels": 40}, "multiple of 32, got 40"), ({"codes": 0}, "at least 1")],
)
def test_impossible_sizes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        VQConfig(**changes)
