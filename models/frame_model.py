"""What a model must offer to super-resolve tiles, and two that do: interpolation, compact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from difiisr_models.diffusion import NoiseSource, Schedule, latent_input_scale, respace, sample
from difiisr_models.plausibility import EstimateLimits
from difiisr_models.resample import PHASES, upsample

_WHOLE_FRAME = 640  # of the usual cameras: a border between tiles is work done twice


class FrameModel(Protocol):
    """A x4 model of normalised one-channel tiles.

    Attributes:
        noise_channels: channels of its noise field at low resolution; 0 = it draws none.
        multiple: tile sides must be multiples of this.
        tile_shape: (batch, height, width) of the only tiles that it takes, None for any.
        own_tile: side of the largest tile where nobody asks for another.
        input_limit: it is shown values in [-limit, limit].
        is_projected: the consistency step follows it.
        limits: of its estimates; None where there is nothing to doubt.
        is_recurrent: it is told of the frames before, and of the noise.
        max_steps: diffusion steps that it can take.
        parameter_count: trainable values.
    """

    noise_channels: int
    multiple: int
    tile_shape: tuple[int, int, int] | None
    own_tile: int
    input_limit: float
    is_projected: bool
    limits: EstimateLimits | None
    is_recurrent: bool
    max_steps: int
    parameter_count: int

    def super_resolve(
        self,
        lr: Tensor,
        noise: NoiseSource,
        steps: int,
        fidelity: float | Tensor,
        past: Tensor | None = None,
    ) -> Tensor:
        """Tiles ``lr (n, 1, h, w)`` -> packed ``(n, 16, h, w)``, all in network units.

        ``noise(k)`` gives the k-th draw, ``(n, noise_channels, h, w)``. ``past (n, 20, h, w)`` is
        for a recurrent model, which returns ``(n, 32, h, w)``: the result, and the posterior mean.
        """
        ...


class BicubicModel:
    """The honest baseline: bicubic x4, no network.

    ``is_projected``: the consistency step follows (``bicubic-consistent``), or it is interpolation
    and nothing else (``bicubic``).
    """

    noise_channels = 0
    multiple = 1
    tile_shape = None
    own_tile = _WHOLE_FRAME
    limits = None
    is_recurrent = False
    max_steps = 15  # all that settings allow
    parameter_count = 0

    def __init__(self, is_projected: bool, input_limit: float) -> None:
        self.is_projected, self.input_limit = is_projected, input_limit

    def super_resolve(
        self,
        lr: Tensor,
        noise: NoiseSource,
        steps: int,
        fidelity: float | Tensor,
        past: Tensor | None = None,
    ) -> Tensor:
        """See :class:`FrameModel`; there is nothing for what follows ``lr`` to act on."""
        return upsample(lr)


class CompactModel:
    """The compact network, in whatever runs it, inside the residual-shifting sampler."""

    noise_channels = PHASES
    multiple = 1
    own_tile = _WHOLE_FRAME
    is_projected = True

    def __init__(
        self,
        runner: Callable[..., Tensor],
        parameter_count: int,
        schedule: Schedule,
        input_limit: float,
        limits: EstimateLimits = EstimateLimits(),
        is_recurrent: bool = False,
    ) -> None:
        """Put a network to work.

        Args:
            runner: a ``CompactNetwork`` or what runs it, see :mod:`difiisr_models.backends`.
            parameter_count: of the network.
            schedule: all T levels that it was trained with.
            input_limit: it is shown [-limit, limit].
            limits: of its estimates.
            is_recurrent: whether it reads the frames before.
        """
        self._runner, self._schedule = runner, schedule
        self.tile_shape = getattr(runner, "shape", None)
        self.parameter_count, self.max_steps = parameter_count, schedule.steps
        self.input_limit, self.limits, self.is_recurrent = input_limit, limits, is_recurrent

    def super_resolve(
        self,
        lr: Tensor,
        noise: NoiseSource,
        steps: int,
        fidelity: float | Tensor,
        past: Tensor | None = None,
    ) -> Tensor:
        """See :class:`FrameModel`; ``fidelity`` is that of ``CompactNetwork.forward``."""
        schedule = respace(self._schedule, steps)
        y = upsample(lr)
        if not isinstance(fidelity, Tensor):
            fidelity = torch.full((1,), float(fidelity), device=lr.device)

        def denoise(x_t: Tensor, t: int) -> Tensor:
            step = torch.full((1,), int(schedule.timesteps[t - 1]), device=lr.device)
            inputs = (x_t * latent_input_scale(t, schedule), y, lr, step, fidelity)
            if past is None:
                return self._runner(*inputs)
            x0, *mean = self._runner(*inputs, past).split(PHASES, dim=1)
            means[:] = mean
            return x0

        means: list[Tensor] = []  # of a recurrent network: that of the last step
        x0 = sample(denoise, y, schedule, noise)
        return torch.cat((x0, *means), dim=1) if means else x0
