"""What a run may begin with: a smaller network."""

import pytest
import torch

from difiisr_models.compact import CompactConfig, CompactNetwork
from difiisr_training.networks import start_from


def network(blocks, channels=8, seed=0):
    torch.manual_seed(seed)
    made = CompactNetwork(CompactConfig(channels, blocks, time_features=8))
    torch.nn.init.normal_(made.detail_head.weight, std=0.1)
    return made


def estimates(made):
    generator = torch.Generator().manual_seed(3)
    x_t, y = torch.randn(2, 2, 16, 12, 10, generator=generator)
    with torch.no_grad():
        return made.estimates(x_t, y, x_t[:, :1], torch.tensor([14]))


@pytest.mark.parametrize(("blocks", "channels"), [(2, 8), (5, 8), (2, 13), (4, 16)])
def test_a_larger_network_begins_as_the_small_one(blocks, channels):
    small, large = network(2), network(blocks, channels, seed=1)
    for block in small.blocks:
        torch.nn.init.normal_(block.film.weight, std=0.3)
    start_from(large, small)
    for ours, theirs in zip(estimates(large), estimates(small), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("blocks", "channels"), [(2, 16), (3, 8)])
def test_a_narrower_or_shallower_network_is_refused(blocks, channels):
    given = network(blocks, channels)
    with pytest.raises(ValueError, match="not those of the configured network"):
        start_from(network(2), given)
