"""What a run may begin with: RLFN (of random weights here)."""

import pytest
import torch

from difiisr_models.compact import CompactConfig, CompactNetwork
from difiisr_models.resample import unpack, upsample
from difiisr_training.evaluation.peers import Rlfn
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


def test_as_wide_it_is_rlfn_narrower_it_is_close_and_noise_and_step_do_not_matter(rlfn):
    """On frames that it was not fitted on; at the border the two pad with another grey."""
    lr = shown_whole(smooth_frames(4, seed=3))
    theirs = rlfn((127.5 * (lr + 1)).expand(-1, 3, -1, -1)).mean(1, keepdim=True) / 127.5 - 1
    networks = [begun(rlfn, width) for width in (4, 6, CHANNELS)]
    images = [unpack(upsample(lr)), *(mean_of(network, lr) for network in networks)]
    nothing, *errors = (
        (image - theirs)[..., 40:-40, 40:-40].square().mean().sqrt().item() for image in images
    )
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < 0.5 * nothing
    assert errors[2] < 0.02 * nothing
    assert torch.equal(mean_of(networks[1], lr, step=0, seed=5), images[2])


@pytest.mark.parametrize(("channels", "blocks"), [(12, 2), (8, 3), (8, 1)])
def test_a_wider_or_deeper_network_is_refused_with_both_sizes(rlfn, channels, blocks):
    with pytest.raises(
        ValueError, match=f"RLFN has 10 channels and 2 blocks.*{channels} and {blocks}"
    ):
        begun(rlfn, channels, blocks)
