"""What a network must offer to super-resolve tiles, and the two that do: compact and bicubic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from difiisr_models.backends import NetworkRunner
from difiisr_models.diffusion import NoiseSource, latent_input_scale, sample
from difiisr_models.resample import PHASES, upsample
from difiisr_models.schedule import Schedule, respace

_WHOLE_FRAME = 640  # of the usual cameras: a border between tiles is work done twice
SMALLEST_OWN_TILE = 256
"""Of the models here."""


class FrameModel(Protocol):
    """A x4 model of normalised one-channel tiles.

    Attributes:
        noise_channels: channels of its noise field at low resolution; 0 = it draws none.
        multiple: tile sides must be multiples of this.
        tile_shape: (batch, height, width) of the only tiles that it takes, None for any.
        own_tile: side of the largest tile where nobody asks for another.
        input_limit: it is shown values in [-limit, limit].
        parameter_count: trainable values.
    """

    noise_channels: int
    multiple: int
    tile_shape: tuple[int, int, int] | None
    own_tile: int
    input_limit: float
    parameter_count: int

    def super_resolve(
        self, lr: Tensor, noise: Callable[[int], Tensor], steps: int, fidelity: float
    ) -> Tensor:
        """Tiles ``lr (n, 1, h, w)`` -> packed ``(n, 16, h, w)``, all in network units.

        ``noise(k)`` gives the k-th draw, ``(n, noise_channels, h, w)``. With a ``tile_shape``, n
        is at most its batch.
        """
        ...


class BicubicModel:
    """The honest baseline: bicubic x4, no network."""

    noise_channels = 0
    multiple = 1
    tile_shape = None
    own_tile = _WHOLE_FRAME
    parameter_count = 0

    def __init__(self, input_limit: float) -> None:
        self.input_limit = input_limit

    def super_resolve(
        self, lr: Tensor, noise: Callable[[int], Tensor], steps: int, fidelity: float
    ) -> Tensor:
        """See :class:`FrameModel`; ``noise``, ``steps`` and ``fidelity`` have nothing to act on."""
        return upsample(lr)


class CompactModel:
    """The compact network, in whatever runs it, inside the residual-shifting sampler."""

    noise_channels = PHASES
    multiple = 1
    own_tile = _WHOLE_FRAME

    def __init__(
        self,
        runner: NetworkRunner,
        parameter_count: int,
        schedule: Schedule,
        input_limit: float,
    ) -> None:
        """``schedule``: all T levels that the network was trained with."""
        self._runner, self._schedule = runner, schedule
        self.tile_shape = runner.shape
        self.parameter_count = parameter_count
        self.input_limit = input_limit

    def super_resolve(
        self, lr: Tensor, noise: Callable[[int], Tensor], steps: int, fidelity: float
    ) -> Tensor:
        """See :class:`FrameModel`."""
        wanted = torch.full((1,), float(fidelity), device=lr.device)
        if self.tile_shape is None or len(lr) == self.tile_shape[0]:
            return sample_compact(self._runner, self._schedule, lr, noise, steps, wanted)
        batch = self.tile_shape[0]
        full = sample_compact(
            self._runner,
            self._schedule,
            _filled(lr, batch),
            lambda k: _filled(noise(k), batch),
            steps,
            wanted,
        )
        return full[: len(lr)]


def sample_compact(
    network: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor],
    schedule: Schedule,
    lr: Tensor,
    noise: NoiseSource,
    steps: int,
    fidelity: Tensor,
) -> Tensor:
    """Sample with a compact network.

    Args:
        network: a ``CompactNetwork`` or its ``NetworkRunner``.
        schedule: all T levels.
        lr: ``(B, 1, h, w)`` in network units.
        noise: ``noise(k)`` is the k-th standard normal draw ``(B, 16, h, w)``.
        steps: 1..T.
        fidelity: ``(1,)``, see ``CompactNetwork.forward``.

    Returns:
        Packed ``(B, 16, h, w)``.
    """
    schedule = respace(schedule, steps)
    y = upsample(lr)

    def denoise(x_t: Tensor, t: int) -> Tensor:
        step = torch.full((1,), int(schedule.timesteps[t - 1]), device=lr.device)
        return network(x_t * latent_input_scale(t, schedule), y, lr, step, fidelity)

    return sample(denoise, y, schedule, noise)


def _filled(tiles: Tensor, batch: int) -> Tensor:
    """``tiles`` followed by copies of the last, ``batch`` in all."""
    return torch.cat([tiles, tiles[-1:].expand(batch - len(tiles), -1, -1, -1)])
