"""The network in TensorRT: an engine file of one shape, on a stream and in a CUDA graph of its own.

Inputs are copied on the device to where the engine reads them. Streams wait for each other on the
device; the host waits for nothing here.
"""

from __future__ import annotations

import logging
import weakref
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, cuda

from difiisr_models.backends import BackendUnavailable, EngineRefused, NetworkSource
from difiisr_models.backends.engine_build import EngineSettings, build_from_network, input_shapes
from difiisr_models.backends.engine_file import (
    Machine,
    build_command,
    read_engine,
    read_sidecar,
    this_machine,
)
from difiisr_models.backends.tensorrt_module import import_tensorrt, tensorrt_logger
from difiisr_models.onnx_graph import NETWORK_INPUTS, NETWORK_OUTPUT

_LOG = logging.getLogger(__name__)
_WARM_UP_CALLS = 2  # memory and kernels that are made at the first call are not in the graph


class TensorRTRunner:
    """See :class:`difiisr_models.backends.NetworkRunner`; takes tiles of the engine's shape."""

    def __init__(
        self,
        plan: bytes,
        shape: tuple[int, int, int],
        device: torch.device,
        capture: bool = True,
    ) -> None:
        """Deserialise an engine and make it ready.

        Args:
            plan: bytes that ``engine_file.read_engine`` has checked, on a machine with a driver.
            shape: (batch, height, width) of its tiles.
            device: the GPU.
            capture: replay a CUDA graph instead of launching every kernel anew.

        Raises:
            BackendUnavailable: TensorRT cannot deserialise or run the engine.
            EngineRefused: it is not the engine of a compact network of that shape.
        """
        trt = import_tensorrt()
        logger, self._complaints = tensorrt_logger()
        self._complaints.take()
        self.shape = shape
        self._device = device
        with cuda.device(device):
            self._runtime = trt.Runtime(logger)
            engine = self._runtime.deserialize_cuda_engine(plan)
            if engine is None:
                self._fail(f"TensorRT could not deserialise the engine of {len(plan)} bytes.")
            self._tensors = _allocate(trt, engine, shape, device)
            self._context = engine.create_execution_context()
            if self._context is None:
                self._fail(
                    "TensorRT could not create an execution context; it needs "
                    f"{engine.device_memory_size_v2 / 1e6:.0f} MB of GPU memory."
                )
            for name, tensor in self._tensors.items():
                if not self._context.set_tensor_address(name, tensor.data_ptr()):
                    self._fail(f"TensorRT did not take the memory of tensor {name!r}.")
            self._stream = cuda.Stream(device)
            # The engine must not be freed under work that is still queued.
            weakref.finalize(self, self._stream.synchronize)
            self._stream.wait_stream(cuda.current_stream(device))
            self._graph = self._capture() if capture else None

    def __call__(self, x_t: Tensor, y: Tensor, lr: Tensor, t: Tensor, fidelity: Tensor) -> Tensor:
        """See :class:`difiisr_models.backends.NetworkRunner`.

        Raises:
            ValueError: a tensor of another shape than the engine's.
            BackendUnavailable: TensorRT refuses to run.
        """
        inputs = dict(zip(NETWORK_INPUTS, (x_t, y, lr, t, fidelity), strict=True))
        for name, value in inputs.items():
            if value.shape != self._tensors[name].shape:
                raise ValueError(
                    f"the engine takes {name} of shape {tuple(self._tensors[name].shape)}, "
                    f"got {tuple(value.shape)}"
                )
        callers = cuda.current_stream(self._device)
        self._stream.wait_stream(callers)
        with cuda.stream(self._stream):
            for name, value in inputs.items():
                self._tensors[name].copy_(value, non_blocking=True)
            if self._graph is None:
                self._execute()
            else:
                self._graph.replay()
        callers.wait_stream(self._stream)
        return self._tensors[NETWORK_OUTPUT]

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            self._fail("TensorRT could not queue the engine's work.")

    def _capture(self) -> cuda.CUDAGraph | None:
        """One call recorded; None, and a line in the log, where it cannot be."""
        with cuda.stream(self._stream):
            for _ in range(_WARM_UP_CALLS):
                self._execute()
        self._stream.synchronize()
        graph, callers = cuda.CUDAGraph(), cuda.current_stream(self._device)
        try:
            with cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._execute()
        except (RuntimeError, BackendUnavailable) as error:
            cuda.set_stream(callers)  # a recording that fails as it ends leaves its own behind
            _LOG.warning("TensorRT runs without a CUDA graph, slower: %s", error)
            return None
        return graph

    def _fail(self, text: str) -> None:
        raise BackendUnavailable(text + self._complaints.take())


def build_runner(source: NetworkSource) -> TensorRTRunner:
    """See :mod:`difiisr_models.backends`; builds the engine where ``source`` asks for that.

    Raises:
        BackendUnavailable: no GPU, no driver, no engine file given, or TensorRT fails.
        EngineRefused: the engine is not the one for this network, machine and runtime, and it was
            not asked to be built anew.
        ModuleNotFoundError: no TensorRT, or no exporter to build with.
    """
    if source.device.type != "cuda":
        raise BackendUnavailable(f"needs a CUDA GPU, the device is {source.device}")
    if not cuda.is_available():  # deserialising would crash the process
        raise BackendUnavailable("needs an NVIDIA driver, and torch finds no CUDA GPU here")
    if source.engine is None:
        raise BackendUnavailable(
            "no engine file was given: build one with `difiisr build-engine "
            f"{source.model} FILE --input-size HxW` and set 'engine' to it"
        )
    machine = this_machine(source.device)
    try:
        return _load(source, machine)
    except EngineRefused as error:
        if source.engine_mismatch != "rebuild":
            raise
        _LOG.warning("building anew: %s", error)
    _rebuild(source, machine)
    return _load(source, machine)


def _load(source: NetworkSource, machine: Machine) -> TensorRTRunner:
    description, plan = read_engine(source.engine, machine, source)
    try:
        return TensorRTRunner(plan, description.shape, source.device)
    except EngineRefused as error:
        command = build_command(source.engine, description, source)
        raise EngineRefused(
            f"engine {source.engine} refused: {error}. Build it: {command}"
        ) from error


def _rebuild(source: NetworkSource, machine: Machine) -> None:
    """Build the engine for the tiles of the one that is there, else for those of the frames."""
    try:
        shape = read_sidecar(source.engine).shape
    except EngineRefused:
        shape = (source.tile_batch, source.tile, source.tile)
    settings = EngineSettings(source.model, source.weights_sha256, *shape, source.precision)
    with cuda.device(source.device):  # TensorRT builds for the current GPU
        build_from_network(
            source.network,
            source.engine,
            settings,
            machine,
            lambda phase, done, steps: _LOG.debug("%s: %d of %d", phase, done, steps),
        )


def _allocate(
    trt: ModuleType, engine: Any, shape: tuple[int, int, int], device: torch.device
) -> dict[str, Tensor]:
    """Memory for each of the engine's tensors, which must be those of a compact network."""
    inputs = input_shapes(shape)
    floats, integers = trt.DataType.FLOAT, trt.DataType.INT64
    wanted = {
        name: (trt.TensorIOMode.INPUT, integers if name == "t" else floats, size)
        for name, size in inputs.items()
    }
    wanted[NETWORK_OUTPUT] = (trt.TensorIOMode.OUTPUT, floats, inputs["y"])
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    if set(names) != set(wanted):
        raise EngineRefused(f"its tensors are {sorted(names)}, {sorted(wanted)} are needed")
    for name, expected in wanted.items():
        mode, dtype = engine.get_tensor_mode(name), engine.get_tensor_dtype(name)
        found = (mode, dtype, tuple(engine.get_tensor_shape(name)))
        if found != expected:
            raise EngineRefused(
                f"its tensor {name!r} is {_words(found)}, {_words(expected)} is needed"
            )
    return {
        name: torch.zeros(
            size, dtype=torch.int64 if dtype == integers else torch.float32, device=device
        )
        for name, (_, dtype, size) in wanted.items()
    }


def _words(tensor: tuple[Any, Any, tuple[int, ...]]) -> str:
    mode, dtype, size = tensor
    return f"{mode.name} {dtype.name} {size}"
