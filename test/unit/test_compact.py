"""The compact network by itself."""

import pytest
import torch

from difiisr_models.compact import CompactConfig, CompactNetwork, widened


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = CompactNetwork(CompactConfig(channels=8, blocks=2, time_features=16)).eval()
    for block in network.blocks:  # as after training: the step scales and shifts
        torch.nn.init.normal_(block.film.weight, std=0.3)
        torch.nn.init.normal_(block.film.bias, std=0.3)
    return network


@torch.inference_mode()
def test_one_step_for_all_is_that_step_for_each(network):
    x_t, y, lr = torch.randn(3, 16, 12, 10), torch.randn(3, 16, 12, 10), torch.randn(3, 1, 12, 10)
    for step in (0, 14):
        shared = network.estimates(x_t, y, lr, torch.tensor([step]))
        own = network.estimates(x_t, y, lr, torch.full((3,), step))
        torch.testing.assert_close(shared, own, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_wider_by_channels_of_zeros_it_computes_the_same(network):
    x_t, y, lr = torch.randn(2, 16, 12, 10), torch.randn(2, 16, 12, 10), torch.randn(2, 1, 12, 10)
    arguments = (x_t, y, lr, torch.tensor([14]), torch.tensor([0.3]))
    wide = widened(network, 12)
    assert wide.blocks[0].conv1.weight.shape == (12, 12, 3, 3)
    torch.testing.assert_close(wide(*arguments), network(*arguments), rtol=1e-5, atol=1e-6)
