"""The TensorRT runner: on a fake of the calls that it makes, and on a GPU where there is one."""

import ctypes
import dataclasses
import gc
import hashlib
import sys
from contextlib import contextmanager, nullcontext
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from difiisr_models import load_upscaler
from difiisr_models.backends import (
    BackendUnavailable,
    EngineRefused,
    NetworkSource,
    tensorrt_runner,
    torch_tensorrt_runner,
)
from difiisr_models.backends.engine_build import (
    BuildError,
    EngineSettings,
    build_from_network,
    input_shapes,
)
from difiisr_models.backends.engine_file import (
    EngineDescription,
    Machine,
    read_sidecar,
    this_machine,
    write_engine,
)
from difiisr_models.backends.tensorrt_module import Complaints
from difiisr_models.backends.tensorrt_runner import TensorRTRunner, build_runner
from difiisr_models.compact import CompactConfig, CompactNetwork
from difiisr_models.model_loading import load_network
from difiisr_models.onnx_graph import NETWORK_INPUTS, NETWORK_OUTPUT
from difiisr_models.weights import find_weights_folder, read_manifest
from difiisr_training.data.images import list_images, read_counts

CPU = torch.device("cpu")
SHAPE = (2, 24, 32)
MACHINE = Machine("tensorrt 10.3.0", "8.7", "Orin", "Linux aarch64")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = CompactNetwork(CompactConfig(channels=16, blocks=1))
    network.detail_head.weight.data.normal_(std=0.05)
    return network.eval().requires_grad_(False)


def frames(seed, device="cpu", flat=False):
    generator = torch.Generator().manual_seed(seed)
    shapes = list(input_shapes(SHAPE).values())[:3]
    x_t, y, lr = (torch.randn(size, generator=generator) for size in shapes)
    if flat:
        y, lr = torch.full_like(y, 0.3), torch.full_like(lr, 0.3)
    inputs = (x_t, y, lr, torch.tensor([seed % 15]), torch.tensor([0.5]))
    return tuple(value.to(device) for value in inputs)


class FakeCuda:
    """torch.cuda where every stream is the host; writes down what waits for what."""

    def __init__(self):
        self.log, self.capturing, self.callers = [], None, self._stream("caller")
        self.fail_capture = False

    def _stream(self, name):
        def wait_stream(other):
            self.log.append((name, "waits for", other.name))

        return SimpleNamespace(
            name=name,
            cuda_stream={"caller": 0, "own": 7}[name],
            wait_stream=wait_stream,
            synchronize=lambda: self.log.append((name, "synchronised")),
        )

    def Stream(self, device):
        return self._stream("own")

    def current_stream(self, device):
        return self.callers

    def set_stream(self, stream):
        assert stream is self.callers
        self.log.append("the caller's stream again")

    def device(self, device):
        return nullcontext()

    def stream(self, stream):
        return nullcontext()

    def is_available(self):
        return True

    def CUDAGraph(self):
        log, calls = self.log, []

        def replay():
            log.append("replay")
            for call in calls:
                call()

        return SimpleNamespace(calls=calls, replay=replay)

    @contextmanager
    def graph(self, graph, stream, capture_error_mode):
        assert stream.name == "own"
        if self.fail_capture:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.capturing = graph
        yield
        self.capturing = None


class FakeEngine:
    """A deserialised engine that computes in torch what lies at the addresses it was given."""

    device_memory_size_v2 = 5_000_000

    def __init__(self, trt):
        self.trt = trt
        mode = trt.TensorIOMode
        shapes = input_shapes(SHAPE)
        self.tensors = {
            name: [mode.INPUT, trt.DataType.INT64 if name == "t" else trt.DataType.FLOAT, size]
            for name, size in shapes.items()
        }
        self.tensors[NETWORK_OUTPUT] = [mode.OUTPUT, trt.DataType.FLOAT, shapes["y"]]
        self.addresses = {}
        self.without_context = False
        self.refused_tensor = None
        self.execute_after = -1  # calls after which execution fails

    @property
    def num_io_tensors(self):
        return len(self.tensors)

    def get_tensor_name(self, index):
        return list(self.tensors)[index]

    def get_tensor_mode(self, name):
        return self.tensors[name][0]

    def get_tensor_dtype(self, name):
        return self.tensors[name][1]

    def get_tensor_shape(self, name):
        return self.tensors[name][2]

    def create_execution_context(self):
        return None if self.without_context else self

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return name != self.refused_tensor

    def execute_async_v3(self, stream):
        assert stream == 7, "not the default stream"
        if self.execute_after == 0:
            self.trt.complaints.add("illegal memory access")
            return False
        self.execute_after -= 1
        if self.trt.cuda.capturing is not None:
            self.trt.cuda.capturing.calls.append(self._compute)
        else:
            self.trt.cuda.log.append("execute")
            self._compute()
        return True

    def _compute(self):
        inputs = [torch.from_numpy(self._memory(name).copy()) for name in NETWORK_INPUTS]
        self._memory(NETWORK_OUTPUT)[...] = self.trt.network(*inputs).numpy()

    def _memory(self, name):
        _, dtype, size = self.tensors[name]
        integers = dtype == self.trt.DataType.INT64
        kind = ctypes.c_int64 if integers else ctypes.c_float
        array = (kind * int(np.prod(size))).from_address(self.addresses[name])
        return np.ctypeslib.as_array(array).reshape(size)


@pytest.fixture
def fake(network, monkeypatch):
    """The fake module; ``fake.engine`` is what it deserialises next."""
    member = lambda name: SimpleNamespace(name=name)  # noqa: E731
    trt = SimpleNamespace(
        network=network,
        cuda=FakeCuda(),
        complaints=Complaints(),
        DataType=SimpleNamespace(FLOAT=member("FLOAT"), INT64=member("INT64"), HALF=member("HALF")),
        TensorIOMode=SimpleNamespace(INPUT=member("INPUT"), OUTPUT=member("OUTPUT")),
    )
    trt.engine = FakeEngine(trt)
    trt.deserialised = []

    def deserialize(plan):
        trt.deserialised.append(plan)
        return trt.engine

    trt.Runtime = lambda logger: SimpleNamespace(deserialize_cuda_engine=deserialize)
    monkeypatch.setattr(tensorrt_runner, "cuda", trt.cuda)
    monkeypatch.setattr(tensorrt_runner, "import_tensorrt", lambda: trt)
    monkeypatch.setattr(tensorrt_runner, "tensorrt_logger", lambda: (None, trt.complaints))
    monkeypatch.setattr(tensorrt_runner, "this_machine", lambda device: MACHINE)
    return trt


@pytest.mark.parametrize("capture", [True, False])
def test_the_engine_gives_what_torch_gives(fake, network, capture):
    runner = TensorRTRunner(b"plan", SHAPE, CPU, capture)
    assert runner.shape == SHAPE
    for seed in range(3):
        torch.testing.assert_close(runner(*frames(seed)), network(*frames(seed)))


@pytest.mark.parametrize("capture", [True, False])
def test_streams_wait_for_each_other_and_the_host_for_none(fake, capture):
    runner = TensorRTRunner(b"plan", SHAPE, CPU, capture)
    fake.cuda.log.clear()
    runner(*frames(0))
    assert fake.cuda.log == [
        ("own", "waits for", "caller"),
        "replay" if capture else "execute",
        ("caller", "waits for", "own"),
    ]


def test_memory_is_handed_over_once(fake):
    runner = TensorRTRunner(b"plan", SHAPE, CPU)
    before = dict(fake.engine.addresses)
    first, second = runner(*frames(0)), runner(*frames(1))
    assert fake.engine.addresses == before
    assert first.data_ptr() == second.data_ptr() == before[NETWORK_OUTPUT]


def test_the_engine_outlives_its_queued_work(fake):
    runner = TensorRTRunner(b"plan", SHAPE, CPU)
    fake.cuda.log.clear()
    del runner
    gc.collect()
    assert fake.cuda.log == [("own", "synchronised")]


def test_an_engine_that_cannot_be_captured_runs_all_the_same(fake, network, caplog):
    fake.cuda.fail_capture = True
    runner = TensorRTRunner(b"plan", SHAPE, CPU)
    torch.testing.assert_close(runner(*frames(0)), network(*frames(0)))
    assert "without a CUDA graph" in caplog.text
    assert "the caller's stream again" in fake.cuda.log


def test_an_engine_that_refuses_to_be_captured_runs_all_the_same(fake, network, caplog):
    """Without an exception of CUDA's: it says no while it is recorded, and yes before and after."""
    execute = fake.engine.execute_async_v3
    fake.engine.execute_async_v3 = lambda stream: fake.cuda.capturing is None and execute(stream)
    runner = TensorRTRunner(b"plan", SHAPE, CPU)
    fake.cuda.capturing = None
    torch.testing.assert_close(runner(*frames(0)), network(*frames(0)))
    assert "without a CUDA graph" in caplog.text


def test_an_engine_that_is_not_deserialised_is_an_error(fake):
    fake.engine = None
    fake.Runtime = lambda logger: SimpleNamespace(
        deserialize_cuda_engine=lambda plan: fake.complaints.add("magic tag does not match")
    )
    with pytest.raises(BackendUnavailable, match=r"engine of 4 bytes.*says: magic tag does not"):
        TensorRTRunner(b"plan", SHAPE, CPU)


def test_a_context_without_memory_is_an_error(fake):
    fake.engine.without_context = True
    with pytest.raises(BackendUnavailable, match="needs 5 MB of GPU memory"):
        TensorRTRunner(b"plan", SHAPE, CPU)


@pytest.mark.parametrize("name", [*NETWORK_INPUTS, NETWORK_OUTPUT])
def test_a_refused_address_is_an_error(fake, name):
    fake.engine.refused_tensor = name
    with pytest.raises(BackendUnavailable, match=f"memory of tensor '{name}'"):
        TensorRTRunner(b"plan", SHAPE, CPU)


def test_a_failed_warm_up_is_an_error(fake):
    fake.engine.execute_after = 1
    with pytest.raises(BackendUnavailable, match="illegal memory access"):
        TensorRTRunner(b"plan", SHAPE, CPU)


def test_a_failed_call_is_an_error_and_says_why(fake):
    runner = TensorRTRunner(b"plan", SHAPE, CPU, capture=False)
    runner(*frames(0))
    fake.engine.execute_after = 0
    with pytest.raises(BackendUnavailable, match=r"could not queue.*illegal memory access"):
        runner(*frames(1))


@pytest.mark.parametrize("wrong", range(5))
def test_tensors_of_another_shape_are_refused(fake, wrong):
    runner = TensorRTRunner(b"plan", SHAPE, CPU)
    inputs = list(frames(0))
    inputs[wrong] = inputs[wrong][..., :0]
    fake.cuda.log.clear()
    with pytest.raises(ValueError, match=f"takes {NETWORK_INPUTS[wrong]} of shape"):
        runner(*inputs)
    assert fake.cuda.log == []


def test_engines_of_other_networks_are_refused(fake):
    tensors = fake.engine.tensors
    tensors["noise"] = tensors.pop("x_t")
    with pytest.raises(EngineRefused, match=r"'noise'.*'x_t'.* are needed"):
        TensorRTRunner(b"plan", SHAPE, CPU)


@pytest.mark.parametrize(
    ("part", "value", "text"),
    [
        (0, "OUTPUT", "'lr' is OUTPUT FLOAT"),
        (1, "HALF", "'lr' is INPUT HALF"),
        (2, (1, 1, 24, 32), r"'lr' is INPUT FLOAT \(1, 1, 24, 32\)"),
    ],
)
def test_tensors_of_another_kind_are_refused(fake, part, value, text):
    kinds = (fake.TensorIOMode, fake.DataType)
    fake.engine.tensors["lr"][part] = getattr(kinds[part], value) if part < 2 else value
    with pytest.raises(EngineRefused, match=text + r".* \(2, 1, 24, 32\) is needed"):
        TensorRTRunner(b"plan", SHAPE, CPU)


# From a source to a runner


@pytest.fixture
def source(network, tmp_path):
    return NetworkSource(
        network, "a" * 64, torch.device("cuda"), engine=tmp_path / "x.plan", tile=24, tile_batch=2,
        model="mine",
    )  # fmt: skip


@pytest.fixture
def on_host(fake, monkeypatch):
    """Runners of the source's engine lie on the CPU."""
    make = TensorRTRunner
    monkeypatch.setattr(
        tensorrt_runner, "TensorRTRunner", lambda plan, shape, _: make(plan, shape, CPU)
    )


def write(path, machine=MACHINE, plan=b"plan", shape=SHAPE, weights="a" * 64):
    sha256 = hashlib.sha256(plan).hexdigest()
    described = EngineDescription(
        machine, "mine", weights, "b" * 64, sha256, "fp32", *shape, 1.0, "0.1.0"
    )
    write_engine(path, plan, described)


def test_a_fitting_engine_is_run(fake, on_host, source, network):
    write(source.engine)
    runner = build_runner(source)
    assert fake.deserialised == [b"plan"]
    torch.testing.assert_close(runner(*frames(0)), network(*frames(0)))


@pytest.mark.parametrize("mismatch", ["fallback", "fail"])
def test_no_refused_engine_is_deserialised(fake, on_host, source, mismatch):
    source = dataclasses.replace(source, engine_mismatch=mismatch)
    with pytest.raises(EngineRefused, match="does not exist"):
        build_runner(source)
    write(source.engine, dataclasses.replace(MACHINE, gpu="Xavier"))
    with pytest.raises(EngineRefused, match=r"Xavier, Orin is needed.*difiisr build-engine mine"):
        build_runner(source)
    write(source.engine, weights="c" * 64)
    with pytest.raises(EngineRefused, match="weights' sha256"):
        build_runner(source)
    write(source.engine)
    source.engine.write_bytes(b"pla")
    with pytest.raises(EngineRefused, match="3 bytes have sha256"):
        build_runner(source)
    assert fake.deserialised == []


def test_an_engine_whose_tensors_do_not_fit_comes_with_the_command(fake, on_host, source):
    write(source.engine)
    fake.engine.tensors.pop("fidelity")
    with pytest.raises(EngineRefused, match=r"tensors are .*difiisr build-engine mine"):
        build_runner(source)


@pytest.mark.parametrize("there", [True, False])
def test_rebuild_builds_for_the_tiles_of_the_old_engine_or_the_frames(
    fake, on_host, source, monkeypatch, there
):
    built = []

    def build(network, plan, settings, machine, report):
        built.append(settings)
        write(plan, shape=SHAPE)

    monkeypatch.setattr(tensorrt_runner, "build_from_network", build)
    if there:
        write(source.engine, dataclasses.replace(MACHINE, tensorrt="tensorrt 8.6"))
    build_runner(dataclasses.replace(source, engine_mismatch="rebuild"))
    (settings,) = built
    assert (settings.model, settings.weights_sha256) == ("mine", "a" * 64)
    shape = (settings.batch, settings.height, settings.width)
    assert shape == (SHAPE if there else (2, 24, 24))
    assert fake.deserialised == [b"plan"]


def test_without_driver_gpu_or_file_nothing_is_touched(fake, source, monkeypatch):
    write(source.engine)
    with pytest.raises(BackendUnavailable, match="the device is cpu"):
        build_runner(dataclasses.replace(source, device=CPU))
    with pytest.raises(BackendUnavailable, match="difiisr build-engine mine FILE"):
        build_runner(dataclasses.replace(source, engine=None))
    monkeypatch.setattr(fake.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailable, match="needs an NVIDIA driver"):
        build_runner(source)
    assert fake.deserialised == []


def test_torch_tensorrt_says_which_release_to_install(source, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(ModuleNotFoundError, match=r"2\.13 for torch 2\.13"):
        torch_tensorrt_runner.build_runner(source)
    with pytest.raises(BackendUnavailable, match="the device is cpu"):
        torch_tensorrt_runner.build_runner(dataclasses.replace(source, device=CPU))


def test_torch_tensorrt_compiles_the_network_for_its_tiles(source, network, monkeypatch):
    given = []

    def compile_network(module, ir, inputs, device, use_explicit_typing):
        assert device == source.device
        given.append((ir, [tuple(value.shape) for value in inputs], use_explicit_typing))
        return module

    module = ModuleType("torch_tensorrt")
    module.compile = compile_network
    monkeypatch.setitem(sys.modules, "torch_tensorrt", module)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, device, **rest: zeros(*size, **rest))
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *_: module)
    runner = torch_tensorrt_runner.build_runner(source)
    shapes = list(input_shapes((2, 24, 24)).values())
    assert given == [("dynamo", shapes, True)]
    assert runner.shape == (2, 24, 24)
    inputs = (*(torch.randn(size) for size in shapes[:3]), torch.tensor([3]), torch.tensor([1.0]))
    torch.testing.assert_close(runner(*inputs), network(*inputs))


# On a GPU

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def build_for_this_gpu(network, plan, settings, machine):
    try:
        build_from_network(network, plan, settings, machine, lambda *_: None)
    except BuildError as error:
        if "does not support this compute capability" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def engine(request, network, tmp_path_factory):
    """The bytes of a real engine of this machine."""
    try:
        machine = this_machine(torch.device("cuda"))
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    plan = tmp_path_factory.mktemp("engine") / "x.plan"
    settings = EngineSettings("tiny", "a" * 64, *SHAPE, request.param)
    build_for_this_gpu(network, plan, settings, machine)
    assert read_sidecar(plan).machine == machine
    return plan.read_bytes()


@needs_gpu
@pytest.mark.parametrize("capture", [True, False])
def test_a_real_engine_gives_what_torch_gives(engine, network, capture):
    runner = TensorRTRunner(engine, SHAPE, torch.device("cuda"), capture)
    for seed in range(5):
        for flat in (True, False):
            expected = network(*frames(seed, flat=flat))
            result = runner(*frames(seed, "cuda", flat)).cpu()
            assert torch.isfinite(result).all()
            error = (result - expected).norm() / expected.norm()
            assert error <= 1e-2


@needs_gpu
def test_a_real_engine_is_the_same_with_and_without_cuda_graph(engine):
    device = torch.device("cuda")
    with_graph, without = (TensorRTRunner(engine, SHAPE, device, on) for on in (True, False))
    for seed in range(3):
        inputs = frames(seed, "cuda")
        torch.testing.assert_close(with_graph(*inputs), without(*inputs), rtol=0, atol=0)


@needs_gpu
def test_real_frames_through_an_fp16_engine_are_those_of_torch(shared_data, tmp_path):
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    folder = find_weights_folder("difiisr-rt-x4")
    network = load_network(folder)
    sha256 = read_manifest(folder)["files"]["network.safetensors"]["sha256"]
    try:
        machine = this_machine(torch.device("cuda"))
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    settings = EngineSettings("difiisr-rt-x4", sha256, 1, 128, 160, "fp16")
    build_for_this_gpu(network, tmp_path / "rt.plan", settings, machine)
    engine = load_upscaler(
        "difiisr-rt-x4", device="cuda", backend="tensorrt", precision="fp16",
        engine=str(tmp_path / "rt.plan"), engine_mismatch="fail",
    )  # fmt: skip
    reference = load_upscaler("difiisr-rt-x4", device="cpu", backend="torch")
    for path in list_images(shared_data / "hit_uav" / "test")[:5]:
        frame = read_counts(path)[:128, :160]
        expected = reference(frame).astype(np.float64)
        error = engine(frame).astype(np.float64) - expected
        assert np.linalg.norm(error) <= 1e-2 * np.linalg.norm(expected)
