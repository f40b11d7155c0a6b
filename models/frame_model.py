"""What a network must offer to super-resolve tiles, and the two that do: compact and bicubic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from difiisr_models.compact import CompactNetwork, parameter_count
from difiisr_models.diffusion import latent_input_scale, sample
from difiisr_models.resample import PHASES, upsample
from difiisr_models.schedule import Schedule, respace


class FrameModel(Protocol):
    """A x4 model of normalised one-channel tiles.

    Attributes:
        noise_channels: channels of its noise field at low resolution; 0 = it draws none.
        multiple: tile sides must be multiples of this.
        input_limit: it is shown values in [-limit, limit].
        parameter_count: trainable values.
    """

    noise_channels: int
    multiple: int
    input_limit: float
    parameter_count: int

    def super_resolve(
        self, lr: Tensor, noise: Callable[[int], Tensor], steps: int, fidelity: float
    ) -> Tensor:
        """Tiles ``lr (n, 1, h, w)`` -> packed ``(n, 16, h, w)``, all in network units.

        ``noise(k)`` gives the k-th draw, ``(n, noise_channels, h, w)``.
        """
        ...


class BicubicModel:
    """The honest baseline: bicubic x4, no network."""

    noise_channels = 0
    multiple = 1
    parameter_count = 0

    def __init__(self, input_limit: float) -> None:
        self.input_limit = input_limit

    def super_resolve(
        self, lr: Tensor, noise: Callable[[int], Tensor], steps: int, fidelity: float
    ) -> Tensor:
        """See :class:`FrameModel`; ``noise``, ``steps`` and ``fidelity`` have nothing to act on."""
        return upsample(lr)


class CompactModel:
    """The compact network inside the residual-shifting sampler."""

    noise_channels = PHASES
    multiple = 1

    def __init__(
        self,
        network: CompactNetwork,
        schedule: Schedule,
        input_limit: float,
        autocast: torch.dtype | None = None,
    ) -> None:
        """``autocast``: dtype of the network's convolutions, ``None`` for float32."""
        self._network, self._schedule, self._autocast = network, schedule, autocast
        self.input_limit = input_limit
        self.parameter_count = parameter_count(network)

    def super_resolve(
        self, lr: Tensor, noise: Callable[[int], Tensor], steps: int, fidelity: float
    ) -> Tensor:
        """See :class:`FrameModel`."""
        schedule = respace(self._schedule, steps)
        y = upsample(lr)
        wanted = torch.full((1,), fidelity, device=lr.device)

        def denoise(x_t: Tensor, t: int) -> Tensor:
            step = torch.full((1,), int(schedule.timesteps[t - 1]), device=lr.device)
            scaled = x_t * latent_input_scale(t, schedule)
            with torch.autocast(lr.device.type, self._autocast, self._autocast is not None):
                return self._network(scaled, y, lr, step, wanted).float()

        return sample(denoise, y, schedule, noise)
