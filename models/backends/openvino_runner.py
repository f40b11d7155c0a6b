"""The network in OpenVINO on the CPU: the graph that ONNX Runtime gets, in float32 or bfloat16."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from difiisr_models.backends import NETWORK_OUTPUT, BackendUnavailable, NetworkSource
from difiisr_models.backends.onnx_export import require_packages
from difiisr_models.backends.onnxruntime_runner import GraphRunner, Run, network_graph

with suppress(ModuleNotFoundError):  # told by require_packages
    import openvino

_PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoRunner(GraphRunner):
    """See :class:`GraphRunner`; compiling a graph takes some 2 s."""

    def __init__(self, graph: bytes, precision: str) -> None:
        """``graph``: float32; what it is computed in is ``precision``, fp32 or bf16."""
        super().__init__(graph)
        self._core = openvino.Core()
        self._settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
            "ENABLE_CPU_PINNING": False,  # the robot's other processes may take its cores
        }

    def _open(self, graph: bytes) -> Run:
        model = self._core.compile_model(self._core.read_model(model=graph), "CPU", self._settings)
        request = model.create_infer_request()

        def run(inputs: dict[str, Tensor], result: Tensor) -> None:
            for name, value in (inputs | {NETWORK_OUTPUT: result}).items():
                request.set_tensor(name, openvino.Tensor(value.numpy(), shared_memory=True))
            request.infer()

        return run


def build_runner(source: NetworkSource) -> OpenVinoRunner:
    """See :mod:`difiisr_models.backends`.

    Raises:
        BackendUnavailable: a package is missing, or the precision or device is not served.
    """
    device, precision = source.device.type, source.runtime.precision
    if device != "cpu" or precision not in _PRECISIONS:
        raise BackendUnavailable(
            f"computes on a CPU in fp32 or bf16 only, {precision} on {device} was asked for"
        )
    try:
        require_packages(("onnx", "openvino"))
        exact = replace(source, runtime=replace(source.runtime, precision="fp32"))
        return OpenVinoRunner(network_graph(exact), precision)
    except (ModuleNotFoundError, OSError) as error:
        raise BackendUnavailable(str(error)) from error
