"""The network as an ONNX graph: checked against torch as it is made; run on a CPU.

Precision is part of the graph: convolutions and matrix products of the networks' layers hold half
weights and compute in half, everything else (norms, softmax, the embedding of the step, inputs and
outputs) stays float32. Strongly typed runtimes need nothing more.

Graphs that run on a CPU are kept from one start to the next, in the user's cache folder. A file's
name says what it was made from and the hash of its bytes: ``KEY-SHA256.onnx``.
"""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from platformdirs import user_cache_path
from torch import Tensor

from difiisr_models.backends import (
    NETWORK_INPUTS,
    NETWORK_OUTPUT,
    BackendUnavailable,
    NetworkSource,
    example_inputs,
)
from difiisr_models.backends.torch_runner import with_precision
from difiisr_models.compact import CompactNetwork, Runner
from difiisr_models.files import replaced
from difiisr_models.published.swin_unet import SwinUNet
from difiisr_models.resample import PHASES

EXPORT_VERSION = 3
"""Part of a kept graph's key; raise it whenever the same weights are to give another graph."""

KEPT_GRAPHS = 16
"""The ones used last."""

Run = Callable[[dict[str, Tensor], Tensor], None]
"""Computes a graph of its inputs by name, into a tensor of the result's shape."""

# Largest difference to torch in float32, for outputs of magnitude 1.
_TOLERANCES = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_OPSET = {"fp32": 21, "fp16": 21, "bf16": 22}  # convolutions of bfloat16 begin with opset 22
_TRACED = (2, 24, 32)  # batch, height and width where they are left open
_CHECKED = (3, 20, 36)


class Exported(NamedTuple):
    """A graph, and its largest difference to torch in float32 on a random input.

    ``tolerance``: the difference above which the graph would have been refused.
    """

    graph: bytes
    difference: float
    tolerance: float


@torch.no_grad()
def export_graph(
    module: CompactNetwork | SwinUNet,
    shape: tuple[int | None, int | None, int | None],
    precision: str = "fp32",
    properties: Mapping[str, str] | None = None,
) -> Exported:
    """The graph of a bare network.

    Inputs and output are those of its ``forward``: ``x_t, y, lr, t, fidelity -> x_0`` (compact,
    with t and fidelity of shape (1,); a recurrent one takes ``past`` too), or ``x_t, t, lq -> x_0``
    (published).

    Args:
        module: float32, on the CPU; it is not changed.
        shape: batch, height and width at low resolution; None leaves the batch, or height and width
            together, open.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        properties: further metadata to write into the graph.

    Raises:
        ModuleNotFoundError: a package of the extra ``onnx`` is missing.
        ValueError: the graph differs from torch by more than rounding does.
    """
    import torch._dynamo  # here, where an interrupt passes: the exporter makes an error of it

    require_packages()
    traced, checked = (
        _inputs(module, *(n or other for n, other in zip(shape, others, strict=True)))
        for others in (_TRACED, _CHECKED)
    )
    expected = module(*checked.values())  # first: fills the caches that a traced call must not
    names = ("batch", "height", "width")
    opened = {(0, 2, 3)[k]: names[k] for k in range(3) if shape[k] is None}
    # The step of a SwinUNet has one value per image; those of shape (1,) are for the whole batch.
    dynamic = [
        {axis: name for axis, name in opened.items() if axis < value.ndim}
        if len(value) == (shape[0] or _TRACED[0])
        else None
        for value in traced.values()
    ]
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it tells of its own passes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            with_precision(module, precision).eval(),
            tuple(traced.values()),
            dynamo=True,
            opset_version=_OPSET[precision],
            input_names=list(traced),
            output_names=[NETWORK_OUTPUT],
            dynamic_shapes=tuple(dynamic) if opened else None,
            verbose=False,
        )
    text = "x".join(str(n or "?") for n in shape)
    program.model.metadata_props.update(
        {"precision": precision, "shape": text, "torch": torch.__version__, **(properties or {})}
    )
    graph = program.model_proto.SerializeToString()
    result = torch.empty_like(expected)
    start_in_onnxruntime(_in_float32(graph) if precision == "bf16" else graph)(checked, result)
    found = float((result - expected).abs().max())
    tolerance = _TOLERANCES[precision] * max(1.0, float(expected.abs().max()))
    if not found <= tolerance:
        raise ValueError(
            f"the exported graph differs from torch by {found:.1e}, more than {tolerance:.1e}: "
            "another precision may serve, or another torch"
        )
    return Exported(graph, found, tolerance)


def with_constants(graph: bytes, t: int, fidelity: float | None = None) -> bytes:
    """The graph of a compact network at one step and one fidelity, which are no inputs any more.

    A runtime then folds what depends on them alone into the convolutions.

    Args:
        graph: of :func:`export_graph`.
        t: the step, counted from 0.
        fidelity: 0..1; None leaves it an input.
    """
    import onnx
    from onnx import numpy_helper

    constants = {"t": np.array([t])}
    if fidelity is not None:
        constants["fidelity"] = np.array([fidelity], np.float32)
    model = onnx.load_from_string(graph)
    for value in list(model.graph.input):
        if value.name in constants:
            model.graph.input.remove(value)
            constant = numpy_helper.from_array(constants[value.name], value.name)
            model.graph.initializer.append(constant)
    return model.SerializeToString()


def require_packages(packages: tuple[str, ...] = _PACKAGES) -> None:
    """Raise ModuleNotFoundError, saying what to install, unless all ``packages`` are there."""
    if missing := [name for name in packages if find_spec(name) is None]:
        wanted = dict.fromkeys(("onnx", "onnxscript", *packages))
        raise ModuleNotFoundError(
            f"{', '.join(missing)} not installed: pip install {' '.join(wanted)}"
        )


def _inputs(
    module: CompactNetwork | SwinUNet, batch: int, height: int, width: int
) -> dict[str, Tensor]:
    """Random inputs of what is exported, by name."""
    if isinstance(module, CompactNetwork):
        return example_inputs(batch, height, width, module.config.recurrent)
    generator = torch.Generator().manual_seed(1)
    x_t, lq = (torch.randn(batch, 3, height, width, generator=generator) for _ in range(2))
    return {"x_t": x_t, "t": torch.full((batch,), 14), "lq": lq.clamp(-1, 1)}


def _in_float32(graph: bytes) -> bytes:
    """A graph in bfloat16, in which ONNX Runtime has no convolution on the CPU, with its values."""
    import onnx
    from onnx import TensorProto, numpy_helper

    model = onnx.load_from_string(graph)
    del model.graph.value_info[:]
    attributes = [attribute for node in model.graph.node for attribute in node.attribute]
    for attribute in attributes:
        if attribute.name in ("to", "dtype") and attribute.i == TensorProto.BFLOAT16:
            attribute.i = TensorProto.FLOAT
    for tensor in (*model.graph.initializer, *(a.t for a in attributes if a.HasField("t"))):
        if tensor.data_type == TensorProto.BFLOAT16:
            values = numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model.SerializeToString()


class GraphRunner:
    """A ``compact.Runner`` that takes tiles of every shape.

    Every step has a graph of its own, in which step and fidelity are constants and leave nothing
    but convolutions and sums: a tenth faster. Another fidelity than the last opens new ones; those
    of the last are not kept, each holds the memory of a frame.
    """

    def __init__(
        self, graph: bytes, start: Callable[[bytes], Run], max_steps: int | None = None
    ) -> None:
        """``graph``: of :func:`network_graph`; ``start``: opens one like it.

        ``max_steps``: of a frame; None is as many as the network has.
        """
        self._graph, self._start, self.max_steps = graph, start, max_steps
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
    """ONNX Runtime on the CPU, float32 or int8; raises BackendUnavailable for what it does not."""
    return _runner(source, "onnxruntime", ("fp32", "int8"), start_in_onnxruntime)


def build_openvino_runner(source: NetworkSource) -> Runner:
    """OpenVINO, likewise; bfloat16 computes the graph of float32 in it."""
    start = partial(_start_in_openvino, precision=source.runtime.precision)
    return _runner(source, "openvino", ("fp32", "bf16", "int8"), start)


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
        if precision != "int8":
            return GraphRunner(network_graph(source), start)
        if source.int8 is None:
            raise BackendUnavailable(
                f"{source.model} has no graph in 8 bits: difiisr quantise makes one"
            )
        return GraphRunner(source.int8.read_bytes(), start, max_steps=1)
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
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,  # the robot's other processes may take its cores
    }
    if precision != "int8":  # whose other layers take what the CPU has
        settings["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "bf16": "bf16"}[precision]
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
