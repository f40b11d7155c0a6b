"""ONNX graphs of a network, checked against torch as they are made.

Precision is part of the graph: convolutions and matrix products of the networks' layers hold half
weights and compute in half, everything else (norms, softmax, the embedding of the step, inputs and
outputs) stays float32. Strongly typed runtimes need nothing more.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from difiisr_models.backends import NETWORK_OUTPUT, example_inputs
from difiisr_models.compact import CompactNetwork
from difiisr_models.precision import with_precision
from difiisr_models.published.swin_unet import SwinUNet

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
    difference = (_run(graph, precision, checked) - expected).abs()
    found = float(difference.max())
    tolerance = _TOLERANCES[precision] * max(1.0, float(expected.abs().max()))
    if not found <= tolerance:
        raise ValueError(
            f"the exported graph differs from torch by {found:.1e}, more than {tolerance:.1e}: "
            "another precision may serve, or another torch"
        )
    return Exported(graph, found, tolerance)


def with_constants(graph: bytes, t: int, fidelity: float) -> bytes:
    """The graph of a compact network at one step and one fidelity, which are no inputs any more.

    A runtime then folds what depends on them alone into the convolutions.

    Args:
        graph: of :func:`export_graph`.
        t: the step, counted from 0.
        fidelity: 0..1.
    """
    import onnx
    from onnx import numpy_helper

    constants = {"t": np.array([t]), "fidelity": np.array([fidelity], np.float32)}
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
        raise ModuleNotFoundError(
            f"{', '.join(missing)} not installed: pip install {' '.join(_PACKAGES)}"
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


def _run(graph: bytes, precision: str, inputs: Mapping[str, Tensor]) -> Tensor:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    graph = _in_float32(graph) if precision == "bf16" else graph
    session = onnxruntime.InferenceSession(graph, options, ["CPUExecutionProvider"])
    feeds = {name: value.numpy() for name, value in inputs.items()}
    return torch.from_numpy(session.run(None, feeds)[0])


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
