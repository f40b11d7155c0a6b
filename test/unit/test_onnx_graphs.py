"""Exported graphs: the same numbers as torch in ONNX Runtime, plain operators, or no file."""

import numpy as np
import pytest
import torch

pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

import onnx
import onnxruntime as ort

from difiisr_models.backends import onnx_graphs
from difiisr_models.backends.onnx_graphs import export_graph
from difiisr_models.files import sha256_file
from difiisr_models.published.swin_unet import SwinUNet, SwinUNetConfig
from difiisr_models.resample import upsample

# What TensorRT 10.3 (JetPack 6.2) and later parse, and ONNX Runtime runs.
COMPACT_OPERATORS = {
    "Add", "Cast", "Concat", "Conv", "Cos", "Gemm", "LeakyRelu", "Mul", "Sigmoid", "Sin", "Split",
    "Sub", "Unsqueeze",
}  # fmt: skip


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    config = SwinUNetConfig(
        channels=32, multipliers=(1,), blocks=1, swin_channels=32, heads=2, swin_depth=1,
        mlp_ratio=1, latent_size=8,
    )  # fmt: skip
    return SwinUNet(config).eval().requires_grad_(False)


@pytest.fixture
def export(tmp_path):
    """Write a graph as a file."""

    def export(*arguments):
        done = export_graph(*arguments)
        path = tmp_path / "exported.onnx"
        path.write_bytes(done.graph)
        return path, done

    return export


def session(path):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])


def operators(path):
    return {node.op_type for node in onnx.load(path).graph.node}


def network_feeds(batch, height, width):
    generator = torch.Generator().manual_seed(7)
    lr = torch.rand(batch, 1, height, width, generator=generator) * 2 - 1
    x_t = torch.randn(batch, 16, height, width, generator=generator)
    return {"x_t": x_t, "y": upsample(lr), "lr": lr, "t": torch.tensor([3]),
            "fidelity": torch.tensor([0.25])}  # fmt: skip


def run(path, feeds):
    return session(path).run(None, {name: value.numpy() for name, value in feeds.items()})[0]


def test_the_network_of_any_size_is_the_network_in_torch(tiny_network, export):
    path, done = export(tiny_network, (None, None, None))
    assert done.difference < 1e-4
    assert operators(path) <= COMPACT_OPERATORS
    assert onnx.load(path).opset_import[0].version >= 21
    for size in ((1, 17, 33), (4, 32, 16)):
        feeds = network_feeds(*size)
        expected = tiny_network(*feeds.values()).numpy()
        np.testing.assert_allclose(run(path, feeds), expected, atol=1e-4)


@pytest.mark.parametrize(("precision", "held"), [("fp16", 10), ("bf16", 16)])
def test_half_precision_is_in_the_weights_and_not_at_the_border(
    tiny_network, export, precision, held
):
    path, done = export(tiny_network, (1, 20, 24), precision)
    graph = onnx.load(path).graph
    types = {value.name: value.data_type for value in graph.initializer}
    weights = [name for name in types if name.endswith(".weight")]
    assert weights
    assert {types[name] for name in weights} == {held}
    ends = [*graph.input, *graph.output]
    assert {v.name: v.type.tensor_type.elem_type for v in ends}["x_0"] == onnx.TensorProto.FLOAT
    assert 0 < done.difference <= done.tolerance
    if precision == "fp16":  # ONNX Runtime has no bfloat16 convolution on the CPU
        feeds = network_feeds(1, 20, 24)
        expected = tiny_network(*feeds.values()).numpy()
        np.testing.assert_allclose(run(path, feeds), expected, atol=2e-2)


def test_norms_and_softmax_of_the_published_network_are_in_float32(unet, export):
    path, _ = export(unet, (1, 16, 16), "fp16")
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    values = [*model.graph.value_info, *model.graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    kinds = {
        kind: {types[n.output[0]] for n in model.graph.node if n.op_type == kind}
        for kind in ("GroupNormalization", "Softmax", "Conv")
    }
    assert kinds["GroupNormalization"] == kinds["Softmax"] == {onnx.TensorProto.FLOAT}
    assert kinds["Conv"] == {onnx.TensorProto.FLOAT16}


def test_a_graph_that_differs_is_refused_and_not_left(tiny_folder, tmp_path, monkeypatch, difiisr):
    monkeypatch.setattr(
        onnx_graphs, "start_in_onnxruntime", lambda _: lambda _, out: out.fill_(np.nan)
    )
    error = difiisr("export", tiny_folder, tmp_path / "n.onnx", "--size", "24x20", code=1).err
    assert "differs from torch by nan, more than" in error
    assert list(tmp_path.iterdir()) == []


def test_export_writes_what_the_graph_is(tiny_folder, tmp_path, difiisr, json_of):
    target = tmp_path / "n.onnx"
    arguments = ["export", tiny_folder, target, "--size", "24x20", "--batch", "2"]
    assert "largest difference to torch" in difiisr(*arguments).out
    facts = json_of(*arguments, "--force")
    assert (facts["sha256"], facts["batch"]) == (sha256_file(target), 2)
    assert facts["difference"] <= facts["tolerance"]
    opened = session(target)
    assert {i.name: i.shape for i in opened.get_inputs()}["lr"] == [2, 1, 20, 24]
    told = opened.get_modelmeta().custom_metadata_map
    assert told["weights_sha256"] == sha256_file(tiny_folder / "network.safetensors")
    assert (told["precision"], told["kind"], told["what"]) == ("fp32", "compact", "network")
    assert told["shape"] == "2x20x24"
    assert "--force" in difiisr(*arguments, code=1).err
