"""The network of a CPU in 8 bits: ranges of its features are found on frames of a camera.

Convolutions between features hold int8 weights, a scale for each channel, and read int8 features,
a scale for each layer, zero in the middle: both is what CPUs multiply at once. The convolutions
that read frames, and the last three, on which most of the error would fall, stay as they are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np
from torch import Tensor

from difiisr_models.backends import NETWORK_INPUTS
from difiisr_models.backends.onnx_graphs import export_graph, require_packages, with_constants
from difiisr_models.compact import CompactNetwork

_LAST = 2  # convolutions between features, before the heads, that stay as they are
_NEWEST = 0.1  # what a call counts in the mean of the ranges

Given = tuple[Tensor, ...]
"""What a runner was called with."""


def quantised_graph(network: CompactNetwork, calls: Iterable[Given], sha256: str) -> bytes:
    """An ONNX graph with the inputs and output of the network's own but for t.

    Args:
        network: float32, on the CPU.
        calls: as a runner of the network is called on frames, all at one step.
        sha256: of the weights' file; the graph says that it was made of them.

    Returns:
        The graph, of any batch, height and width, at that step and every fidelity.

    Raises:
        ModuleNotFoundError: a package of the extra ``onnx`` is missing.
        ValueError: no calls.
    """
    require_packages()
    import onnx
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    named = (dict(zip(NETWORK_INPUTS, given, strict=False)) for given in calls)
    first = next(named, {})
    if not first:
        raise ValueError("no frame was computed: ranges cannot be found")
    step = int(first["t"])

    class Calls(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = chain([first], named)

        def get_next(self) -> dict[str, np.ndarray] | None:
            given = next(self._left, {})
            return {k: v.numpy() for k, v in given.items() if k != "t"} or None

    properties = {"weights_sha256": sha256, "what": "network", "precision": "int8"}
    exported = export_graph(network, (None, None, None), "fp32", properties).graph
    with tempfile.TemporaryDirectory() as name:
        folded, done = Path(name, "folded.onnx"), Path(name, "done.onnx")
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folded)
        onnxruntime.InferenceSession(
            with_constants(exported, step), options, ["CPUExecutionProvider"]
        )
        model, c = onnx.load(folded), network.config.channels
        onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
        graph = model.graph
        shapes = {tensor.name: tuple(tensor.dims[:2]) for tensor in graph.initializer}
        convolutions = [node for node in graph.node if node.op_type == "Conv"]
        inner = [node.name for node in convolutions if shapes.get(node.input[1]) == (c, c)]
        quantize_static(
            model, done, Calls(), per_channel=True,
            nodes_to_quantize=inner[:-_LAST],
            activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
            extra_options={
                "ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False,
                "CalibMovingAverage": True, "CalibMovingAverageConstant": _NEWEST,
            },
        )  # fmt: skip
        quantised = onnx.load(done)
    onnx.helper.set_model_props(quantised, properties)
    return quantised.SerializeToString()
