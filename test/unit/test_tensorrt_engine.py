"""Engine files: built for real by tensorrt_rtx, and nothing is deserialised unless all is right."""

import hashlib
import json
import os
import sys
from types import SimpleNamespace

import pytest
import torch

from difiisr_models import Runtime
from difiisr_models.backends import (
    BackendUnavailable,
    EngineRefused,
    NetworkSource,
    tensorrt_engine,
)
from difiisr_models.backends.tensorrt_engine import (
    EngineDescription,
    build_engine,
    import_tensorrt,
    read_engine,
    read_sidecar,
    sidecar_path,
    tensorrt_logger,
    this_machine,
    write_engine,
)
from difiisr_models.files import sha256_file
from difiisr_ros import cli

MACHINE = {
    "tensorrt": "tensorrt 10.3.0", "compute_capability": "8.7", "gpu": "Orin",
    "system": "Linux aarch64",
}  # fmt: skip
PLAN = b"ftrt" + bytes(1000)
WEIGHTS = "a" * 64
DESCRIPTION = EngineDescription(
    MACHINE, "difiisr-rt-x4", WEIGHTS, "fp16", 2, 120, 160, "b" * 64,
    hashlib.sha256(PLAN).hexdigest(), 31.5, "0.1.0",
)  # fmt: skip
COMMAND = "difiisr build-engine difiisr-rt-x4 {} --size 160x120 --precision fp16 --batch 2 --force"


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "model.plan"
    write_engine(path, PLAN, DESCRIPTION)
    return path


def source(weights=WEIGHTS, precision="fp16", model="difiisr-rt-x4", device="cuda"):
    runtime = Runtime(precision=precision)
    return NetworkSource(None, weights, torch.device(device), runtime, model)


def refusal(plan, here=MACHINE, *changes, **named):
    with pytest.raises(EngineRefused) as caught:
        read_engine(plan, here, source(*changes, **named))
    return str(caught.value)


def test_an_engine_of_this_machine_is_read(plan):
    assert read_engine(plan, MACHINE, source()) == (DESCRIPTION, PLAN)
    assert {path.name for path in plan.parent.iterdir()} == {"model.plan", "model.plan.json"}
    for path in plan.parent.iterdir():
        assert path.stat().st_mode & 0o777 == 0o644


def test_all_mismatches_are_named_at_once(plan):
    plan.write_bytes(PLAN[:-1])
    values = ("tensorrt 11.0", "12.0", "NVIDIA RTX", "Linux x86_64")
    here = dict(zip(MACHINE, values, strict=True))
    text = refusal(plan, here, "c" * 64, "fp32", "my/model", "cuda:1")
    for part in (
        "its tensorrt is tensorrt 10.3.0, tensorrt 11.0 is needed",
        "its compute_capability is 8.7, 12.0 is needed",
        "its gpu is Orin, NVIDIA RTX is needed",
        "its system is Linux aarch64, Linux x86_64 is needed",
        f"its weights_sha256 is {WEIGHTS}, {'c' * 64} is needed",
        "its precision is fp16, fp32 is needed",
        f"{len(PLAN) - 1} bytes have sha256 {hashlib.sha256(PLAN[:-1]).hexdigest()}",
        hashlib.sha256(PLAN).hexdigest(),
        f"Build it: difiisr build-engine my/model {plan} --size 160x120 --precision fp32 ",
        "--device cuda:1 --force",
    ):
        assert part in text


def test_missing_files_are_named_with_the_command(plan, tmp_path):
    other = tmp_path / "other.plan"
    text = refusal(other)
    assert f"{other}.json cannot be read: No such file" in text
    assert (
        f"difiisr build-engine difiisr-rt-x4 {other} --size WIDTHxHEIGHT --precision fp16" in text
    )
    sidecar_path(plan).unlink()
    text = refusal(plan)
    assert f"Delete {plan}, then build it: difiisr build-engine" in text  # it would be refused


@pytest.mark.parametrize("name", ["model.plan", "model.plan.json"])
def test_files_that_others_may_change_are_refused(plan, tmp_path, name):
    path = plan.parent / name
    for mode in (0o664, 0o646):
        path.chmod(mode)
        assert f"{name} has mode {mode:03o}: others may write it" in refusal(plan)
    (tmp_path / "elsewhere").mkdir()
    target = path.rename(tmp_path / "elsewhere" / name)
    path.symlink_to(target)
    assert f"is a link to {target}" in refusal(plan)


def test_files_of_another_user_are_refused(plan, monkeypatch):
    owner = plan.stat().st_uid
    if owner == 0:
        owner = 12345
        os.chown(plan, owner, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert f"belongs to user {owner}, not to this user" in refusal(plan)


def test_a_folder_or_pipe_is_no_engine(plan):
    plan.unlink()
    os.mkfifo(plan)
    assert "is not a file" in refusal(plan)
    plan.unlink()
    plan.mkdir()
    assert "Is a directory" in refusal(plan)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "\udcff", "[" * 200_000, {"format": 2}, {"batch": 0}, {"batch": True},
     {"width": 1.5}, {"machine": {"tensorrt": 1}}, {"precision": "int4"}, {"extra": 1}],
)  # fmt: skip
def test_what_is_no_sidecar_is_refused(plan, content):
    path = sidecar_path(plan)
    is_field = isinstance(content, dict)
    text = json.dumps(json.loads(path.read_text()) | content) if is_field else content
    path.write_bytes(text.encode(errors="surrogateescape"))
    text = refusal(plan)
    assert "model.plan.json does not describe an engine" in text
    assert not is_field or next(iter(content)) in text


def test_without_tensorrt_the_text_says_what_to_install(monkeypatch):
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r"docs/platforms\.md"):
        import_tensorrt()
    with pytest.raises(ModuleNotFoundError):
        this_machine(None)


# Building, by tensorrt_rtx, which needs no GPU for that.

SIZE = ("--size", "32x24")


@pytest.fixture(scope="module")
def trt():
    """tensorrt_rtx alone, also where there is a TensorRT or a GPU."""
    trt = pytest.importorskip("tensorrt_rtx", reason="needs the extra tensorrt")
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason="needs the extra onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorrt_engine, "import_tensorrt", lambda: trt)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        tensorrt_logger.cache_clear()
        yield trt
    tensorrt_logger.cache_clear()


@pytest.fixture(scope="module")
def graph(trt, tiny_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "tiny.onnx"
    assert cli.main(["export", str(tiny_folder), str(path), *SIZE, "--batch", "2"]) == 0
    return path


@pytest.fixture
def build(tiny_folder, graph, tmp_path, monkeypatch):
    """Build ``x.plan`` from a graph that stands for the exported one."""
    weights = sha256_file(tiny_folder / "network.safetensors")

    def build(graph=graph, plan=tmp_path / "x.plan", here=None):
        here = here or this_machine(None)
        wanted = EngineDescription(here, str(tiny_folder), weights, "fp32", 2, 24, 32)
        exported = SimpleNamespace(graph=graph.read_bytes())
        monkeypatch.setattr(tensorrt_engine, "export_graph", lambda *_: exported)
        return build_engine(None, plan, wanted)

    return build


def changed(trt, **attributes):
    """The module with other attributes."""
    return SimpleNamespace(**{name: getattr(trt, name) for name in dir(trt)} | attributes)


def test_the_command_builds_an_engine_and_describes_it(trt, tiny_folder, tmp_path, capsys, json_of):
    plan = tmp_path / "out" / "tiny.plan"
    arguments = ["build-engine", str(tiny_folder), str(plan), *SIZE, "--precision", "fp16"]
    facts = json_of(*arguments, "--batch", "2")
    assert facts["bytes"] == plan.stat().st_size
    assert "no GPU here" in capsys.readouterr().err
    described = read_sidecar(plan)
    assert facts["plan_sha256"] == described.plan_sha256
    assert described.machine == this_machine(None)
    assert described.machine["tensorrt"] == f"tensorrt_rtx {trt.__version__}"
    assert (described.precision, described.shape) == ("fp16", (2, 24, 32))
    assert described.weights_sha256 == sha256_file(tiny_folder / "network.safetensors")
    assert described.plan_sha256 == sha256_file(plan)
    assert described.build_seconds > 0
    assert plan.stat().st_size > 10_000
    # The one built without a GPU is refused on a machine that has one.
    here = described.machine | {"compute_capability": "8.9", "gpu": "RTX 4090"}
    text = refusal(plan, here, described.weights_sha256)
    assert "compute_capability is none, 8.9 is needed" in text
    fields = json.loads((plan.parent / "tiny.plan.json").read_text())  # as others may read it
    assert fields["format"] == 1
    assert set(fields["machine"]) == {"tensorrt", "compute_capability", "gpu", "system"}
    assert cli.main(arguments) == 1
    assert "--force replaces it" in capsys.readouterr().err
    assert cli.main([*arguments, "--force", "--device", "cpu"]) == 1
    assert "'cpu' is not cuda" in capsys.readouterr().err
    assert read_sidecar(plan) == described


def test_every_node_that_cannot_be_parsed_is_named_and_nothing_is_left(graph, build, tmp_path):
    import onnx

    model = onnx.load(graph)
    doctored = [node for node in model.graph.node if node.op_type == "LeakyRelu"]
    assert len(doctored) >= 2
    for node in doctored:
        node.op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(BackendUnavailable) as caught:
        build(tmp_path / "bad.onnx")
    for node in doctored:
        assert f"node {node.name!r} (NoSuchOperator)" in str(caught.value)
    (tmp_path / "bad.onnx").write_bytes(graph.read_bytes()[:1000])
    with pytest.raises(BackendUnavailable, match="cannot read"):
        build(tmp_path / "bad.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.onnx"]


def test_a_file_that_may_be_no_engine_is_not_overwritten(build, tmp_path):
    letter = tmp_path / "letter.txt"
    letter.write_text("dear")
    with pytest.raises(FileExistsError, match=r"letter\.txt\.json cannot be read"):
        build(plan=letter)
    assert letter.read_text() == "dear"
    (tmp_path / "package.json").write_text('{"name": "mine"}')
    with pytest.raises(FileExistsError, match=r"package\.json exists, .* may be no engine"):
        build(plan=tmp_path / "package")
    assert (tmp_path / "package.json").read_text() == '{"name": "mine"}'


def test_what_tensorrt_says_is_in_the_error(trt, build, tmp_path, monkeypatch):
    logger = tensorrt_logger()

    class Broken(trt.Builder):
        def build_serialized_network(self, network, config):
            logger.log(trt.ILogger.Severity.ERROR, "out of paper")

    monkeypatch.setattr(tensorrt_engine, "import_tensorrt", lambda: changed(trt, Builder=Broken))
    with pytest.raises(BackendUnavailable, match=r"built no engine .*TensorRT says: out of paper"):
        build()
    assert not list(tmp_path.iterdir())


def test_an_engine_that_this_gpu_refuses_is_not_written(trt, build, tmp_path, monkeypatch):
    """As tensorrt_rtx did on an H200."""
    logger = tensorrt_logger()

    def refuse(plan):
        assert len(plan) > 10_000
        logger.log(trt.ILogger.Severity.ERROR, "does not support this compute capability")

    module = changed(
        trt,
        ComputeCapability=SimpleNamespace(CURRENT=trt.ComputeCapability.SM86),
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=refuse),
    )
    monkeypatch.setattr(tensorrt_engine, "import_tensorrt", lambda: module)
    here = this_machine(None) | {"compute_capability": "9.0", "gpu": "NVIDIA H200"}
    with pytest.raises(
        BackendUnavailable, match=r"NVIDIA H200 \(9\.0\).* says: does not support this"
    ):
        build(here=here)
    assert not list(tmp_path.iterdir())


def test_tensorrt_itself_needs_its_gpu(build, monkeypatch):
    module = SimpleNamespace(__name__="tensorrt", __version__="10.3.0")
    monkeypatch.setattr(tensorrt_engine, "import_tensorrt", lambda: module)
    with pytest.raises(BackendUnavailable, match="only where their GPU is"):
        build()
