"""Trains a published peer on with our crops: does ours lead by its data alone?

    python -m benchmarks.fine_tuned_peer --data DATA --peers PEERS --out tuned

The peer begins with its published weights and sees the crops of a preset, in that preset's order,
under its loss, optimiser and schedule. ``difiisr evaluate --models tuned/safmn_ntire23_x4.pth``
judges what comes out.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from difiisr_ros.commands.train_model import load_source, preset_or_file
from difiisr_training import train as training
from difiisr_training.config import load_config
from difiisr_training.evaluation.peers import PUBLISHED_FILES, load_published_network
from difiisr_training.losses import distance


class PeerLoss(nn.Module):
    """The configured distance of a peer's result from the truth, on images of three channels.

    A crop is shown from -1 to 1 as from black to white, or from its own minimum to its own maximum
    where those are beyond: outside its range SAFMN overflows.
    """

    def __init__(self, network: nn.Module, white: float, norm: str) -> None:
        super().__init__()
        self.network, self._white, self._norm = network, white, norm

    def forward(self, lr: Tensor, hr: Tensor, *_: object) -> Tensor:
        """``lr (B, 1, h, w)`` and ``hr (B, 1, 4h, 4w)`` in network units -> the batch's mean."""
        black = lr.amin((1, 2, 3), keepdim=True).clamp_max(-1)
        span = (lr.amax((1, 2, 3), keepdim=True).clamp_min(1) - black) / self._white
        result = self.network(((lr - black) / span).expand(-1, 3, -1, -1))
        estimate = result.float().mean(1, keepdim=True) * span + black
        return distance(estimate, hr, self._norm).mean()


def main() -> None:
    """Train; write the moving average in the form of the published file, under its name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peers", type=Path, required=True, help="folder of the published weights")
    parser.add_argument("--peer", default="safmn", choices=sorted(PUBLISHED_FILES))
    parser.add_argument("--config", default="equal_crops")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    config = load_config(preset_or_file(options.config))

    def build() -> nn.Module:
        return load_published_network(options.peer, options.peers, "cpu")[0].requires_grad_(True)

    _, white = load_published_network(options.peer, options.peers, "cpu")
    accelerator = training.make_accelerator(config, "cpu")
    load = partial(load_source, data=options.data)
    loss_of = partial(PeerLoss, white=white, norm=config.norm)
    task = training.images_task(config, loss_of, load, accelerator, workers=1)
    state = training.train(config, replace(task, build=build), options.out, accelerator)
    weights = {name: value.contiguous() for name, value in state.ema.state_dict().items()}
    torch.save({"params": weights}, options.out / PUBLISHED_FILES[options.peer])


if __name__ == "__main__":
    main()
