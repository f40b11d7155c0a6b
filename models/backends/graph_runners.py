"""The network as a graph on the CPU: in ONNX Runtime, or in OpenVINO in float32 or bfloat16.

Exported graphs are kept from one start to the next, in the user's cache folder. A graph's file name
says what it was made from and the hash of its bytes: ``KEY-SHA256.onnx``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import torch
from platformdirs import user_cache_path
from torch import Tensor

from difiisr_models.backends import (
    NETWORK_INPUTS,
    NETWORK_OUTPUT,
    BackendUnavailable,
    NetworkSource,
)
from difiisr_models.backends.onnx_export import export_graph, require_packages, with_constants
from difiisr_models.compact import Runner
from difiisr_models.files import replaced
from difiisr_models.resample import PHASES

EXPORT_VERSION = 3
"""Part of a kept graph's key; raise it whenever the same weights are to give another graph."""

KEPT_GRAPHS = 16
"""The ones used last."""

Run = Callable[[dict[str, Tensor], Tensor], None]
"""Computes a graph of its inputs by name, into a tensor of the result's shape."""


class GraphRunner:
    """A ``compact.Runner`` that takes tiles of every shape.

    Every step has a graph of its own, in which step and fidelity are constants and leave nothing
    but convolutions and sums: a tenth faster. Another fidelity than the last opens new ones; those
    of the last are not kept, each holds the memory of a frame.
    """

    def __init__(self, graph: bytes, start: Callable[[bytes], Run]) -> None:
        """``graph``: of :func:`network_graph`; ``start``: opens one like it."""
        self._graph, self._start = graph, start
        self._started: dict[tuple[int, float], Run] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        """As ``CompactNetwork.forward``."""
        given = dict(zip(NETWORK_INPUTS, inputs, strict=False))
        key = t, fidelity = int(given.pop("t")), float(given.pop("fidelity"))
        if any(fidelity != other for _, other in self._started):
            self._started.clear()
        if key not in self._started:
            self._started[key] = self._start(with_constants(self._graph, t, fidelity))
        batch, _, height, width = given["lr"].shape
        result = torch.empty(batch, (1 + ("past" in given)) * PHASES, height, width)
        self._started[key]({name: value.contiguous() for name, value in given.items()}, result)
        return result


def build_onnxruntime_runner(source: NetworkSource) -> Runner:
    """ONNX Runtime on the CPU in float32; raises BackendUnavailable where it is not served."""
    return _runner(source, "onnxruntime", ("fp32",), start_in_onnxruntime)


def build_openvino_runner(source: NetworkSource) -> Runner:
    """OpenVINO, likewise; bfloat16 computes the graph of float32 in it."""
    precision = source.runtime.precision
    start = lambda graph: _start_in_openvino(graph, precision)  # noqa: E731
    return _runner(source, "openvino", ("fp32", "bf16"), start)


def _runner(
    source: NetworkSource, package: str, served: tuple[str, ...], start: Callable[[bytes], Run]
) -> Runner:
    device, precision = source.device.type, source.runtime.precision
    if device != "cpu" or precision not in served:
        raise BackendUnavailable(
            f"computes on a CPU in {' or '.join(served)} only, {precision} on {device} was asked "
            "for"
        )
    try:
        require_packages(("onnx", package))
        return GraphRunner(network_graph(source), start)
    except (ModuleNotFoundError, OSError) as error:
        raise BackendUnavailable(str(error)) from error


def start_in_onnxruntime(graph: bytes) -> Run:
    """A session, which takes some 15 ms."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # They sleep between frames: spinning would take the robot's other cores for nothing.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, ["CPUExecutionProvider"])

    def run(inputs: dict[str, Tensor], result: Tensor) -> None:
        binding = session.io_binding()  # to where tensors lie: nothing is copied
        for name, value in inputs.items():
            binding.bind_cpu_input(name, value.numpy())
        place = ("cpu", 0, np.float32, tuple(result.shape), result.data_ptr())
        binding.bind_output(NETWORK_OUTPUT, *place)
        session.run_with_iobinding(binding)

    return run


def _start_in_openvino(graph: bytes, precision: str) -> Run:
    """A compiled graph, which takes some 2 s."""
    import openvino

    core = openvino.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "ENABLE_CPU_PINNING": False,  # the robot's other processes may take its cores
    }
    model = core.compile_model(core.read_model(model=graph), "CPU", settings)
    request = model.create_infer_request()

    def run(inputs: dict[str, Tensor], result: Tensor) -> None:
        for name, value in (inputs | {NETWORK_OUTPUT: result}).items():
            request.set_tensor(name, openvino.Tensor(value.numpy(), shared_memory=True))
        request.infer()

    return run


def network_graph(source: NetworkSource) -> bytes:
    """The graph of the source's network, float32, of any batch, height and width: kept, or new.

    A kept file whose bytes do not have the hash in its name is exported again.

    Raises:
        ModuleNotFoundError: none is kept and a package of the extra ``onnx`` is missing.
        OSError: the cache folder cannot be written.
        ValueError: the exported graph differs from torch.
    """
    made_from = f"{source.weights_sha256} fp32 {torch.__version__} {EXPORT_VERSION}"
    key = hashlib.sha256(made_from.encode()).hexdigest()[:16]
    folder = user_cache_path("difiisr_ros")
    for path in sorted(folder.glob(f"{key}-*.onnx")):
        with suppress(OSError):  # another process made room, or the cache may only be read
            graph = path.read_bytes()
            if path.stem == f"{key}-{hashlib.sha256(graph).hexdigest()}":
                with suppress(OSError):
                    path.touch()
                return graph
            path.unlink()
    properties = {"weights_sha256": source.weights_sha256, "what": "network"}
    graph = export_graph(source.network, (None, None, None), "fp32", properties).graph
    with replaced(folder / f"{key}-{hashlib.sha256(graph).hexdigest()}.onnx") as beside:
        beside.write_bytes(graph)
    with suppress(OSError):  # another process makes room at the same time
        for old in sorted(folder.glob("*.onnx"), key=os.path.getmtime)[:-KEPT_GRAPHS]:
            old.unlink(missing_ok=True)
    return graph
