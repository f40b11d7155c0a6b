"""The network in torch itself: eager, compiled or through torch_tensorrt; CUDA graphs on a GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from difiisr_models.backends import BackendUnavailable, NetworkSource, example_inputs
from difiisr_models.compact import CompactNetwork, Runner, widened

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

_GRAPHS = 4  # shapes whose CUDA graphs are kept; each holds the activations of one call
_WARM_UP_CALLS = 3


class CudaGraphs:
    """A function of CUDA tensors, recorded once per shapes and dtypes, and replayed at one launch.

    The result is overwritten by the next call of the same kind.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self._recorded: dict[tuple, tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Tensor]] = {}

    @torch.inference_mode()
    def __call__(self, *inputs: Tensor) -> Tensor:
        """Copy the inputs to where the recording reads them, and replay."""
        key = tuple((value.shape, value.dtype) for value in inputs)
        if key not in self._recorded and len(self._recorded) == _GRAPHS:
            del self._recorded[next(iter(self._recorded))]
        recorded = self._recorded.pop(key, None) or self._record(inputs)
        self._recorded[key] = recorded  # last: the one that goes first is the one used least lately
        graph, read, output = recorded
        for static, value in zip(read, inputs, strict=True):
            static.copy_(value)
        graph.replay()
        return output

    def _record(
        self, inputs: tuple[Tensor, ...]
    ) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Tensor]:
        static = tuple(value.clone() for value in inputs)
        with torch.cuda.device(inputs[0].device):  # recording looks at the current GPU alone
            graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # left again, also by a recording that fails
                for _ in range(_WARM_UP_CALLS):
                    self._function(*static)
                with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                    output = self._function(*static)
            torch.cuda.current_stream().wait_stream(side)
        return graph, static, output


def dtype_of(precision: str) -> torch.dtype | None:
    """Of convolutions and matrix products; None leaves them in float32, as all else always is.

    Raises BackendUnavailable for int8.
    """
    if precision not in _DTYPES:
        raise BackendUnavailable(
            f"torch computes in {', '.join(_DTYPES)}; {precision} needs OpenVINO or ONNX Runtime, "
            "and a model with a graph in 8 bits (difiisr quantise makes one)"
        )
    return _DTYPES[precision]


def with_precision(module: nn.Module, precision: str) -> nn.Module:
    """A copy whose convolutions and linear layers hold and compute half; fp32 copies as it is.

    Each such layer casts what it is given; all else computes in what reaches it, and the networks
    cast to float32 by themselves where they must (norms, softmax, code distances). The module's
    own result is float32.
    """
    dtype, module = dtype_of(precision), copy.deepcopy(module)
    if dtype is not None:
        for layer in module.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.to(dtype)
                layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype),))
        module.register_forward_hook(lambda _, inputs, output: output.float())
    return module


def build_torch_runner(source: NetworkSource) -> Runner:
    """The network itself, or what replays it: takes tiles of every shape."""
    network = with_precision(_of_a_width_that_suits(source), source.runtime.precision)
    network = network.to(source.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stubs
    # Of fixed sizes: convolutions of sizes left open are not laid out for the GPU.
    run = torch.compile(network, dynamic=False) if source.runtime.compile else network
    return CudaGraphs(run) if source.device.type == "cuda" else run


def _of_a_width_that_suits(source: NetworkSource) -> CompactNetwork:
    """The network, on Hopper filled up with zeros to a whole number of 64 channels.

    There cuDNN convolves 64 channels in less time than 48 (benchmarks/network_h200.json): compiled,
    fp16 2.1 against 3.4 ms, bf16 2.1 against 2.3; not so bf16 uncompiled.
    """
    network, channels = source.network, source.network.config.channels
    precision = source.runtime.precision
    gains = precision == "fp16" or (precision == "bf16" and source.runtime.compile)
    if not gains or source.device.type != "cuda":
        return network
    hopper = torch.cuda.get_device_capability(source.device) == (9, 0)
    return widened(network, channels + -channels % 64) if hopper else network


def build_torch_tensorrt_runner(source: NetworkSource) -> Runner:
    """The network compiled by torch_tensorrt for ``source.tile_shape``.

    Raises:
        BackendUnavailable: the device is no CUDA GPU, or nobody asked for tiles: whole frames in
            torch are less work than frames in tiles with borders of their own.
        ModuleNotFoundError: torch_tensorrt is not installed.
    """
    device, runtime = source.device, source.runtime
    if device.type != "cuda":
        raise BackendUnavailable(f"needs a CUDA GPU, the device is {device}")
    if runtime.backend != "torch_tensorrt" and not runtime.tile:
        raise BackendUnavailable("takes tiles of one size: set 'tile' to have it")
    try:
        import torch_tensorrt
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "torch_tensorrt is not installed: pip install its release for torch "
            f"{torch.__version__}; there is none for Jetson Orin after 2.8"
        ) from error
    examples = example_inputs(*source.tile_shape, source.network.config.recurrent).values()
    compiled = torch_tensorrt.compile(
        with_precision(source.network, runtime.precision).to(device).eval(),
        ir="dynamo", inputs=[value.to(device) for value in examples], device=device,
        use_explicit_typing=True,
    )  # fmt: skip
    compiled.shape = source.tile_shape
    return compiled
