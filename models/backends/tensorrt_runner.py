"""The network in TensorRT: an engine file of one shape, replayed as a CUDA graph."""

from __future__ import annotations

import logging
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difiisr_models.backends import (
    NETWORK_INPUTS,
    NETWORK_OUTPUT,
    BackendUnavailable,
    EngineRefused,
    NetworkSource,
    example_inputs,
)
from difiisr_models.backends.tensorrt_engine import (
    EngineDescription,
    build_engine,
    complaints,
    import_tensorrt,
    read_engine,
    read_sidecar,
    tensorrt_logger,
    this_machine,
)
from difiisr_models.backends.torch_runner import CudaGraphs

_LOG = logging.getLogger(__name__)


class TensorRTRunner:
    """See ``compact.NetworkRunner``; takes tiles of the engine's shape."""

    def __init__(self, plan: bytes, shape: tuple[int, int, int], device: torch.device) -> None:
        """Deserialise an engine and make it ready.

        Args:
            plan: bytes that ``read_engine`` has checked, on a machine with a driver.
            shape: (batch, height, width) of its tiles.
            device: the GPU.

        Raises:
            BackendUnavailable: TensorRT cannot deserialise or run the engine.
            EngineRefused: it is not the engine of a compact network of that shape.
        """
        complaints()  # of what was before
        self.shape = shape
        inputs = {name: value.to(device) for name, value in example_inputs(*shape).items()}
        self._kinds = {name: (tuple(value.shape), value.dtype) for name, value in inputs.items()}
        self._output = torch.empty_like(inputs["y"])
        with torch.cuda.device(device):
            self._runtime = import_tensorrt().Runtime(tensorrt_logger())
            engine = self._runtime.deserialize_cuda_engine(plan)
            if engine is None:
                _fail(f"TensorRT could not deserialise the engine of {len(plan)} bytes.")
            _check_tensors(engine, inputs | {NETWORK_OUTPUT: self._output})
            self._context = engine.create_execution_context()
            if self._context is None:
                megabytes = engine.device_memory_size_v2 / 1e6
                _fail(f"TensorRT could not get the {megabytes:.0f} MB of GPU memory that it needs.")
            # The engine must not be freed under work that is still queued.
            weakref.finalize(self, torch.cuda.synchronize, device)
            self._run = CudaGraphs(self._enqueue)
            self._run(*inputs.values())

    def __call__(self, x_t: Tensor, y: Tensor, lr: Tensor, t: Tensor, fidelity: Tensor) -> Tensor:
        """See ``compact.NetworkRunner``.

        Raises:
            ValueError: a tensor of another shape or dtype than the engine's.
        """
        inputs = (x_t, y, lr, t, fidelity)
        given = {
            name: (tuple(value.shape), value.dtype)
            for name, value in zip(NETWORK_INPUTS, inputs, strict=True)
        }
        if given != self._kinds:
            raise ValueError(f"the engine takes {self._kinds}, got {given}")
        return self._run(*inputs)

    def _enqueue(self, *inputs: Tensor) -> Tensor:
        """Queue the engine's work on torch's current stream."""
        held = [value.contiguous() for value in inputs]
        tensors = dict(zip(NETWORK_INPUTS, held, strict=True)) | {NETWORK_OUTPUT: self._output}
        for name, tensor in tensors.items():
            if not self._context.set_tensor_address(name, tensor.data_ptr()):
                _fail(f"TensorRT did not take the memory of tensor {name!r}.")
        stream = torch.cuda.current_stream(self._output.device)
        if not self._context.execute_async_v3(stream.cuda_stream):
            _fail("TensorRT could not queue the engine's work.")
        return self._output


def _fail(text: str) -> None:
    raise BackendUnavailable(text + complaints())


def _check_tensors(engine: Any, tensors: dict[str, Tensor]) -> None:
    """Raise EngineRefused unless the engine's tensors are those of a compact network."""
    wanted = {
        name: (
            "OUTPUT" if name == NETWORK_OUTPUT else "INPUT",
            "INT64" if value.dtype == torch.int64 else "FLOAT",
            tuple(value.shape),
        )
        for name, value in tensors.items()
    }
    found = {
        name: (
            engine.get_tensor_mode(name).name,
            engine.get_tensor_dtype(name).name,
            tuple(engine.get_tensor_shape(name)),
        )
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors))
    }
    if found != wanted:
        raise EngineRefused(f"build the engine anew: its tensors are {found}, not {wanted}")


def build_runner(source: NetworkSource) -> TensorRTRunner:
    """See :mod:`difiisr_models.backends`; ``engine_mismatch``: "rebuild" builds one that fits.

    Raises:
        BackendUnavailable: no GPU, no driver, no engine file given, or TensorRT fails.
        EngineRefused: the engine is not the one for this network, machine and runtime, and it was
            not asked to be built anew.
        ModuleNotFoundError: no TensorRT, or no exporter to build with.
    """
    device, runtime = source.device, source.runtime
    if device.type != "cuda":
        raise BackendUnavailable(f"needs a CUDA GPU, the device is {device}")
    if not torch.cuda.is_available():  # deserialising would crash the process
        raise BackendUnavailable("needs an NVIDIA driver, and torch finds no CUDA GPU here")
    if not runtime.engine:
        raise BackendUnavailable(
            "no engine file was given: build one with `difiisr build-engine "
            f"{source.model} FILE --input-size HxW` and set 'engine' to it"
        )
    plan, machine = Path(runtime.engine).expanduser(), this_machine(device)
    try:
        description, content = read_engine(plan, machine, source)
        return TensorRTRunner(content, description.shape, device)
    except EngineRefused as error:
        if runtime.engine_mismatch != "rebuild":
            raise
        _LOG.warning("building anew: %s", error)
    try:  # for the tiles of the engine that is there, else for those of the frames
        shape = read_sidecar(plan).shape
    except EngineRefused:
        shape = source.tile_shape
    wanted = EngineDescription(
        machine, source.model, source.weights_sha256, runtime.precision, *shape
    )
    with torch.cuda.device(device):  # TensorRT builds for the current GPU
        build_engine(source.network, plan, wanted)
    description, content = read_engine(plan, machine, source)
    return TensorRTRunner(content, description.shape, device)
