"""A compact network that begins as RLFN, of random weights here instead of the published ones."""

import pytest
import torch

from difiisr_models.compact import CompactConfig, CompactNetwork
from difiisr_models.resample import unpack, upsample
from difiisr_training.evaluation.peer_networks import Rlfn
from difiisr_training.recipes.begin_as_rlfn import begin_as_rlfn

CHANNELS, BLOCKS, SIDE = 10, 2, 24


def smooth_frames(count, seed):
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 1, 8, 8, generator=rng)
    return torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic")


def shown_whole(lr):
    low, high = lr.amin((1, 2, 3), keepdim=True), lr.amax((1, 2, 3), keepdim=True)
    return (lr - low) / (high - low) * 2 - 1


@pytest.fixture
def rlfn():
    torch.manual_seed(1)
    made = Rlfn(CHANNELS, BLOCKS).eval().requires_grad_(False)
    for block in (made.block_1, made.block_2):
        torch.nn.init.zeros_(block.esa.conv4.weight)  # an attention that does not depend on x
    return made


def begun(rlfn, channels, blocks=BLOCKS):
    network = CompactNetwork(CompactConfig(channels, blocks, time_features=8))
    begin_as_rlfn(network, rlfn, smooth_frames(32, seed=2))
    return network


def mean_of(network, lr, step=14, seed=4):
    x_t = torch.randn(len(lr), 16, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        mean, detail = network.estimates(x_t, upsample(lr), lr, torch.tensor([step]))
    assert not detail.any()
    return unpack(mean)


def inner_error(a, b):
    return (a - b)[..., 40:-40, 40:-40].square().mean().sqrt().item()


def theirs_of(rlfn, lr):
    with torch.no_grad():
        return rlfn((127.5 * (lr + 1)).expand(-1, 3, -1, -1)).mean(1, keepdim=True) / 127.5 - 1


def test_as_wide_and_with_constant_attention_it_is_rlfn(rlfn):
    """On frames that it was not fitted on; at the border the two pad with another grey."""
    lr = shown_whole(smooth_frames(4, seed=3))
    theirs = theirs_of(rlfn, lr)
    scale = inner_error(theirs, unpack(upsample(lr)))
    assert inner_error(mean_of(begun(rlfn, CHANNELS), lr), theirs) < 0.02 * scale


def test_narrower_it_is_still_close_and_closer_the_wider(rlfn):
    lr = shown_whole(smooth_frames(4, seed=3))
    theirs = theirs_of(rlfn, lr)
    nothing = inner_error(unpack(upsample(lr)), theirs)
    errors = [inner_error(mean_of(begun(rlfn, width), lr), theirs) for width in (4, 6, 10)]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < 0.5 * nothing


def test_it_ignores_the_noisy_image_and_the_step(rlfn):
    network, lr = begun(rlfn, 6), shown_whole(smooth_frames(2, seed=3))
    usual = mean_of(network, lr)
    assert torch.equal(mean_of(network, lr, step=0), usual)
    assert torch.equal(mean_of(network, lr, seed=5), usual)


@pytest.mark.parametrize(("channels", "blocks"), [(12, 2), (8, 3), (8, 1)])
def test_a_wider_or_deeper_network_is_refused_with_both_sizes(rlfn, channels, blocks):
    with pytest.raises(
        ValueError, match=f"RLFN has 10 channels and 2 blocks.*{channels} and {blocks}"
    ):
        begun(rlfn, channels, blocks)
