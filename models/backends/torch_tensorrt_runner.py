"""The network compiled by torch_tensorrt, for workstations that have it beside torch."""

from __future__ import annotations

import torch
from torch import Tensor

from difiisr_models.backends import BackendUnavailable, NetworkSource
from difiisr_models.precision import with_precision
from difiisr_models.resample import PHASES

_VERSIONS = "2.11 for torch 2.11, 2.12 for torch 2.12, 2.13 for torch 2.13, 2.14 for torch 2.14"


class TorchTensorRTRunner:
    """See :class:`difiisr_models.backends.NetworkRunner`; takes tiles of one shape."""

    def __init__(self, network: torch.nn.Module, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self._network = network

    def __call__(self, x_t: Tensor, y: Tensor, lr: Tensor, t: Tensor, fidelity: Tensor) -> Tensor:
        """See :class:`difiisr_models.backends.NetworkRunner`."""
        return self._network(x_t, y, lr, t, fidelity)


def build_runner(source: NetworkSource) -> TorchTensorRTRunner:
    """See :mod:`difiisr_models.backends`; compiles for square tiles of ``source.tile``.

    Raises:
        BackendUnavailable: the device is no CUDA GPU.
        ModuleNotFoundError: torch_tensorrt is not installed.
    """
    if source.device.type != "cuda":
        raise BackendUnavailable(f"needs a CUDA GPU, the device is {source.device}")
    try:
        import torch_tensorrt
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"torch_tensorrt is not installed: pip install the release for torch "
            f"{torch.__version__} ({_VERSIONS}); there is none for Jetson Orin after 2.8"
        ) from error
    batch, side = source.tile_batch, source.tile
    network = with_precision(source.network, source.precision).to(source.device)
    example = (
        torch.zeros(batch, PHASES, side, side, device=source.device),
        torch.zeros(batch, PHASES, side, side, device=source.device),
        torch.zeros(batch, 1, side, side, device=source.device),
        torch.zeros(1, dtype=torch.int64, device=source.device),
        torch.zeros(1, device=source.device),
    )
    compiled = torch_tensorrt.compile(
        network.eval(),
        ir="dynamo",
        inputs=list(example),
        device=source.device,
        use_explicit_typing=True,
    )
    return TorchTensorRTRunner(compiled, (batch, side, side))
