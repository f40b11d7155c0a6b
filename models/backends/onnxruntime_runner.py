"""The network as a graph on the CPU, in ONNX Runtime.

Exported graphs are kept from one start to the next, in the user's cache folder. A graph's file name
says what it was made from and the hash of its bytes: ``KEY-SHA256.onnx``.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import torch
from platformdirs import user_cache_path
from torch import Tensor

from difiisr_models.backends import NETWORK_OUTPUT, BackendUnavailable, NetworkSource
from difiisr_models.backends.onnx_export import export_graph, require_packages, with_constants
from difiisr_models.files import replaced

with suppress(ModuleNotFoundError):  # told by require_packages
    import onnxruntime

EXPORT_VERSION = 3
"""Part of a kept graph's key; raise it whenever the same weights are to give another graph."""

KEPT_GRAPHS = 16
"""The ones used last."""


Run = Callable[[dict[str, Tensor], Tensor], None]
"""Computes a graph of its inputs by name, into a tensor of the result's shape."""


class GraphRunner(ABC):
    """See ``compact.NetworkRunner``; takes tiles of every shape, on the CPU.

    Every step has a graph of its own, in which step and fidelity are constants and leave nothing
    but convolutions and sums: a tenth faster. Another fidelity than the last opens new ones; those
    of the last are not kept, each holds the memory of a frame.
    """

    shape = None

    def __init__(self, graph: bytes) -> None:
        """``graph``: of ``onnx_export.export_graph``."""
        self._graph = graph
        self._opened: dict[tuple[int, float], Run] = {}

    @abstractmethod
    def _open(self, graph: bytes) -> Run:
        """What computes ``graph``, on as many threads as torch has."""

    def __call__(
        self,
        x_t: Tensor,
        y: Tensor,
        lr: Tensor,
        t: Tensor,
        fidelity: Tensor,
        past: Tensor | None = None,
    ) -> Tensor:
        """See ``compact.NetworkRunner``."""
        inputs = {"x_t": x_t, "y": y, "lr": lr} | ({} if past is None else {"past": past})
        result = torch.empty(y.shape[0], (len(inputs) - 2) * y.shape[1], *y.shape[2:])
        run = self._run(int(t), float(fidelity))
        run({name: value.contiguous() for name, value in inputs.items()}, result)
        return result

    def _run(self, t: int, fidelity: float) -> Run:
        if any(fidelity != other for _, other in self._opened):
            self._opened.clear()
        if (t, fidelity) not in self._opened:
            self._opened[t, fidelity] = self._open(with_constants(self._graph, t, fidelity))
        return self._opened[t, fidelity]


class OnnxRuntimeRunner(GraphRunner):
    """See :class:`GraphRunner`; opening a graph takes some 15 ms."""

    def _open(self, graph: bytes) -> Run:
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


def build_runner(source: NetworkSource) -> OnnxRuntimeRunner:
    """See :mod:`difiisr_models.backends`.

    Raises:
        BackendUnavailable: a package is missing, or the precision or device is not served.
    """
    device, precision = source.device.type, source.runtime.precision
    if (device, precision) != ("cpu", "fp32"):
        raise BackendUnavailable(
            f"computes on a CPU in fp32 only, {precision} on {device} was asked for"
        )
    try:
        require_packages(("onnx", "onnxruntime"))
        return OnnxRuntimeRunner(network_graph(source))
    except (ModuleNotFoundError, OSError) as error:
        raise BackendUnavailable(str(error)) from error


def network_graph(source: NetworkSource) -> bytes:
    """The graph of the source's network for any batch, height and width: kept, or exported now.

    A kept file whose bytes do not have the hash in its name is exported again.

    Raises:
        ModuleNotFoundError: none is kept and a package of the extra ``onnx`` is missing.
        OSError: the cache folder cannot be written.
        ValueError: the exported graph differs from torch.
    """
    precision = source.runtime.precision
    made_from = (source.weights_sha256, precision, torch.__version__, EXPORT_VERSION)
    key = hashlib.sha256(" ".join(map(str, made_from)).encode()).hexdigest()[:16]
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
    graph = export_graph(source.network, (None, None, None), precision, properties).graph
    with replaced(folder / f"{key}-{hashlib.sha256(graph).hexdigest()}.onnx") as beside:
        beside.write_bytes(graph)
    with suppress(OSError):  # another process makes room at the same time
        for old in sorted(folder.glob("*.onnx"), key=os.path.getmtime)[:-KEPT_GRAPHS]:
            old.unlink(missing_ok=True)
    return graph
