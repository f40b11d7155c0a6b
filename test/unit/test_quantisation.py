"""A network in 8 bits: close to what it was, refused where it is not, shipped for little."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from difiisr_models import load_upscaler
from difiisr_models.backends.selection import check_precision
from difiisr_models.compact import CompactConfig, CompactNetwork
from difiisr_models.model_loading import save_compact
from difiisr_models.resample import downsample, pack
from difiisr_ros.cli import main


def frames(count, height=44, width=52):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    scene = 22000 + 300 * np.sin(x / 3.1) * np.cos(y / 4.3)
    return [(scene + rng.normal(0, 5, scene.shape)).astype(np.uint16) for _ in range(count)]


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """A small network, and the same with a graph in 8 bits, made on a recording of noise."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="needs the extra onnx")
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("quantised")
    network = CompactNetwork(CompactConfig(channels=16, blocks=2))
    save_compact(network, root / "plain", {"name": "small"})
    (root / "frames").mkdir()
    for k, frame in enumerate(frames(3)):
        Image.fromarray(frame).save(root / "frames" / f"{k}.png")
    code = main(["quantise", *(str(root / x) for x in ("plain", "int8", "frames"))])
    assert code == 0
    return root


def test_8_bits_come_close_and_are_not_the_same(quantised):
    exact, coarse = (
        load_upscaler(str(quantised / "int8"), device="cpu", backend="onnxruntime", precision=p)
        for p in ("fp32", "int8")
    )
    (frame,) = frames(1)
    difference = coarse(frame).astype(float) - exact(frame)
    assert 0 < np.abs(difference).max() < 0.05 * np.ptp(frame)
    with pytest.raises(ValueError, match=r"1 to 1, .* \(in int8 one\)"):
        coarse.change(steps=2)
    coarse.change(fidelity=0.5)
    exact.change(fidelity=0.5)
    assert np.abs(coarse(frame).astype(float) - exact(frame)).max() < 0.05 * np.ptp(frame)


@pytest.mark.parametrize(
    ("model", "fields", "said"),
    [
        ("plain", {"backend": "onnxruntime"}, "has no graph in 8 bits: difiisr quantise makes one"),
        ("plain", {}, "int8 needs OpenVINO or ONNX Runtime, and a model with"),
        ("int8", {"backend": "torch"}, "int8 needs OpenVINO or ONNX Runtime, and a model with"),
        ("cut", {"backend": "onnxruntime"}, "network_int8.onnx has .* bytes"),
    ],
)
def test_8_bits_are_refused_where_there_are_none(quantised, model, fields, said):
    if model == "cut":
        shutil.copytree(quantised / "int8", quantised / "cut")
        graph = quantised / "cut" / "network_int8.onnx"
        graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(ValueError, match=said):
        load_upscaler(str(quantised / model), device="cpu", precision="int8", **fields)


def test_the_sibling_of_a_network_in_8_bits_stays_in_float32(quantised):
    pytest.importorskip("cv2", reason="needs the extra time")
    torch.manual_seed(0)
    network = CompactNetwork(CompactConfig(channels=16, blocks=2, recurrent=True))
    alone = CompactNetwork(CompactConfig(channels=16, blocks=2))
    save_compact(network, quantised / "both", {}, alone)
    assert main(["quantise", *(str(quantised / x) for x in ("both", "both8", "frames"))]) == 0
    exact, coarse = (
        load_upscaler(str(quantised / "both8"), device="cpu", backend="onnxruntime", precision=p)
        for p in ("fp32", "int8")
    )
    first, second = ([up(frame).astype(int) for up in (exact, coarse)] for frame in frames(2))
    np.testing.assert_array_equal(*first)  # the sibling makes it
    assert 0 < np.abs(second[0] - second[1]).max() < 0.05 * np.ptp(second[0])


def test_8_bits_are_for_cpus():
    with pytest.raises(ValueError, match="int8 is for CPUs, the device is cuda:0"):
        check_precision("int8", torch.device("cuda:0"))


def test_the_shipped_8_bits_cost_next_to_nothing():
    for name in ("onnx", "onnxruntime", "cv2"):
        pytest.importorskip(name, reason="needs the extras onnx and time")
    rng = np.random.default_rng(0)
    scene = gaussian_filter(rng.normal(0, 1, (320, 400)), 2.5)
    scene = 8000 + 500 * scene / np.abs(scene).max()
    errors = {}
    for precision in ("fp32", "int8"):
        up = load_upscaler(
            "difiisr-rtv-s-x4", device="cpu", backend="onnxruntime", precision=precision
        )
        noise = np.random.default_rng(1)
        for k in range(6):
            hr = scene[3 * k : 3 * k + 256, 5 * k : 5 * k + 320]
            lr = downsample(pack(torch.from_numpy(hr.copy())[None, None]))[0, 0].numpy()
            lr = lr + noise.normal(0, 5, lr.shape)
            result = up(lr.round().astype(np.uint16))
        errors[precision] = np.sqrt(np.mean((result - hr) ** 2))
    assert errors["int8"] < 1.03 * errors["fp32"]
