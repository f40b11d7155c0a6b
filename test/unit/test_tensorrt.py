"""TensorRT engines: nothing is deserialised unless all is right; built by tensorrt_rtx; and run.

On a stand-in for an engine, and on a GPU where there is one.
"""

import ctypes
import gc
import hashlib
import json
import math
import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from difiisr_models import Runtime
from difiisr_models.backends import (
    NETWORK_OUTPUT,
    BackendUnavailable,
    EngineRefused,
    NetworkSource,
    example_inputs,
    tensorrt_engine,
    torch_runner,
)
from difiisr_models.backends.onnx_graphs import export_graph
from difiisr_models.backends.tensorrt_engine import (
    EngineDescription,
    TensorRTRunner,
    build_engine,
    build_tensorrt_runner,
    read_sidecar,
    sidecar_path,
    tensorrt_logger,
    this_machine,
    write_engine,
)
from difiisr_models.files import sha256_file

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHAPE = (2, 24, 32)
INPUTS = tuple(example_inputs(*SHAPE))
MACHINE = {
    "tensorrt": "tensorrt 10.3.0", "compute_capability": "8.7", "gpu": "Orin",
    "system": "Linux aarch64",
}  # fmt: skip
PLAN, WEIGHTS = b"ftrt" + bytes(1000), "a" * 64
WANTED = EngineDescription(MACHINE, "mine", WEIGHTS, "fp32", *SHAPE)


def frames(seed, device="cpu", flat=False):
    generator = torch.Generator().manual_seed(seed)
    sizes = [value.shape for value in example_inputs(*SHAPE).values()][:3]
    x_t, y, lr = (torch.randn(size, generator=generator) for size in sizes)
    if flat:
        y, lr = torch.full_like(y, 0.3), torch.full_like(lr, 0.3)
    inputs = (x_t, y, lr, torch.tensor([seed % 15]), torch.tensor([0.5]))
    return tuple(value.to(device) for value in inputs)


class FakeEngine:
    """A deserialised engine that computes in torch what lies at the addresses it was given."""

    device_memory_size_v2 = 5_000_000

    def __init__(self, network):
        self.network, self.addresses = network, {}
        shapes = {name: tuple(value.shape) for name, value in example_inputs(*SHAPE).items()}
        self.tensors = {name: ["INPUT", "FLOAT", shape] for name, shape in shapes.items()}
        self.tensors["t"][1] = "INT64"
        self.tensors[NETWORK_OUTPUT] = ["OUTPUT", "FLOAT", shapes["y"]]
        self.num_io_tensors = len(self.tensors)
        self.refused = ""  # create_execution_context, execute_async_v3 or a tensor's name
        self.get_tensor_name = lambda index: list(self.tensors)[index]
        self.get_tensor_mode = lambda name: SimpleNamespace(name=self.tensors[name][0])
        self.get_tensor_dtype = lambda name: SimpleNamespace(name=self.tensors[name][1])
        self.get_tensor_shape = lambda name: self.tensors[name][2]

    def create_execution_context(self):
        return None if self.refused == "create_execution_context" else self

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return name != self.refused

    def execute_async_v3(self, stream):
        assert stream == 7, "not torch's current stream"
        if self.refused == "execute_async_v3":
            tensorrt_engine._COMPLAINTS.append("illegal memory access")
            return False
        inputs = [self._memory(name).clone() for name in INPUTS]
        self._memory(NETWORK_OUTPUT).copy_(self.network(*inputs))
        return True

    def _memory(self, name):
        kind = torch.int64 if name == "t" else torch.float32
        shape = self.tensors[name][2]
        buffer = ctypes.c_char * (math.prod(shape) * kind.itemsize)
        there = buffer.from_address(self.addresses[name])
        return torch.frombuffer(there, dtype=kind).reshape(shape)


@pytest.fixture
def fake(tiny_network, monkeypatch):
    """``fake.engine`` is deserialised next, on ``fake.machine``."""
    fake = SimpleNamespace(
        engine=FakeEngine(tiny_network), machine=dict(MACHINE), deserialised=[], log=[]
    )

    def deserialize(plan):
        fake.deserialised.append(plan)
        if fake.engine.refused != "deserialize_cuda_engine":
            return fake.engine
        return tensorrt_engine._COMPLAINTS.append("magic tag does not match")

    fake.Runtime = lambda logger: SimpleNamespace(deserialize_cuda_engine=deserialize)
    for name, value in {
        "current_stream": lambda device: SimpleNamespace(cuda_stream=7),
        "synchronize": lambda device: fake.log.append("synchronised"),
        "device": lambda device: nullcontext(),
        "is_available": lambda: True,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name, value in {
        "CudaGraphs": lambda function: function,
        "import_tensorrt": lambda: fake,
        "tensorrt_logger": lambda: None,
        "this_machine": lambda device: fake.machine,
        "TensorRTRunner": lambda plan, shape, _, recurrent: runner_of(plan),
    }.items():
        monkeypatch.setattr(tensorrt_engine, name, value)
    return fake


def runner_of(plan=b"plan", device=CPU):
    return TensorRTRunner(plan, SHAPE, device, recurrent=False)


@pytest.fixture
def plan(tmp_path):
    """An engine file and its sidecar."""
    path = tmp_path / "x.plan"
    write_engine(path, PLAN, replace(WANTED, plan_sha256=hashlib.sha256(PLAN).hexdigest()))
    return path


@pytest.fixture
def source(tiny_network, plan):
    """The network that the engine file is of."""
    tiles = {"tile": 24, "overlap": 8, "tile_batch": 2}
    runtime = Runtime(precision="fp32", engine=str(plan), **tiles)
    return NetworkSource(tiny_network, WEIGHTS, CUDA, runtime, "mine")


@pytest.fixture
def refusal(fake, source):
    """Says why the engine is refused, for the source with these changes; nothing is loaded."""

    def refusal(runtime=(), **changes):
        asked = replace(source.runtime, **dict(runtime))
        with pytest.raises(EngineRefused) as caught:
            build_tensorrt_runner(replace(source, runtime=asked, **changes))
        assert fake.deserialised == []
        return str(caught.value)

    return refusal


def test_the_engine_of_this_network_and_machine_is_loaded(fake, source, plan):
    assert build_tensorrt_runner(source).shape == SHAPE
    assert fake.deserialised == [PLAN]
    for path in plan.parent.iterdir():
        assert path.stat().st_mode & 0o777 == 0o644


def test_all_mismatches_are_named_at_once(fake, plan, refusal):
    plan.write_bytes(PLAN[:-1])
    values = ("tensorrt 11.0", "12.0", "NVIDIA RTX", "Linux x86_64")
    fake.machine = dict(zip(MACHINE, values, strict=True))
    other = {"weights_sha256": "c" * 64, "model": "my/model", "device": torch.device("cuda:1")}
    text = refusal({"precision": "fp16"}, **other)
    for part in (
        "its tensorrt is tensorrt 10.3.0, tensorrt 11.0 is needed",
        "its compute_capability is 8.7, 12.0 is needed",
        "its gpu is Orin, NVIDIA RTX is needed",
        "its system is Linux aarch64, Linux x86_64 is needed",
        f"its weights_sha256 is {WEIGHTS}, {'c' * 64} is needed",
        "its precision is fp32, fp16 is needed",
        f"{len(PLAN) - 1} bytes have sha256 {hashlib.sha256(PLAN[:-1]).hexdigest()}",
        hashlib.sha256(PLAN).hexdigest(),
        f"Build it: difiisr build-engine my/model {plan} --size 32x24 --precision fp16 ",
        "--device cuda:1 --force",
    ):
        assert part in text


def test_missing_files_are_named_with_the_command(plan, refusal):
    other = plan.with_name("other.plan")
    text = refusal({"engine": str(other)})
    assert f"{other}.json cannot be read: No such file" in text
    assert f"difiisr build-engine mine {other} --size WIDTHxHEIGHT --precision fp32" in text
    sidecar_path(plan).unlink()
    assert f"Delete {plan}, then build it: difiisr build-engine" in refusal()  # it would be refused


@pytest.mark.parametrize("name", ["x.plan", "x.plan.json"])
def test_files_that_others_may_change_are_refused(plan, refusal, name):
    path = plan.parent / name
    for mode in (0o664, 0o646):
        path.chmod(mode)
        assert f"{name} has mode {mode:03o}: others may write it" in refusal()
    target = path.rename(plan.parent / "elsewhere")
    path.symlink_to(target)
    assert f"is a link to {target}" in refusal()


def test_files_of_another_user_are_refused(plan, refusal, monkeypatch):
    owner = plan.stat().st_uid
    if owner == 0:
        owner = 12345
        os.chown(plan, owner, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert f"belongs to user {owner}, not to this user" in refusal()


def test_a_folder_or_pipe_is_no_engine(plan, refusal):
    plan.unlink()
    os.mkfifo(plan)
    assert "is not a file" in refusal()
    plan.unlink()
    plan.mkdir()
    assert "Is a directory" in refusal()


@pytest.mark.parametrize(
    "content",
    ["", "[]", "\udcff", "[" * 200_000, {"format": 2}, {"batch": 0}, {"batch": True},
     {"width": 1.5}, {"machine": {"tensorrt": 1}}, {"precision": "int4"}, {"extra": 1}],
)  # fmt: skip
def test_what_is_no_sidecar_is_refused(plan, refusal, content):
    path = sidecar_path(plan)
    is_field = isinstance(content, dict)
    text = json.dumps(json.loads(path.read_text()) | content) if is_field else content
    path.write_bytes(text.encode(errors="surrogateescape"))
    text = refusal()
    assert "x.plan.json does not describe an engine" in text
    assert not is_field or next(iter(content)) in text


def test_without_driver_gpu_file_or_package_nothing_is_touched(fake, source, monkeypatch):
    for changes, said in (
        ({"device": CPU}, "the device is cpu"),
        ({"runtime": Runtime()}, "difiisr build-engine mine FILE"),
    ):
        with pytest.raises(BackendUnavailable, match=said):
            build_tensorrt_runner(replace(source, **changes))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailable, match="needs an NVIDIA driver"):
        build_tensorrt_runner(source)
    assert fake.deserialised == []
    monkeypatch.undo()
    for name in ("tensorrt", "tensorrt_rtx", "torch_tensorrt"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r"docs/platforms\.md"):
        this_machine(None)
    with pytest.raises(ModuleNotFoundError, match="pip install its release for torch"):
        torch_runner.build_torch_tensorrt_runner(source)
    with pytest.raises(BackendUnavailable, match="the device is cpu"):
        torch_runner.build_torch_tensorrt_runner(replace(source, device=CPU))


@pytest.mark.parametrize("there", [True, False])
def test_rebuild_builds_for_the_tiles_of_the_old_engine_or_the_frames(
    fake, source, plan, monkeypatch, there
):
    built, right = [], sidecar_path(plan).read_bytes()

    def build(network, path, wanted):
        built.append(wanted)
        sidecar_path(path).write_bytes(right)

    monkeypatch.setattr(tensorrt_engine, "build_engine", build)
    if there:
        write_engine(plan, PLAN, replace(WANTED, machine=MACHINE | {"tensorrt": "tensorrt 8.6"}))
    else:
        sidecar_path(plan).unlink()
    runtime = replace(source.runtime, engine_mismatch="rebuild")
    build_tensorrt_runner(replace(source, runtime=runtime))
    width = 32 if there else 24
    assert built == [replace(WANTED, width=width)]
    assert fake.deserialised == [PLAN]


# Running


def test_the_engine_gives_what_torch_gives_and_outlives_its_queued_work(fake, tiny_network):
    runner = runner_of()
    results = [runner(*frames(seed)).clone() for seed in range(3)]
    for seed, result in enumerate(results):
        torch.testing.assert_close(result, tiny_network(*frames(seed)))
    strided = [value.transpose(-1, -2).contiguous().transpose(-1, -2) for value in frames(1)[:3]]
    torch.testing.assert_close(runner(*strided, *frames(1)[3:]), results[1])
    assert fake.log == []
    del runner
    gc.collect()
    assert fake.log == ["synchronised"]


@pytest.mark.parametrize(
    ("refused", "text"),
    [
        ("deserialize_cuda_engine", r"engine of 4 bytes.*says: magic tag does not"),
        ("create_execution_context", "5 MB of GPU memory"),
        ("execute_async_v3", r"could not queue.*illegal memory access"),
        *((name, f"memory of tensor '{name}'") for name in ("x_t", NETWORK_OUTPUT)),
    ],
)
def test_what_tensorrt_refuses_is_an_error_and_says_why(fake, refused, text):
    fake.engine.refused = refused
    with pytest.raises(BackendUnavailable, match=text):
        runner_of()
    fake.engine.refused = ""
    runner = runner_of()
    if refused == "execute_async_v3":  # later, too
        fake.engine.refused = refused
        with pytest.raises(BackendUnavailable, match=text):
            runner(*frames(0))


@pytest.mark.parametrize("change", [lambda x: x[..., :0], lambda x: x.half()])
def test_tensors_of_another_shape_or_dtype_are_refused(fake, change):
    runner = runner_of()
    for wrong in range(len(INPUTS)):
        inputs = list(frames(0))
        inputs[wrong] = change(inputs[wrong])
        with pytest.raises(ValueError, match=r"the engine takes .*, got "):
            runner(*inputs)


@pytest.mark.parametrize(("part", "value"), [(0, "OUTPUT"), (1, "HALF"), (2, (1, 1, 24, 32))])
def test_an_engine_of_other_tensors_is_refused(fake, part, value):
    fake.engine.tensors["lr"][part] = value
    with pytest.raises(EngineRefused, match=r"its tensors are .*, not .* 2, 1, 24, 32\)"):
        runner_of()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_real_engine_gives_what_torch_gives(tiny_network, tmp_path, precision):
    path = tmp_path / "real.plan"
    try:
        machine = this_machine(CUDA)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    try:
        build_engine(tiny_network, path, replace(WANTED, machine=machine, precision=precision))
    except BackendUnavailable as error:
        if "does not support this compute capability" in str(error):
            pytest.skip(str(error))
        raise
    assert read_sidecar(path).machine == machine
    runner = runner_of(path.read_bytes(), CUDA)
    for seed in range(5):
        for flat in (True, False):
            expected = tiny_network(*frames(seed, flat=flat))
            result = runner(*frames(seed, "cuda", flat)).cpu()
            assert torch.isfinite(result).all()
            assert (result - expected).norm() <= 1e-2 * expected.norm()


# Building, by tensorrt_rtx, which needs no GPU for that.


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
def graph(trt, tiny_network):
    return export_graph(tiny_network, SHAPE, "fp32").graph


@pytest.fixture
def build(graph, tmp_path, monkeypatch):
    """Build ``x.plan`` from a graph that stands for the exported one."""

    def build(graph=graph, plan=tmp_path / "x.plan", here=None):
        exported = SimpleNamespace(graph=graph)
        monkeypatch.setattr(tensorrt_engine, "export_graph", lambda *_: exported)
        return build_engine(None, plan, replace(WANTED, machine=here or this_machine(None)))

    return build


def changed(trt, **attributes):
    """The module with other attributes."""
    return SimpleNamespace(**{name: getattr(trt, name) for name in dir(trt)} | attributes)


def test_the_command_builds_an_engine_and_describes_it(
    trt, tiny_folder, tmp_path, difiisr, json_of
):
    plan = tmp_path / "out" / "tiny.plan"
    arguments = ["build-engine", tiny_folder, plan, "--size", "32x24", "--precision", "fp16"]
    facts = json_of(*arguments, "--batch", "2")
    assert facts["bytes"] == plan.stat().st_size > 10_000
    described = read_sidecar(plan)
    assert described.machine == this_machine(None)
    assert described.machine["tensorrt"] == f"tensorrt_rtx {trt.__version__}"
    assert described.machine["compute_capability"] == described.machine["gpu"] == "none"
    assert (described.precision, described.shape) == ("fp16", (2, 24, 32))
    assert described.weights_sha256 == sha256_file(tiny_folder / "network.safetensors")
    assert described.plan_sha256 == facts["plan_sha256"] == sha256_file(plan)
    assert described.build_seconds > 0
    fields = json.loads(sidecar_path(plan).read_text())  # as others may read it
    assert fields["format"] == 1
    assert set(fields["machine"]) == {"tensorrt", "compute_capability", "gpu", "system"}
    assert "--force replaces it" in difiisr(*arguments, code=1).err
    assert "'cpu' is not cuda" in difiisr(*arguments, "--force", "--device", "cpu", code=1).err
    assert read_sidecar(plan) == described
    assert "no GPU here" in difiisr(*arguments, "--force").err


def test_every_node_that_cannot_be_parsed_is_named_and_nothing_is_left(graph, build, tmp_path):
    import onnx

    model = onnx.load_from_string(graph)
    doctored = [node for node in model.graph.node if node.op_type == "LeakyRelu"]
    assert len(doctored) >= 2
    for node in doctored:
        node.op_type = "NoSuchOperator"
    with pytest.raises(BackendUnavailable) as caught:
        build(model.SerializeToString())
    for node in doctored:
        assert f"node {node.name!r} (NoSuchOperator)" in str(caught.value)
    with pytest.raises(BackendUnavailable, match="cannot read"):
        build(graph[:1000])
    assert not list(tmp_path.iterdir())


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
