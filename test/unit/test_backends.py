"""Which backend runs, why others do not, and that each gives what torch gives."""

import hashlib
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from difiisr_models import FrameSettings, Runtime, load_upscaler, model_loading
from difiisr_models.backends import (
    BackendUnavailable,
    EngineRefused,
    NetworkSource,
    example_inputs,
    onnx_graphs,
    selection,
)
from difiisr_models.backends.selection import select_backend
from difiisr_models.diffusion import exponential_schedule
from difiisr_models.frame_model import CompactModel
from difiisr_models.model_loading import load_quickest
from difiisr_models.upscaler import Upscaler

CPU = torch.device("cpu")
ENGINE = "network.plan"


@pytest.fixture
def source_of(tiny_network):
    """A source with these fields of its runtime."""

    def source_of(device=CPU, weights="a" * 64, **fields):
        return NetworkSource(tiny_network, weights, device, Runtime(**fields))

    return source_of


@pytest.fixture
def builders(monkeypatch):
    """The backends; a test sets how each is built."""
    unavailable = refuse(BackendUnavailable("needs a CUDA GPU"))
    for name in ("tensorrt", "torch_tensorrt"):
        monkeypatch.setitem(selection.BUILDERS, name, unavailable)
    monkeypatch.setitem(selection.BUILDERS, "onnxruntime", unavailable)  # until a test sets it
    return selection.BUILDERS


def refuse(error):
    def build_runner(source):
        raise error

    return build_runner


def frames(count, height=44, width=52):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    scene = 22000 + 300 * np.sin(x / 3.1) * np.cos(y / 4.3)
    return [(scene + rng.normal(0, 5, scene.shape)).astype(np.uint16) for _ in range(count)]


class Engine:
    """The network in torch, of one shape as an engine is."""

    def __init__(self, network, shape):
        self.network, self.shape = network, shape

    def __call__(self, x_t, y, lr, t, fidelity):
        assert self.shape == (len(lr), *lr.shape[2:])
        return self.network(x_t, y, lr, t, fidelity)


def test_onnx_runtime_is_the_default_on_a_cpu_and_equals_torch(tiny_folder):
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason="needs the extra onnx")
    settings = {"device": "cpu", "tile": 40, "overlap": 8, "tile_batch": 3}
    default = load_upscaler(str(tiny_folder), **settings)
    assert (default.backend, default.runtime.precision) == ("onnxruntime", "fp32")
    assert [name for name, _ in default.passed_over] == ["tensorrt", "torch_tensorrt"]
    assert all("needs a CUDA GPU" in reason for _, reason in default.passed_over)
    in_torch = load_upscaler(str(tiny_folder), backend="torch", **settings)
    assert (in_torch.backend, in_torch.passed_over) == ("torch", ())
    for changes in ({}, {"fidelity": 0.0}, {"steps": 3}):
        for up in (default, in_torch):
            up.change(**changes)
        for frame in frames(2):
            np.testing.assert_allclose(default(frame), in_torch(frame).astype(int), atol=1)


@pytest.fixture
def exports(tmp_path, monkeypatch):
    """The networks exported to a cache of the test's own, as files that are no graphs."""
    exports = []

    def export(network, *_):
        exports.append(network)
        return onnx_graphs.Exported(b"graph %d" % len(exports), 0.0, 1.0)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(onnx_graphs, "export_graph", export)
    return exports


def test_a_graph_is_exported_once_unless_damaged_and_makes_room(source_of, exports, tmp_path):
    graph, cache = onnx_graphs.network_graph, tmp_path / "difiisr_ros"
    assert [graph(source_of()) for _ in range(3)] == [b"graph 1"] * 3
    (kept,) = cache.iterdir()
    kept.write_bytes(b"grapf 1")
    assert graph(source_of()) == b"graph 2"
    (kept,) = cache.iterdir()
    assert kept.stem.endswith(hashlib.sha256(b"graph 2").hexdigest())
    for k in range(onnx_graphs.KEPT_GRAPHS + 3):
        graph(source_of(weights=str(k)))
    assert len(list(cache.iterdir())) == onnx_graphs.KEPT_GRAPHS


def test_a_cache_that_may_only_be_read_serves(source_of, exports, monkeypatch):
    graph = onnx_graphs.network_graph(source_of())

    def refuse_touch(path):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "touch", refuse_touch)
    assert onnx_graphs.network_graph(source_of()) == graph
    assert len(exports) == 1


def test_without_exporter_or_cache_torch_takes_over_and_says_why(source_of, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(onnx_graphs, "export_graph", lambda *_: SimpleNamespace(graph=b"graph"))
    _, choice = select_backend(source_of())
    assert choice.name == "torch"
    assert str(tmp_path / "file") in dict(choice.passed_over)["onnxruntime"]
    monkeypatch.setattr(onnx_graphs, "find_spec", lambda name: None)
    _, choice = select_backend(source_of())
    assert choice.name == "torch"
    assert "pip install onnx onnxscript onnxruntime" in dict(choice.passed_over)["onnxruntime"]
    with pytest.raises(BackendUnavailable, match=r"onnxruntime.*pip install"):
        select_backend(source_of(backend="onnxruntime"))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda source: lambda *inputs: source.network(*inputs) + 0.01, "differs from torch by"),
        (lambda source: lambda *inputs: source.network(*inputs) + torch.nan, "differs from torch"),
        (refuse(RuntimeError("no such\n provider")), "RuntimeError: no such provider"),
    ],
)
def test_a_backend_that_fails_or_computes_something_else_is_passed_over(
    source_of, builders, build, reason
):
    builders["onnxruntime"] = build
    _, choice = select_backend(source_of())
    assert choice.name == "torch"
    assert reason in dict(choice.passed_over)["onnxruntime"]
    with pytest.raises(BackendUnavailable, match=f"backend onnxruntime: .*{reason}"):
        select_backend(source_of(backend="onnxruntime"))


@pytest.mark.parametrize(("tile", "reason"), [(0, "set 'tile'"), (256, "not installed")])
def test_a_backend_of_one_small_tile_is_automatic_only_where_tiles_are_asked_for(
    source_of, tile, reason, monkeypatch
):
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    monkeypatch.setitem(selection.BUILDERS, "torch", lambda source: source.network)
    _, choice = select_backend(source_of(torch.device("cuda"), tile=tile))
    assert choice.name == "torch"
    assert reason in dict(choice.passed_over)["torch_tensorrt"]


@pytest.mark.parametrize("backend", ["tensorrt", "auto"])
@pytest.mark.parametrize("error", [EngineRefused("TensorRT 10.3"), ModuleNotFoundError("no trt")])
def test_the_policy_counts_for_everything_that_keeps_an_engine_from_running(
    source_of, builders, backend, error
):
    builders["tensorrt"] = refuse(error)
    builders["onnxruntime"] = lambda source: source.network
    _, choice = select_backend(source_of(backend=backend, engine=ENGINE))
    assert choice.name == "onnxruntime"
    assert dict(choice.passed_over)["tensorrt"] == str(error)
    for policy in ("fail", "rebuild")[: 1 + (backend == "tensorrt")]:  # rebuilding was tried
        with pytest.raises(BackendUnavailable, match=f"backend tensorrt: {error}"):
            select_backend(source_of(backend=backend, engine=ENGINE, engine_mismatch=policy))


def test_a_model_without_a_network_takes_no_engine():
    with pytest.raises(BackendUnavailable, match=r"some\.plan"):
        load_upscaler("bicubic", engine="/some.plan", engine_mismatch="fail")


@pytest.mark.parametrize("size", [(30, 30), (44, 52), (61, 90)])
def test_a_runner_of_one_shape_takes_frames_of_any(tiny_network, size):
    """Smaller frames are filled up, larger ones are cut into tiles, batches are completed."""
    runtime, settings = Runtime(tile=32, overlap=8, tile_batch=2), FrameSettings(seed=-1)
    fixed, free = (
        Upscaler(
            "tiny", CompactModel(tiny_network, exponential_schedule(), runner), runtime=runtime,
            settings=settings,
        )
        for runner in (Engine(tiny_network, (2, 40, 48)), None)
    )  # fmt: skip
    fixed.warm_up()
    (frame,) = frames(1, *size)
    # But where the frame's own border is inside the tile: the tiny_network saw a mirror there.
    rows, columns = (slice(4 * (side - 12)) for side in size)
    difference = np.abs(fixed(frame) - free(frame).astype(int))[rows, columns]
    assert difference.max() < 0.02 * np.ptp(frame)
    fixed.change(steps=2, tile=32)
    assert fixed.settings.steps == 2
    with pytest.raises(ValueError, match=r"tile cannot change: .* 2x40x48"):
        fixed.change(tile=64)


def test_the_profile_names_every_stage(tiny_folder, difiisr):
    tiles = ("--backend", "torch", "--tile", "32", "--overlap", "8")
    said = difiisr("info", tiny_folder, "--size", "48x40", "--device", "cpu", *tiles).out
    lines = said.partition("GPU\n")[2].splitlines()
    times = {line[12:26].strip(): float(line[24:33]) for line in lines}
    parts = {"stream", "to device", "tiles", "consistency", "to counts"}
    assert set(times) == parts | {"frame", "network"}
    assert 0 < times["network"] < times["tiles"]
    assert sum(times[name] for name in parts) == pytest.approx(times["frame"], rel=0.5)


@pytest.mark.slow
def test_a_compiled_network_equals_the_eager_one(tiny_folder):
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    compiled, eager = (
        load_upscaler(str(tiny_folder), device="cpu", backend="torch", compile=c)
        for c in (True, False)
    )
    frame = frames(1)[0]
    np.testing.assert_allclose(compiled(frame), eager(frame).astype(int), atol=1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_cuda_graphs_replay_what_torch_computes(tiny_folder, precision):
    frame = frames(1)[0]
    expected = load_upscaler(str(tiny_folder), device="cpu", backend="torch")(frame).astype(int)
    up = load_upscaler(str(tiny_folder), device="cuda", backend="torch", precision=precision)
    for _ in range(3):
        up.reset()
        assert np.abs(up(frame) - expected).max() <= 0.02 * np.ptp(frame)


def test_openvino_equals_torch_to_rounding_and_refuses_what_it_does_not_compute(source_of):
    with pytest.raises(BackendUnavailable, match="fp16 on cpu was asked for"):
        select_backend(source_of(backend="openvino", precision="fp16"))
    for name in ("onnx", "onnxscript", "openvino"):
        pytest.importorskip(name, reason="needs the extra openvino")
    source = source_of(backend="openvino")
    runner, choice = select_backend(source)
    assert choice.name == "openvino"
    for shape in ((2, 21, 34), (1, 40, 24)):
        for fidelity in (0.0, 1.0):
            inputs = (example_inputs(*shape) | {"fidelity": torch.tensor([fidelity])}).values()
            with torch.inference_mode():
                expected = source.network(*inputs)
            torch.testing.assert_close(runner(*inputs), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("seconds", "flags", "asked", "chosen"),
    [
        ({"openvino": 1, "onnxruntime": 2, "torch": 3}, {"avx2"}, {}, ("openvino", "fp32")),
        ({"openvino": 3, "onnxruntime": 2, "torch": 4}, {"avx2"}, {}, ("onnxruntime", "fp32")),
        ({"openvino": 3, "onnxruntime": 2, "torch": 1}, {"amx_bf16"}, {}, ("torch", "bf16")),
        ({"onnxruntime": 2, "torch": 1}, {"avx512_bf16"}, {"precision": "fp32"}, ("torch", "fp32")),
        ({"openvino": 1}, {"avx512_bf16"}, {"backend": "openvino"}, ("openvino", "bf16")),
        ({"torch": 1}, {"avx2"}, {"backend": "torch"}, ("torch", "fp32")),
    ],
)
def test_the_node_takes_the_backend_that_is_quickest_here(
    monkeypatch, seconds, flags, asked, chosen
):
    now, loaded = [0.0], []

    class Timed:
        measured, passed_over = {}, ()

        def __init__(self, backend, runtime):
            self.backend, self.runtime = backend, runtime

        def __call__(self, frame, stream):
            now[0] += seconds[self.backend]

    def load(name, runtime, settings):
        if runtime.backend not in seconds:
            raise BackendUnavailable("not installed")
        loaded.append((runtime.backend, runtime.precision))
        return Timed(runtime.backend, runtime)

    monkeypatch.setattr(model_loading, "_quickest", {})
    monkeypatch.setattr(model_loading, "load_upscaler", load)
    monkeypatch.setattr(model_loading, "cpu_flags", lambda: flags)
    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(model_loading, "time", clock)
    up = load_quickest("any", device="cpu", **asked)
    assert (up.backend, up.runtime.precision) == chosen
    if not asked:
        assert list(up.measured.values()) == [1e3 * seconds[name] for name in seconds]
    elif "precision" in asked:
        assert up.passed_over == (("openvino", "not installed"),)
    loaded.clear()
    again = load_quickest("any", device="cpu", **asked)
    assert loaded == [chosen], "only what was quickest is loaded again"
    assert (again.measured, again.passed_over) == (up.measured, up.passed_over)
    if not asked:
        del seconds[chosen[0]]
        assert load_quickest("any", device="cpu").backend != chosen[0]
