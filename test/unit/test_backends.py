"""Which backend runs, why others do not, and that each gives what torch gives."""

import dataclasses
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from difiisr_models import graph_cache, load_upscaler, onnx_graph
from difiisr_models.backends import (
    BackendUnavailable,
    EngineRefused,
    NetworkSource,
    selection,
    torch_runner,
)
from difiisr_models.backends.selection import select_backend
from difiisr_models.compact import CompactConfig, CompactNetwork
from difiisr_models.frame_model import CompactModel
from difiisr_models.frame_profile import profile_stages
from difiisr_models.model_loading import save_compact
from difiisr_models.schedule import exponential_schedule
from difiisr_models.upscaler import Upscaler
from difiisr_models.upscaler_settings import UpscalerSettings

CPU = torch.device("cpu")
ENGINE = Path("network.plan")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = CompactNetwork(CompactConfig(channels=16, blocks=1))
    network.detail_head.weight.data.normal_(std=0.05)
    return network.eval().requires_grad_(False)


@pytest.fixture
def source(network):
    return NetworkSource(network, "a" * 64, CPU)


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny"
    save_compact(network, path, {})
    return path


@pytest.fixture
def builders(monkeypatch):
    """Stand-ins for the backends' modules; a test sets how each is built."""
    builders = {"torch": torch_runner.build_runner}
    monkeypatch.setattr(selection, "_builder", builders.__getitem__)
    return builders


@pytest.fixture
def onnx_packages():
    for name in onnx_graph.REQUIRED:
        pytest.importorskip(name, reason="needs the extra onnx")


def refuse(error):
    def build_runner(source):
        raise error

    return build_runner


def frames(count, height=44, width=52):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    scene = 22000 + 300 * np.sin(x / 3.1) * np.cos(y / 4.3)
    return [(scene + rng.normal(0, 5, scene.shape)).astype(np.uint16) for _ in range(count)]


class Runner:
    """The network in torch, of one shape as an engine is, or of any."""

    def __init__(self, network, shape=None):
        self.network, self.shape = network, shape

    def __call__(self, x_t, y, lr, t, fidelity):
        assert self.shape in (None, (len(lr), *lr.shape[2:]))
        return self.network(x_t, y, lr, t, fidelity)


def test_onnx_runtime_is_the_default_on_a_cpu_and_equals_torch(folder, onnx_packages):
    default = load_upscaler(str(folder), device="cpu", tile=40, overlap=8, tile_batch=3)
    assert default.backend == "onnxruntime"
    assert dict(default.passed_over) == dict.fromkeys(
        ("tensorrt", "torch_tensorrt"), "needs a CUDA GPU"
    )
    in_torch = load_upscaler(
        str(folder), device="cpu", backend="torch", tile=40, overlap=8, tile_batch=3
    )
    assert (in_torch.backend, in_torch.passed_over) == ("torch", ())
    for changes in ({}, {"fidelity": 0.0}, {"steps": 3}):
        one, other = (up.with_settings(**changes) for up in (default, in_torch))
        for frame in frames(2):
            np.testing.assert_allclose(one(frame), other(frame).astype(int), atol=1)


def test_threads_are_those_of_torch(source, onnx_packages, monkeypatch):
    from difiisr_models.backends import onnxruntime_runner

    given = []
    monkeypatch.setattr(onnxruntime_runner, "network_graph", lambda source: b"")
    monkeypatch.setattr(
        onnxruntime_runner,
        "OnnxRuntimeRunner",
        lambda graph, device, threads: given.append(threads),
    )
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    onnxruntime_runner.build_runner(source)
    torch.set_num_threads(before)
    assert given == [3]


@pytest.fixture
def exports(tmp_path, monkeypatch):
    """The networks exported to a cache of the test's own, as files that are no graphs."""
    exports = []

    def export(network, path, *_):
        exports.append(network)
        path.write_bytes(b"graph %d" % len(exports))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(graph_cache, "export_network", export)
    return exports


def test_a_graph_is_exported_once_for_its_weights_and_precision(source, exports):
    assert [graph_cache.network_graph(source) for _ in range(3)] == [b"graph 1"] * 3
    for other in ({"weights_sha256": "b" * 64}, {"precision": "fp16"}):
        graph_cache.network_graph(dataclasses.replace(source, **other))
    assert len(exports) == 3
    graph_cache.network_graph(source)
    assert len(exports) == 3


def test_a_damaged_graph_is_exported_again(source, exports, tmp_path):
    graph_cache.network_graph(source)
    (kept,) = (tmp_path / "difiisr_ros").iterdir()
    kept.write_bytes(b"grapf 1")
    assert graph_cache.network_graph(source) == b"graph 2"
    (kept,) = (tmp_path / "difiisr_ros").iterdir()
    assert kept.stem.endswith(hashlib.sha256(b"graph 2").hexdigest())


def test_a_cache_that_may_only_be_read_serves(source, exports, monkeypatch):
    graph = graph_cache.network_graph(source)

    def refuse_touch(path):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "touch", refuse_touch)
    assert graph_cache.network_graph(source) == graph
    assert len(exports) == 1


def test_old_graphs_make_room(source, exports, tmp_path):
    for k in range(graph_cache._KEPT + 3):
        graph_cache.network_graph(dataclasses.replace(source, weights_sha256=str(k)))
    assert len(list((tmp_path / "difiisr_ros").iterdir())) == graph_cache._KEPT


def test_without_the_exporter_torch_takes_over_and_says_why(source, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(onnx_graph, "find_spec", lambda name: None)
    _, choice = select_backend("auto", source)
    assert choice.name == "torch"
    assert "pip install onnx onnxscript onnxruntime" in dict(choice.passed_over)["onnxruntime"]
    with pytest.raises(BackendUnavailable, match=r"onnxruntime.*pip install"):
        select_backend("onnxruntime", source)


def test_an_unwritable_cache_lets_torch_take_over(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    _, choice = select_backend("auto", source)
    assert choice.name == "torch"
    assert str(tmp_path / "file") in dict(choice.passed_over)["onnxruntime"]


def test_half_precision_on_a_cpu_runs_in_torch(network):
    _, choice = select_backend("auto", NetworkSource(network, "", CPU, "bf16"))
    assert choice.name == "torch"
    assert "fp32 only" in dict(choice.passed_over)["onnxruntime"]


@pytest.mark.parametrize("wrong", [0.01, torch.nan])
def test_a_backend_that_computes_something_else_is_passed_over(source, builders, wrong):
    class Wrong(Runner):
        def __call__(self, *inputs):
            return self.network(*inputs) + wrong

    builders["onnxruntime"] = lambda source: Wrong(source.network)
    _, choice = select_backend("auto", source)
    assert choice.name == "torch"
    assert "differs from torch" in dict(choice.passed_over)["onnxruntime"]
    with pytest.raises(BackendUnavailable, match=r"backend onnxruntime: .*differs from torch"):
        select_backend("onnxruntime", source)


def test_any_failure_of_a_backend_is_a_reason_with_its_kind(source, builders):
    builders["onnxruntime"] = refuse(RuntimeError("no such\n provider"))
    _, choice = select_backend("auto", source)
    assert dict(choice.passed_over)["onnxruntime"] == "RuntimeError: no such provider"


@pytest.mark.parametrize("tile_given", [False, True])
def test_a_backend_of_one_small_tile_is_automatic_only_where_tiles_are_asked_for(
    network, builders, tile_given, monkeypatch
):
    monkeypatch.setattr(selection, "_check_agreement", lambda runner, source: None)
    for name in ("tensorrt", "torch_tensorrt", "torch"):
        builders[name] = lambda source: Runner(source.network)
    builders["tensorrt"] = refuse(BackendUnavailable("no engine"))
    source = NetworkSource(network, "", torch.device("cuda"), tile_given=tile_given)
    _, choice = select_backend("auto", source)
    assert choice.name == ("torch_tensorrt" if tile_given else "torch")
    assert dict(choice.passed_over)["tensorrt"] == "no engine"
    assert ("torch_tensorrt" in dict(choice.passed_over)) is not tile_given


@pytest.mark.parametrize("mismatch", ["fallback", "rebuild"])
def test_a_refused_engine_falls_back_when_asked_for_by_name(network, builders, mismatch):
    source = NetworkSource(network, "", CPU, engine=ENGINE, engine_mismatch=mismatch)
    builders["tensorrt"] = refuse(EngineRefused("built for TensorRT 10.3, here is 10.16"))
    builders["onnxruntime"] = lambda source: Runner(source.network)
    if mismatch == "rebuild":  # the backend has tried that already
        with pytest.raises(BackendUnavailable, match=r"backend tensorrt: .*TensorRT 10\.3"):
            select_backend("tensorrt", source)
        return
    _, choice = select_backend("tensorrt", source)
    assert choice.name == "onnxruntime"
    assert dict(choice.passed_over) == {"tensorrt": "built for TensorRT 10.3, here is 10.16"}


def test_a_refused_engine_fails_when_so_configured(network, builders):
    source = NetworkSource(network, "", CPU, engine=ENGINE, engine_mismatch="fail")
    builders["tensorrt"] = refuse(EngineRefused("sha256"))
    for name in ("tensorrt", "auto"):
        with pytest.raises(BackendUnavailable, match=r"backend tensorrt: .*sha256"):
            select_backend(name, source)


@pytest.mark.parametrize("error", [BackendUnavailable("no driver"), ModuleNotFoundError("no trt")])
def test_the_policy_counts_for_everything_that_keeps_an_engine_from_running(
    network, builders, error
):
    builders["tensorrt"] = refuse(error)
    builders["onnxruntime"] = lambda source: Runner(source.network)
    for name in ("tensorrt", "auto"):
        lenient = NetworkSource(network, "", CPU, engine=ENGINE, engine_mismatch="fallback")
        _, choice = select_backend(name, lenient)
        assert choice.name == "onnxruntime"
        assert dict(choice.passed_over)["tensorrt"] == str(error)
        strict = NetworkSource(network, "", CPU, engine=ENGINE, engine_mismatch="fail")
        with pytest.raises(BackendUnavailable, match=f"backend tensorrt: {error}"):
            select_backend(name, strict)


def test_models_without_a_network_to_hand_over_say_so():
    up = load_upscaler("bicubic", device="cpu", backend="onnxruntime")
    assert up.backend == "torch"
    assert up.passed_over == (("onnxruntime", "bicubic always runs in torch"),)
    up = load_upscaler("bicubic", engine="/some.plan")
    assert up.passed_over == (("tensorrt", "bicubic always runs in torch"),)
    with pytest.raises(BackendUnavailable, match=r"some\.plan"):
        load_upscaler("bicubic", engine="/some.plan", engine_mismatch="fail")
    # As with every model, an engine counts only where TensorRT is to run.
    plain = load_upscaler("bicubic", backend="torch", engine="/x.plan", engine_mismatch="fail")
    assert plain.passed_over == ()


def test_unknown_precision_and_engine_policy_are_refused():
    with pytest.raises(ValueError, match="'int3' is not one of fp32, bf16, fp16"):
        load_upscaler("bicubic", precision="int3")
    with pytest.raises(ValueError, match="'shrug' is not one of rebuild, fallback, fail"):
        load_upscaler("bicubic", engine_mismatch="shrug")


@pytest.mark.parametrize("size", [(30, 30), (44, 52), (61, 90)])
def test_a_runner_of_one_shape_takes_frames_of_any(network, size):
    """Smaller frames are filled up, larger ones are cut into tiles, batches are completed."""
    settings = UpscalerSettings(tile=32, overlap=8, tile_batch=2, seed=None)
    fixed, free = (
        Upscaler(
            "tiny", CompactModel(runner, 0, exponential_schedule(), 3.0), "", CPU, "", settings
        )
        for runner in (Runner(network, (2, 40, 48)), Runner(network))
    )
    fixed.warm_up()
    (frame,) = frames(1, *size)
    # But where the frame's own border is inside the tile: the network saw a mirror there.
    rows, columns = (slice(4 * (side - 12)) for side in size)
    difference = np.abs(fixed(frame) - free(frame).astype(int))[rows, columns]
    assert difference.max() < 0.02 * np.ptp(frame)
    assert fixed.with_settings(steps=2, tile=32).settings.steps == 2
    with pytest.raises(ValueError, match=r"tile cannot change: .* 2x40x48"):
        fixed.with_settings(tile=64)


def test_the_file_of_the_weights_may_change_under_a_running_model(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    up = load_upscaler(str(copy), device="cpu", backend="torch")
    frame = frames(1)[0]
    before = up(frame)
    path = copy / "network.safetensors"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\x41" * (size // 2))
    up.reset()
    np.testing.assert_array_equal(up(frame), before)


def test_the_profile_names_every_stage(folder):
    up = load_upscaler(str(folder), device="cpu", backend="torch", tile=32, overlap=8)
    times = {stage.name: stage.host_ms for stage in profile_stages(up, 40, 48)}
    parts = {"range", "to device", "tiles", "consistency", "to counts"}
    assert set(times) == parts | {"frame", "network"}
    assert 0 < times["network"] < times["tiles"]
    assert sum(times[name] for name in parts) == pytest.approx(times["frame"], rel=0.5)


@pytest.mark.slow
def test_a_compiled_network_equals_the_eager_one(folder):
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    compiled, eager = (
        load_upscaler(str(folder), device="cpu", backend="torch", compile=c) for c in (True, False)
    )
    frame = frames(1)[0]
    np.testing.assert_allclose(compiled(frame), eager(frame).astype(int), atol=1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_cuda_graphs_replay_what_torch_computes(folder, precision):
    frame = frames(1)[0]
    expected = load_upscaler(str(folder), device="cpu", backend="torch")(frame).astype(int)
    up = load_upscaler(str(folder), device="cuda", backend="torch", precision=precision)
    for _ in range(3):
        up.reset()
        assert np.abs(up(frame) - expected).max() <= 0.02 * np.ptp(frame)


@pytest.mark.parametrize(
    ("capability", "precision", "compiled", "channels"),
    [
        ((9, 0), "fp16", False, 64),
        ((9, 0), "bf16", True, 64),
        ((9, 0), "bf16", False, 16),
        ((9, 0), "fp32", True, 16),
        ((8, 9), "fp16", True, 16),
        ((12, 0), "bf16", True, 16),
    ],
)
def test_hopper_gets_a_whole_number_of_64_channels(
    monkeypatch, capability, precision, compiled, channels
):
    """Where that was measured to be faster, and nowhere else."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    network = CompactNetwork(CompactConfig(channels=16, blocks=1))
    source = NetworkSource(network, "", torch.device("cuda"), precision, compiled)
    assert torch_runner._of_a_width_that_suits(source).config.channels == channels
