"""What runs a network: torch, ONNX Runtime or TensorRT, each behind :class:`NetworkRunner`.

Every backend is a module with ``build_runner(source: NetworkSource) -> NetworkRunner``, which
raises :class:`BackendUnavailable` where it cannot work; ``selection`` chooses among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from difiisr_models.compact import CompactNetwork
from difiisr_models.precision import PRECISIONS

__all__ = [
    "ENGINE_MISMATCH",
    "PRECISIONS",
    "BackendUnavailable",
    "EngineRefused",
    "NetworkRunner",
    "NetworkSource",
]

ENGINE_MISMATCH = ("rebuild", "fallback", "fail")
"""What can be done about an engine that does not fit."""


class BackendUnavailable(ValueError):
    """A backend cannot run this network here; the text says why and what to install or run."""


class EngineRefused(BackendUnavailable):
    """An engine file is not the one for this network, machine and runtime, or is not safe."""


class NetworkRunner(Protocol):
    """Runs a compact network: the arguments and the result of ``CompactNetwork.forward``.

    Attributes:
        shape: the one ``(batch, height, width)`` that it takes, None if it takes all.
    """

    shape: tuple[int, int, int] | None

    def __call__(self, x_t: Tensor, y: Tensor, lr: Tensor, t: Tensor, fidelity: Tensor) -> Tensor:
        """Predict x_0 ``(B, 16, h, w)`` float32.

        All tensors lie on the source's device: ``x_t`` and ``y (B, 16, h, w)`` and
        ``lr (B, 1, h, w)`` float32, ``t (1,)`` int64, ``fidelity (1,)`` float32. The result may be
        overwritten by the next call.
        """
        ...


@dataclass(frozen=True)
class NetworkSource:
    """What a backend builds its runner from.

    Attributes:
        network: float32, in evaluation mode, on the CPU; a backend that changes it copies it.
        weights_sha256: of the file that the network was read from.
        device: where the runner's tensors will lie.
        precision: one of :data:`PRECISIONS`.
        compile: whether the torch backend runs ``torch.compile``.
        engine: the TensorRT engine file to run, None for none given.
        engine_mismatch: what to do when it does not fit: one of :data:`ENGINE_MISMATCH`.
            ``rebuild`` is done by the backend; it raises :class:`EngineRefused` for the others.
        tile: side of the largest tile, low-resolution pixels.
        tile_given: whether somebody asked for that side.
        tile_batch: tiles per call, at most.
        model: its name or path, for commands that errors suggest.
    """

    network: CompactNetwork
    weights_sha256: str
    device: torch.device
    precision: str = "fp32"
    compile: bool = False
    engine: Path | None = None
    engine_mismatch: str = "fallback"
    tile: int = 256
    tile_given: bool = False
    tile_batch: int = 1
    model: str = "MODEL"
