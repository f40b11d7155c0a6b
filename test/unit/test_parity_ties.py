"""What the comparison with the reference forgives: a pixel between two codes, and nothing else."""

import pytest
import torch

from difiisr_models.published.parity import TIE, compare_decoded
from difiisr_models.published.vq_autoencoder import VQAutoencoder, VQConfig


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    network = VQAutoencoder(VQConfig(channels=32, multipliers=(1, 1), blocks=1, codes=2)).eval()
    with torch.no_grad():
        network.codebook[:] = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    return network.requires_grad_(False)


@pytest.fixture
def z():
    """Latent of the first code, but for one pixel halfway between the codes."""
    latent = torch.full((1, 3, 4, 4), 0.5)
    latent[0, 0, 1, 2] = TIE / 16
    return latent


def test_equal_latents_need_no_forgiveness(autoencoder, z):
    assert compare_decoded(autoencoder, z, autoencoder.decode(z)) == (0.0, 0)


@pytest.mark.parametrize("side", [8, 4])
def test_a_tie_may_fall_either_way(autoencoder, z, side):
    """``side`` 4: only the upper left corner of the image was recorded."""
    other = z.clone()
    other[0, 0, 1, 2] *= -1
    recorded = autoencoder.decode(other)[..., :side, :side]
    assert (autoencoder.decode(z)[..., :side, :side] - recorded).abs().max() > 1e-3
    difference, settled = compare_decoded(autoencoder, z, recorded)
    assert settled == 1
    assert difference < 1e-5


def test_another_code_at_a_pixel_that_is_no_tie_is_a_difference(autoencoder, z):
    other = z.clone()
    other[0, 0, 3, 0] *= -1
    difference, _ = compare_decoded(autoencoder, z, autoencoder.decode(other))
    assert difference > 1e-3
