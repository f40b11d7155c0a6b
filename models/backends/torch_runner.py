"""The network in torch itself: eager or compiled, CUDA graphs on a GPU."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from difiisr_models.backends import NetworkSource
from difiisr_models.compact import CompactNetwork, widened
from difiisr_models.precision import with_precision

_GRAPHS = 4  # shapes whose CUDA graphs are kept; each holds the activations of one call
_WARM_UP_CALLS = 3


class TorchRunner:
    """See :class:`difiisr_models.backends.NetworkRunner`; takes tiles of every shape."""

    shape = None

    def __init__(self, source: NetworkSource) -> None:
        network = with_precision(_of_a_width_that_suits(source), source.precision)
        network = network.to(source.device, memory_format=torch.channels_last)
        # Of fixed sizes: convolutions of sizes left open are not laid out for the GPU.
        run = torch.compile(network, dynamic=False) if source.compile else network
        self._run = CudaGraphs(run) if source.device.type == "cuda" else run

    def __call__(self, x_t: Tensor, y: Tensor, lr: Tensor, t: Tensor, fidelity: Tensor) -> Tensor:
        """See :class:`difiisr_models.backends.NetworkRunner`."""
        with torch.inference_mode():
            return self._run(x_t, y, lr, t, fidelity)


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor


class CudaGraphs:
    """A function of CUDA tensors, recorded once per shapes and dtypes, and replayed at one launch.

    The result is overwritten by the next call of the same kind.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self._captured: OrderedDict[tuple, _Captured] = OrderedDict()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Copy the inputs to where the recording reads them, and replay."""
        key = tuple((value.shape, value.dtype) for value in inputs)
        if key not in self._captured:
            if len(self._captured) == _GRAPHS:
                self._captured.popitem(last=False)
            self._captured[key] = self._capture(inputs)
        self._captured.move_to_end(key)
        captured = self._captured[key]
        for static, value in zip(captured.inputs, inputs, strict=True):
            static.copy_(value)
        captured.graph.replay()
        return captured.output

    def _capture(self, inputs: tuple[Tensor, ...]) -> _Captured:
        static = tuple(value.clone() for value in inputs)
        with torch.cuda.device(inputs[0].device):  # recording looks at the current GPU alone
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP_CALLS):
                    self._function(*static)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                output = self._function(*static)
        return _Captured(graph, static, output)


def _of_a_width_that_suits(source: NetworkSource) -> CompactNetwork:
    """The network, on Hopper filled up with zeros to a whole number of 64 channels.

    There cuDNN convolves 64 channels in less time than 48 (benchmarks/network_h200.json): compiled,
    fp16 2.1 against 3.4 ms, bf16 2.1 against 2.3; not so bf16 uncompiled. Other GPUs were not
    measured.
    """
    network, channels = source.network, source.network.config.channels
    gains = source.precision == "fp16" or (source.precision == "bf16" and source.compile)
    if not gains or source.device.type != "cuda":
        return network
    hopper = torch.cuda.get_device_capability(source.device) == (9, 0)
    return widened(network, channels + -channels % 64) if hopper else network


def build_runner(source: NetworkSource) -> TorchRunner:
    """See :mod:`difiisr_models.backends`."""
    return TorchRunner(source)
