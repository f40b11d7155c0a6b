"""Engines built for real by tensorrt_rtx, which needs no GPU for that."""

import json
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("tensorrt_rtx", reason="needs the extra tensorrt")
pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

import onnx
import tensorrt_rtx as trt

from difiisr_models.backends import (
    EngineRefused,
    NetworkSource,
    engine_build,
    engine_file,
    tensorrt_module,
)
from difiisr_models.backends.engine_build import BuildError, EngineSettings, build_engine
from difiisr_models.backends.engine_file import Machine, read_engine, read_sidecar, this_machine
from difiisr_models.compact import CompactConfig, CompactNetwork
from difiisr_models.model_loading import save_compact
from difiisr_models.weights import sha256_file
from difiisr_ros import cli

SIZE = ("--input-size", "24x32")


@pytest.fixture(scope="module", autouse=True)
def _only_rtx():
    """These tests are of tensorrt_rtx, also where there is a TensorRT or a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (engine_build, engine_file, tensorrt_module):
            patch.setattr(module, "import_tensorrt", lambda: trt)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        tensorrt_module.tensorrt_logger.cache_clear()
        yield
    tensorrt_module.tensorrt_logger.cache_clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    network = CompactNetwork(CompactConfig(channels=16, blocks=1))
    path = tmp_path_factory.mktemp("weights") / "tiny"
    save_compact(network, path, {})
    return path


@pytest.fixture(scope="module")
def graph(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "tiny.onnx"
    assert cli.main(["export", str(folder), str(path), *SIZE, "--batch", "2"]) == 0
    return path


@pytest.fixture
def settings(folder):
    return EngineSettings(str(folder), sha256_file(folder / "network.safetensors"), 2, 24, 32)


def ignore(phase, done, steps):
    pass


def test_the_command_builds_an_engine_and_describes_it(folder, tmp_path, capsys):
    precision = "fp16"
    plan = tmp_path / "out" / "tiny.plan"
    arguments = ["build-engine", str(folder), str(plan), *SIZE, "--precision", precision]
    assert cli.main([*arguments, "--batch", "2"]) == 0
    shown = capsys.readouterr()
    assert f"{plan}: " in shown.out
    assert "no GPU here" in shown.err
    described = read_sidecar(plan)
    assert described.machine == this_machine(None)
    assert described.machine.tensorrt == f"tensorrt_rtx {trt.__version__}"
    assert (described.precision, described.shape) == (precision, (2, 24, 32))
    assert described.weights_sha256 == sha256_file(folder / "network.safetensors")
    assert described.plan_sha256 == sha256_file(plan)
    assert plan.stat().st_size > 10_000
    # The one built without a GPU is refused on a machine that has one.
    here = Machine(described.machine.tensorrt, "8.9", "RTX 4090", described.machine.system)
    source = NetworkSource(None, described.weights_sha256, torch.device("cuda"), precision)
    with pytest.raises(EngineRefused, match=r"compute capability is none, 8\.9 is needed"):
        read_engine(plan, here, source)
    capsys.readouterr()
    assert cli.main(arguments) == 2
    assert "--force replaces it" in capsys.readouterr().err
    assert read_sidecar(plan) == described


def test_an_exported_graph_is_built_if_it_is_of_the_model(folder, graph, tmp_path, capsys):
    plan = tmp_path / "tiny.plan"
    arguments = ["build-engine", str(folder), str(plan), *SIZE, "--onnx", str(graph)]
    assert cli.main([*arguments, "--batch", "2"]) == 0
    assert read_sidecar(plan).onnx_sha256 == sha256_file(graph)
    capsys.readouterr()
    assert cli.main([*arguments, "--batch", "2", "--precision", "fp16", "--force"]) == 2
    assert "its precision is fp32, fp16 is needed" in capsys.readouterr().err
    assert cli.main([*arguments, "--batch", "1", "--force"]) == 2
    assert "(2, 16, 24, 32)" in capsys.readouterr().err
    other = tmp_path / "other"
    torch.manual_seed(1)
    save_compact(CompactNetwork(CompactConfig(channels=16, blocks=1)), other, {})
    assert cli.main([*arguments[:1], str(other), *arguments[2:], "--force"]) == 2
    assert "its weights_sha256 is" in capsys.readouterr().err
    assert read_sidecar(plan).onnx_sha256 == sha256_file(graph)


def test_every_node_that_cannot_be_parsed_is_named(graph, settings, tmp_path):
    model = onnx.load(graph)
    doctored = [node for node in model.graph.node if node.op_type == "LeakyRelu"]
    assert len(doctored) >= 2
    for node in doctored:
        node.op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(BuildError) as caught:
        build_engine(
            tmp_path / "bad.onnx", tmp_path / "x.plan", settings, this_machine(None), ignore
        )
    for node in doctored:
        assert f"node {node.name!r} (NoSuchOperator)" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.onnx"]


def test_a_damaged_graph_is_an_error_and_leaves_nothing(graph, settings, tmp_path):
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(graph.read_bytes()[:1000])
    with pytest.raises(BuildError, match="cannot read"):
        build_engine(bad, tmp_path / "x.plan", settings, this_machine(None), ignore)
    assert not (tmp_path / "x.plan").exists()


def test_progress_is_told_and_an_interrupt_ends_the_build(graph, settings, tmp_path):
    told = []
    plan = tmp_path / "x.plan"
    build_engine(graph, plan, settings, this_machine(None), lambda *step: told.append(step))
    assert told[0][:2] == ("Building engine", 0)
    assert told[-1] == ("Building engine", told[0][2], told[0][2])
    assert all(0 <= done <= steps for _, done, steps in told)
    plan.unlink()

    def interrupt(phase, done, steps):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(graph, plan, settings, this_machine(None), interrupt)
    assert not plan.exists()


def test_a_file_that_may_be_no_engine_is_not_overwritten(graph, settings, tmp_path):
    letter = tmp_path / "letter.txt"
    letter.write_text("dear")
    with pytest.raises(FileExistsError, match=r"no letter\.txt\.json"):
        build_engine(graph, letter, settings, this_machine(None), ignore)
    assert letter.read_text() == "dear"
    package = tmp_path / "package.json"
    package.write_text('{"name": "mine"}')
    with pytest.raises(FileExistsError, match=r"package\.json exists and describes no engine"):
        build_engine(graph, tmp_path / "package", settings, this_machine(None), ignore)
    assert package.read_text() == '{"name": "mine"}'
    (tmp_path / "package").write_text("dear")  # both are there, and still no engine
    with pytest.raises(FileExistsError, match=r"package\.json exists and describes no engine"):
        build_engine(graph, tmp_path / "package", settings, this_machine(None), ignore)
    assert (tmp_path / "package").read_text() == "dear"


def test_what_tensorrt_says_is_in_the_error(graph, settings, tmp_path, monkeypatch):
    logger, _ = tensorrt_module.tensorrt_logger()

    class Broken:
        def __init__(self, logger):
            self._real = trt.Builder(logger)

        def __getattr__(self, name):
            return getattr(self._real, name)

        def build_serialized_network(self, network, config):
            logger.log(trt.ILogger.Severity.ERROR, "out of paper")

    class Module:
        Builder = Broken

        def __getattr__(self, name):
            return getattr(trt, name)

    monkeypatch.setattr(engine_build, "import_tensorrt", Module)
    with pytest.raises(BuildError, match=r"built no engine .*TensorRT says: out of paper"):
        build_engine(graph, tmp_path / "x.plan", settings, this_machine(None), ignore)
    assert not list(tmp_path.iterdir())


def test_an_engine_that_this_gpu_refuses_is_not_written(graph, settings, tmp_path, monkeypatch):
    """As tensorrt_rtx did on an H200."""
    logger, _ = tensorrt_module.tensorrt_logger()

    def refuse(plan):
        assert len(plan) > 10_000
        logger.log(trt.ILogger.Severity.ERROR, "does not support this compute capability")

    class Module:
        ComputeCapability = SimpleNamespace(CURRENT=trt.ComputeCapability.SM86)

        def Runtime(self, logger):
            return SimpleNamespace(deserialize_cuda_engine=refuse)

        def __getattr__(self, name):
            return getattr(trt, name)

    here = Machine(f"tensorrt_rtx {trt.__version__}", "9.0", "NVIDIA H200", "Linux x86_64")
    monkeypatch.setattr(engine_build, "import_tensorrt", Module)
    with pytest.raises(BuildError, match=r"NVIDIA H200 \(.* 9\.0\).* says: does not support this"):
        build_engine(graph, tmp_path / "x.plan", settings, here, ignore)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_timings_are_kept_and_damaged_ones_replaced(tmp_path):
    logger, _ = tensorrt_module.tensorrt_logger()
    builder = trt.Builder(logger)
    path = tmp_path / "cache" / "timing.cache"
    for _ in range(2):
        config = builder.create_builder_config()
        engine_build.load_timing_cache(config, path)
        engine_build.save_timing_cache(config, path)
        assert path.stat().st_size > 0
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_tensorrt_itself_needs_its_gpu(graph, settings, tmp_path, monkeypatch):
    class TensorRT:
        __name__ = "tensorrt"

    monkeypatch.setattr(engine_build, "import_tensorrt", TensorRT)
    with pytest.raises(BuildError, match="only where their GPU is"):
        build_engine(graph, tmp_path / "x.plan", settings, this_machine(None), ignore)


@pytest.mark.parametrize("changes", [{"batch": 0}, {"height": -1}, {"precision": "int4"}])
def test_settings_out_of_range_are_refused(changes):
    wanted = {"model": "", "weights_sha256": "", "batch": 1, "height": 8, "width": 8} | changes
    with pytest.raises(ValueError, match=next(iter(changes))):
        EngineSettings(**wanted)


def test_the_sidecar_is_plain_json(graph, settings, tmp_path):
    build_engine(graph, tmp_path / "x.plan", settings, this_machine(None), ignore)
    fields = json.loads((tmp_path / "x.plan.json").read_text())
    assert fields["format"] == 1
    assert set(fields["machine"]) == {"tensorrt", "compute_capability", "gpu", "system"}
    assert fields["build_seconds"] > 0
