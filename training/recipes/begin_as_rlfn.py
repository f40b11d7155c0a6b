"""A compact network that begins as a published one: RLFN, narrowed and without its attention.

The blocks of the compact network are those of RLFN (Kong et al., CVPR workshops 2022), so that what
RLFN learnt from many photographs need not be learnt again. Two things differ: fewer channels, and
no spatial attention. Channels are left out where the others say most of what they say, and each
layer is then fitted anew, by least squares, to what RLFN computes in that place (channel pruning
with reconstruction; He et al., ICCV 2017). RLFN's features are homogeneous in their unit but for
the attention, so that its 0..255 becomes -1..1 by a factor and a bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difiisr_models.compact import CompactNetwork
from difiisr_models.resample import pack, upsample
from difiisr_training.config import TrainConfig
from difiisr_training.data.images import LoadFrames
from difiisr_training.data.training_pairs import CropDataset
from difiisr_training.evaluation.peers import load_published_network

_FITTED_ON = 96  # crops; of 48x48 they give 500 equations for each of the unknowns
_HALF_SPAN = 127.5  # counts of RLFN's input that are 1 in network units
_RIDGE = 1e-6  # of the largest diagonal element of the normal equations
_SLOPE = 0.05  # of the leaky ReLU, in both


def begin(config: TrainConfig, peers: Path | None, load: LoadFrames) -> CompactNetwork:
    """The configured network with weights made of those that ``config.begin_as`` names.

    ``peers``: folder with the published weights; ``load``: gives the frames they are fitted on.
    """
    if peers is None:
        raise ValueError(f"begin_as {config.begin_as!r} needs --peers DIR")
    torch.manual_seed(config.seed)
    network = CompactNetwork(config.network)
    rlfn, _ = load_published_network(config.begin_as, peers, "cpu")
    samples = CropDataset(config.sources, load, config.crops, config.seed, _FITTED_ON)
    begin_as_rlfn(network, rlfn, torch.stack([samples[i][0] for i in range(_FITTED_ON)]))
    return network


@torch.no_grad()
def begin_as_rlfn(network: CompactNetwork, rlfn: Any, lr: Tensor) -> None:
    """Give ``network`` weights with which its posterior mean is close to RLFN's result, in place.

    It then ignores x_t and the step, and its perceptual sample is its mean. ``lr (n, 1, h, w)``:
    frames that the layers are fitted on, each shown from its own black to its own white, since
    outside its range RLFN may do anything. The network is not wider, and has as many blocks.
    """
    theirs = [block for name, block in rlfn.named_children() if name.startswith("block_")]
    width, wanted = rlfn.conv_1.out_channels, network.config
    if wanted.channels > width or wanted.blocks != len(theirs):
        raise ValueError(
            f"RLFN has {width} channels and {len(theirs)} blocks; to begin as it a network needs "
            f"as many blocks and no more channels, not {wanted.channels} and {wanted.blocks}"
        )
    for layer in (network.gate, *(block.film for block in network.blocks)):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    network.reset_detail()
    low, high = lr.amin((1, 2, 3), keepdim=True), lr.amax((1, 2, 3), keepdim=True)
    lr = (lr - low) * (2 / (high - low).clamp(min=1e-6)) - 1

    def kept_of(features: Tensor, *readers: nn.Conv2d) -> Tensor:
        return _most_telling(features, readers, wanted.channels)

    shallow = rlfn.conv_1((_HALF_SPAN * (lr + 1)).expand(-1, 3, -1, -1)) / _HALF_SPAN
    kept = shallow_kept = kept_of(shallow, theirs[0].c1_r, rlfn.upsampler[0])
    x, own_shallow = shallow, _fit(network.stem_lr, lr, shallow[:, kept])
    own = own_shallow
    for block, their, after in zip(network.blocks, theirs, [*theirs[1:], None], strict=True):
        h, own_h = x, own
        for conv, layer, reader in (
            (block.conv1, their.c1_r, their.c2_r),
            (block.conv2, their.c2_r, their.c3_r),
        ):
            linear = _convolve(layer, h)
            h = F.leaky_relu(linear, _SLOPE)
            own_h = F.leaky_relu(_fit(conv, own_h, linear[:, kept_of(h, reader)]), _SLOPE)
        linear = _convolve(their.c3_r, h)
        own_h = F.leaky_relu(_fit(block.conv3, own_h, linear[:, kept]), _SLOPE)
        mixed = _convolve(their.c5, F.leaky_relu(linear, _SLOPE) + x)
        x = their.esa(mixed * _HALF_SPAN) / _HALF_SPAN
        kept = kept_of(x, *([after.c1_r, after.c5] if after else [rlfn.conv_2]))
        own = _fit(block.mix, own_h + own, x[:, kept])
    deep = _convolve(rlfn.conv_2, x)
    own = _fit(network.fuse, own, deep[:, shallow_kept]) + own_shallow
    result = rlfn.upsampler[1](_convolve(rlfn.upsampler[0], deep + shallow)).mean(1, keepdim=True)
    _fit(network.mean_head, own, pack(result - 1) - upsample(lr))


def _convolve(layer: Any, x: Tensor) -> Tensor:
    """A layer of RLFN on features that were divided by the half span."""
    return F.conv2d(x, layer.weight, layer.bias / _HALF_SPAN, padding=layer.padding)


def _most_telling(features: Tensor, readers: Sequence[nn.Conv2d], count: int) -> Tensor:
    """Indices of ``count`` channels of ``(n, C, h, w)``, without those that are missed least.

    What is lost with a channel is its variance given the others, 1 / (inverse covariance)_jj,
    times the squared weights that the layers after it read it with.
    """
    covariance = torch.cov(features.transpose(0, 1).flatten(1).double())
    covariance += _RIDGE * covariance.diagonal().max() * torch.eye(len(covariance))
    read = torch.stack([r.weight.double().square().sum((0, 2, 3)) for r in readers]).sum(0)
    kept = list(range(len(covariance)))
    while len(kept) > count:
        alone = 1 / torch.linalg.inv(covariance[kept][:, kept]).diagonal()
        kept.pop(int((alone * read[kept]).argmin()))
    return torch.tensor(kept)


def _fit(layer: Any, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Set a layer to the least-squares map of ``inputs`` to ``outputs``; returns what it gives."""
    size, padding = layer.kernel_size, layer.padding
    features = layer.in_channels * size[0] * size[1] + (layer.bias is not None)
    normal = torch.zeros(features, features, dtype=torch.float64)
    right = torch.zeros(features, layer.out_channels, dtype=torch.float64)
    for x, y in zip(inputs.split(8), outputs.split(8), strict=True):
        columns = F.unfold(x, size, padding=padding).transpose(0, 1).flatten(1)
        if layer.bias is not None:
            columns = torch.cat([columns, torch.ones_like(columns[:1])])
        normal += columns @ columns.T
        right += columns @ y.transpose(0, 1).flatten(1).T
    normal += _RIDGE * normal.diagonal().max() * torch.eye(features)
    solution = torch.linalg.solve(normal, right).float().T
    if layer.bias is not None:
        layer.bias.copy_(solution[:, -1])
        solution = solution[:, :-1]
    layer.weight.copy_(solution.reshape(layer.weight.shape))
    return layer(inputs)
