"""The network in ONNX Runtime: on the CPU, or on a GPU through its CUDA provider."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from difiisr_models.backends import BackendUnavailable, NetworkSource
from difiisr_models.graph_cache import network_graph
from difiisr_models.onnx_graph import (
    NETWORK_INPUTS,
    NETWORK_OUTPUT,
    require_packages,
    with_constants,
)

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_NUMPY = {torch.float32: np.float32, torch.int64: np.int64}


class OnnxRuntimeRunner:
    """See :class:`difiisr_models.backends.NetworkRunner`; takes tiles of every shape.

    Tensors are bound where they lie: nothing is copied between torch and ONNX Runtime. On the CPU
    every step has a session of its own, in which step and fidelity are constants and leave nothing
    but convolutions and sums: a tenth faster. Another fidelity than the last opens new ones, in
    some 15 ms each; those of the last are not kept, each holds the memory of a frame.
    """

    shape = None

    def __init__(self, graph: bytes, device: torch.device, threads: int) -> None:
        """Choose the provider.

        Args:
            graph: as ``onnx_graph.export_network`` writes it.
            device: CPU or CUDA.
            threads: of the session on the CPU. They sleep between frames; spinning would take the
                robot's other cores for nothing.

        Raises:
            BackendUnavailable: this build of ONNX Runtime does not run on the device.
        """
        import onnxruntime

        self._graph = graph
        self._device, self._index = device.type, device.index or 0
        self._sessions: dict[tuple[int, float] | None, InferenceSession] = {}
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._options.log_severity_level = 3
        self._provider: str | tuple[str, dict[str, str]] = "CPUExecutionProvider"
        if device.type == "cuda":
            present = onnxruntime.get_available_providers()
            if "CUDAExecutionProvider" not in present:
                raise BackendUnavailable(
                    f"onnxruntime {onnxruntime.__version__} has no CUDA provider, only "
                    f"{', '.join(present)}: pip install onnxruntime-gpu"
                )
            # Not torch's default stream: its handle is 0, which ONNX Runtime takes for none.
            self._stream = torch.cuda.Stream(device)
            handle = str(self._stream.cuda_stream)
            self._provider = (
                "CUDAExecutionProvider",
                {"device_id": str(self._index), "user_compute_stream": handle},
            )
            if "CUDAExecutionProvider" not in self._session(None).get_providers():
                raise BackendUnavailable(
                    f"onnxruntime {onnxruntime.__version__} could not start its CUDA provider: "
                    "install the CUDA and cuDNN that it was built for"
                )

    def __call__(self, x_t: Tensor, y: Tensor, lr: Tensor, t: Tensor, fidelity: Tensor) -> Tensor:
        """See :class:`difiisr_models.backends.NetworkRunner`."""
        inputs = dict(zip(NETWORK_INPUTS, (x_t, y, lr, t, fidelity), strict=True))
        session = self._session_of(inputs)
        held = {name: value.contiguous() for name, value in inputs.items()}
        result = torch.empty(y.shape, device=y.device)
        binding = session.io_binding()
        for name, value in held.items():
            binding.bind_input(name, *self._placed(value))
        binding.bind_output(NETWORK_OUTPUT, *self._placed(result))
        if self._device == "cuda":
            callers = torch.cuda.current_stream(result.device)
            self._stream.wait_stream(callers)
            session.run_with_iobinding(binding)
            callers.wait_stream(self._stream)
        else:
            session.run_with_iobinding(binding)
        return result

    def _session_of(self, inputs: dict[str, Tensor]) -> InferenceSession:
        """The session for these inputs; takes out of them what is constant in it."""
        if self._device == "cuda":
            return self._session(None)
        step, fidelity = int(inputs.pop("t")), float(inputs.pop("fidelity"))
        if any(fidelity != other for _, other in self._sessions):
            self._sessions.clear()
        return self._session((step, fidelity))

    def _session(self, constants: tuple[int, float] | None) -> InferenceSession:
        """The session of a step and a fidelity, None for the one that takes any; opened once."""
        import onnxruntime

        if constants not in self._sessions:
            graph = self._graph if constants is None else with_constants(self._graph, *constants)
            opened = onnxruntime.InferenceSession(graph, self._options, [self._provider])
            self._sessions[constants] = opened
        return self._sessions[constants]

    def _placed(self, value: Tensor) -> tuple:
        dtype = _NUMPY[value.dtype]
        return self._device, self._index, dtype, tuple(value.shape), value.data_ptr()


def build_runner(source: NetworkSource) -> OnnxRuntimeRunner:
    """See :mod:`difiisr_models.backends`; the session has as many threads as torch.

    Raises:
        BackendUnavailable: a package is missing, or the precision or device is not served.
    """
    if source.device.type == "cpu" and source.precision != "fp32":
        raise BackendUnavailable(
            f"on a CPU ONNX Runtime computes in fp32 only, {source.precision} was asked for"
        )
    try:
        require_packages(("onnx", "onnxruntime"))
        graph = network_graph(source)
    except (ModuleNotFoundError, OSError) as error:
        raise BackendUnavailable(str(error)) from error
    return OnnxRuntimeRunner(graph, source.device, torch.get_num_threads())
