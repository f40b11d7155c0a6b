"""The compact network: residual-shifting diffusion without an autoencoder.

Everything runs at low resolution: x_t and the prediction are packed (pixel-unshuffled), so a frame
of ``(h, w)`` is ``h x w`` positions of plain 3x3 convolutions, which every runtime compiles well.
There is no normalisation layer: smooth thermal tiles cannot overflow half precision through one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difiisr_models.diffusion import timestep_embedding
from difiisr_models.resample import PHASES

PAST_PLANES = PHASES + 5
"""What a recurrent network is told of the frames before, see ``recurrence.past_planes``."""


@dataclass(frozen=True)
class CompactConfig:
    """Sizes of the compact network.

    Attributes:
        channels: width of every convolution.
        blocks: residual blocks of three convolutions each.
        time_features: width of the step embedding.
        recurrent: reads the frames before, and the noise, beside the frame.
    """

    channels: int = 48
    blocks: int = 6
    time_features: int = 64
    recurrent: bool = False

    def __post_init__(self) -> None:
        if min(self.channels, self.blocks, self.time_features) < 1 or self.time_features % 2:
            raise ValueError(f"sizes must be 1 or more, and time_features even, got {self}")


class ResidualBlock(nn.Module):
    """Three convolutions, the input added, and a mix of the channels; the step scales and shifts.

    The block of RLFN (Kong et al., CVPR workshops 2022) without its spatial attention, which takes
    8 to 14 % of the time on a CPU.
    """

    def __init__(self, channels: int, time_features: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3)
        )
        self.mix = nn.Conv2d(channels, channels, 1)
        self.film = nn.Linear(time_features, 2 * channels)
        self.act = nn.LeakyReLU(0.05, inplace=True)  # a tenth of the time on a CPU
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """``x (B, C, h, w)``, ``time (B, E)`` -> ``(B, C, h, w)``."""
        h = self.act(self._scaled_and_shifted(x, *self.film(time).chunk(2, dim=1)))
        h = self.act(self.conv3(self.act(self.conv2(h))))
        return self.mix(h + x)

    def _scaled_and_shifted(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """(1 + scale) conv1(x) + shift, for scale and shift ``(B, C)`` or ``(1, C)``."""
        conv = self.conv1
        if len(scale) > 1 or torch.compiler.is_compiling():  # a compiler does better by itself
            scale, shift = scale[:, :, None, None], shift[:, :, None, None]
            # In this order ONNX Runtime folds both into the convolution, and the activation after.
            return conv(x) * (1 + scale) + shift
        # One step for all is a convolution with other weights: up to a seventh less time on a CPU.
        assert conv.bias is not None, "it is made with one"
        scale, shift = 1 + scale[0], shift[0]
        weight, bias = conv.weight * scale[:, None, None, None], conv.bias * scale + shift
        return F.conv2d(x.to(weight.dtype), weight, bias, padding=1)


class CompactNetwork(nn.Module):
    """Predicts x_0 from x_t, the step and the measured frame, at a chosen fidelity.

    Two heads share the trunk: the posterior mean, and the detail that turns it into a perceptual
    sample. ``fidelity`` moves along the straight line between the two estimators, which is the
    optimal distortion-perception trade-off (Freirich et al., NeurIPS 2021).
    """

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        c, e = config.channels, config.time_features
        self.config = config
        self.time = nn.Sequential(nn.Linear(e, e), nn.SiLU(), nn.Linear(e, e), nn.SiLU())
        self.gate = nn.Linear(e, c)
        self.stem_x = nn.Conv2d(PHASES, c, 3, padding=1, bias=False)
        self.stem_lr = nn.Conv2d(1, c, 3, padding=1)
        if config.recurrent:  # at zero it computes what its single-frame sibling does
            self.stem_past = nn.Conv2d(PAST_PLANES, c, 3, padding=1, bias=False)
            nn.init.zeros_(self.stem_past.weight)
        self.blocks: Any = nn.ModuleList(ResidualBlock(c, e) for _ in range(config.blocks))
        self.fuse = nn.Conv2d(c, c, 3, padding=1)
        self.mean_head = nn.Conv2d(c, PHASES, 3, padding=1)
        self.detail_head = nn.Conv2d(c, PHASES, 3, padding=1)
        self.reset_detail()

    def reset_detail(self) -> None:
        """Make the perceptual sample equal to the posterior mean, as before any training."""
        for weights in self.detail_head.parameters():
            nn.init.zeros_(weights)

    def estimates(
        self, x_t: Tensor, y: Tensor, lr: Tensor, t: Tensor, past: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Both ends of the line: the posterior mean, and the detail to add for a sample.

        Args:
            x_t: ``(B, 16, h, w)`` packed noisy image, times 1 / sqrt(kappa^2 eta_t + 1).
            y: ``(B, 16, h, w)`` packed bicubic image; the network adds to it.
            lr: ``(B, 1, h, w)`` the measured frame in [-1, 1] (values to +-6 are shown).
            t: ``(B,)`` or ``(1,)`` step, counted from 0.
            past: ``(B, 21, h, w)`` of ``recurrence.past_planes``, for a recurrent network alone.

        Returns:
            Two of ``(B, 16, h, w)``.
        """
        h = self._features(x_t, lr, t, past)
        return y + self.mean_head(h), self.detail_head(h)

    def forward(
        self,
        x_t: Tensor,
        y: Tensor,
        lr: Tensor,
        t: Tensor,
        fidelity: Tensor,
        past: Tensor | None = None,
    ) -> Tensor:
        """x_0 at a fidelity ``(1,)``: 1 = posterior mean, 0 = perceptual sample.

        The other arguments are those of :meth:`estimates`. Both heads are linear, so that their
        mixture is one convolution with mixed weights.

        Returns:
            ``(B, 16, h, w)``; of a recurrent network ``(B, 32, h, w)``, x_0 and then the posterior
            mean, which is what the next frame is to be told.
        """
        h, mean, detail = self._features(x_t, lr, t, past), self.mean_head, self.detail_head
        assert mean.bias is not None, "it is made with one"
        assert detail.bias is not None, "it is made with one"
        share = (1 - fidelity).to(mean.weight.dtype)
        weight, bias = mean.weight + share * detail.weight, mean.bias + share * detail.bias
        if past is not None:
            weight, bias = torch.cat((weight, mean.weight)), torch.cat((bias, mean.bias))
            y = torch.cat((y, y), dim=1)
        return y + F.conv2d(h.to(weight.dtype), weight, bias, padding=1)

    def _features(self, x_t: Tensor, lr: Tensor, t: Tensor, past: Tensor | None) -> Tensor:
        """What both heads read, ``(B, C, h, w)``."""
        embedding = timestep_embedding(t, self.config.time_features).to(lr.dtype)
        time = self.time(embedding)
        gate = self.gate(time)[:, :, None, None]
        stem = self.stem_x(x_t) * gate + self.stem_lr(lr)
        if past is not None:
            stem = stem + self.stem_past(past)
        h = stem
        for block in self.blocks:
            h = block(h, time)
        return self.fuse(h) + stem


Runner = Callable[..., Tensor]
"""Runs a compact network: called as ``CompactNetwork.forward`` is, by position.

All tensors lie on one device, ``t (1,)`` is int64, the others are float32; the next call may
overwrite the result. An attribute ``shape`` is the only (batch, height, width) that it takes.
"""


@torch.no_grad()
def embed(network: CompactNetwork, inside: CompactNetwork) -> None:
    """Give ``inside``, which is not narrower and has as many blocks or more, the weights of
    ``network``, in place.

    It then computes what ``network`` does, if its blocks beyond those of ``network`` pass their
    input on: it never reads the channels that were added (Net2Net; Chen et al., ICLR 2016).
    """
    weights = inside.state_dict()
    for name, value in network.state_dict().items():
        halves = 2 if ".film." in name else 1  # scale and shift
        for place, part in zip(weights[name].chunk(halves), value.chunk(halves), strict=True):
            place[: len(part)] = 0
            place[tuple(slice(size) for size in part.shape)] = part


def widened(network: CompactNetwork, channels: int) -> CompactNetwork:
    """What ``network`` computes, with ``channels`` in all its convolutions: the added are zero."""
    config = replace(network.config, channels=channels)
    with torch.device("meta"):
        shapes = CompactNetwork(config).state_dict()
    wide = build_compact(config, {name: torch.zeros(v.shape) for name, v in shapes.items()})
    embed(network, wide)
    return wide


def parameter_count(network: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in network.parameters())


def build_compact(config: CompactConfig, state: dict[str, Tensor]) -> CompactNetwork:
    """Network in evaluation mode with the given weights; raises on any missing or extra name."""
    with torch.device("meta"):
        network = CompactNetwork(config)
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)
