"""What turns tiles into larger tiles: interpolation, or the compact network inside the sampler."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from difiisr_models.compact import CompactNetwork, Runner, parameter_count
from difiisr_models.diffusion import (
    NoiseSource,
    Schedule,
    ancestral_step,
    latent_input_scale,
    prior_sample,
    respace,
)
from difiisr_models.plausibility import EstimateLimits
from difiisr_models.radiometry import NETWORK_LIMIT
from difiisr_models.resample import PHASES, upsample


class FrameModel:
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
        sibling: of a recurrent model, for frames of which the past tells nothing; None: it makes
            them itself.
        max_steps: diffusion steps that it can take.
        parameter_count: trainable values.
    """

    noise_channels: int = 0
    multiple: int = 1
    tile_shape: tuple[int, int, int] | None = None
    own_tile: int = 640  # of the usual cameras: a border between tiles is work done twice
    input_limit: float = NETWORK_LIMIT
    is_projected: bool = True
    limits: EstimateLimits | None = None
    is_recurrent: bool = False
    sibling: FrameModel | None = None
    max_steps: int = 15  # all that settings allow
    parameter_count: int = 0

    def super_resolve(
        self,
        lr: Tensor,
        noise: NoiseSource,
        steps: int,
        fidelity: float | Tensor,
        past: Tensor | None = None,
    ) -> Tensor:
        """Tiles ``lr (n, 1, h, w)`` -> packed ``(n, 16, h, w)``, all in network units.

        ``noise(k)`` gives the k-th draw, ``(n, noise_channels, h, w)``. ``past (n, 21, h, w)`` is
        for a recurrent model, which returns ``(n, 32, h, w)``: the result, and the posterior mean.
        """
        raise NotImplementedError


class BicubicModel(FrameModel):
    """The honest baseline: bicubic x4, no network.

    With the consistency step (``bicubic-consistent``), or interpolation and nothing else
    (``bicubic``).
    """

    def __init__(self, is_projected: bool) -> None:
        self.is_projected = is_projected
        self.input_limit = NETWORK_LIMIT if is_projected else math.inf

    def super_resolve(self, lr: Tensor, *_: object) -> Tensor:
        """See :class:`FrameModel`; there is nothing for what follows ``lr`` to act on."""
        return upsample(lr)


BICUBIC = {"bicubic": BicubicModel(False), "bicubic-consistent": BicubicModel(True)}
"""The models without a network, by name."""


class CompactModel(FrameModel):
    """The compact network, in whatever runs it, inside the residual-shifting sampler."""

    noise_channels = PHASES

    def __init__(
        self,
        network: CompactNetwork,
        schedule: Schedule,
        runner: Runner | None = None,
        limits: EstimateLimits | None = EstimateLimits(),
        sibling: FrameModel | None = None,
    ) -> None:
        """Put a network to work.

        Args:
            network: as it was trained.
            schedule: all T levels that it was trained with.
            runner: what runs it, see :mod:`difiisr_models.backends`; by default itself.
            limits: of its estimates.
            sibling: of a recurrent network.
        """
        self._runner, self._schedule, self.limits = runner or network, schedule, limits
        self.sibling = sibling
        self.tile_shape = getattr(runner, "shape", None)
        self.max_steps = getattr(runner, "max_steps", None) or schedule.steps
        self.parameter_count = parameter_count(network)
        self.is_recurrent = network.config.recurrent

    def super_resolve(
        self,
        lr: Tensor,
        noise: NoiseSource,
        steps: int,
        fidelity: float | Tensor,
        past: Tensor | None = None,
    ) -> Tensor:
        """See :class:`FrameModel`; ``fidelity`` is that of ``CompactNetwork.forward``."""
        schedule, y = respace(self._schedule, steps), upsample(lr)
        if not isinstance(fidelity, Tensor):
            fidelity = torch.full((1,), float(fidelity), device=lr.device)
        told = () if past is None else (past,)
        x_t = prior_sample(y, noise(0), schedule)
        for k, t in enumerate(range(schedule.steps, 0, -1), start=1):
            step = torch.full((1,), int(schedule.timesteps[t - 1]), device=lr.device)
            scaled = x_t * latent_input_scale(t, schedule)
            estimate = self._runner(scaled, y, lr, step, fidelity, *told)
            if t > 1:
                x_t = ancestral_step(x_t, estimate[:, :PHASES], t, schedule, noise(k))
        return estimate
