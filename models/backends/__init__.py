"""What runs a network: torch, ONNX Runtime, OpenVINO or TensorRT, each behind a ``compact.Runner``.

``selection`` chooses among functions ``(source: NetworkSource) -> Runner``, which raise
:class:`BackendUnavailable` where they cannot work.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from difiisr_models.compact import PAST_PLANES, CompactNetwork
from difiisr_models.resample import PHASES
from difiisr_models.settings import SMALLEST_OWN_TILE, Runtime

NETWORK_INPUTS = ("x_t", "y", "lr", "t", "fidelity", "past")
"""The last one of a recurrent network alone."""

NETWORK_OUTPUT = "x_0"


class BackendUnavailable(ValueError):
    """A backend cannot run this network here; the text says why and what to install or run."""


class EngineRefused(BackendUnavailable):
    """An engine file is not the one for this network, machine and runtime, or is not safe."""


@dataclass(frozen=True)
class NetworkSource:
    """What a backend builds its runner from.

    Attributes:
        network: float32, in evaluation mode, on the CPU; a backend that changes it copies it.
        weights_sha256: of the file that the network was read from.
        device: where the runner's tensors will lie.
        runtime: precision, tiles, the engine file and the rest of what was asked for.
        model: its name or path, for commands that errors suggest.
        int8: file of its graph in 8 bits, if there is one; whoever sets it has checked it.
    """

    network: CompactNetwork
    weights_sha256: str
    device: torch.device
    runtime: Runtime = Runtime()
    model: str = "MODEL"
    int8: Path | None = None

    @property
    def tile_shape(self) -> tuple[int, int, int]:
        """(batch, height, width) of the tiles that a runner of one shape is built for."""
        side = self.runtime.tile or SMALLEST_OWN_TILE
        return self.runtime.tile_batch, side, side


def example_inputs(
    batch: int, height: int, width: int, recurrent: bool = False
) -> dict[str, Tensor]:
    """Random inputs of a compact network by name, on the CPU, always the same."""
    x_t, y, lr, past = (
        torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))
        for seed, channels in ((1, PHASES), (2, PHASES), (3, 1), (4, PAST_PLANES))
    )
    values = (x_t, y, lr, torch.tensor([14]), torch.tensor([0.5]), past)
    return dict(zip(NETWORK_INPUTS, values if recurrent else values[:-1], strict=False))
