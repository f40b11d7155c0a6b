"""The TensorRT runner: on a stand-in for an engine, and on a GPU where there is one."""

import ctypes
import gc
import hashlib
import sys
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
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
from difiisr_models.backends.tensorrt_engine import (
    EngineDescription,
    TensorRTRunner,
    build_engine,
    build_tensorrt_runner,
    read_sidecar,
    this_machine,
    write_engine,
)

CPU = torch.device("cpu")
SHAPE = (2, 24, 32)
INPUTS = tuple(example_inputs(*SHAPE))
MACHINE = {
    "tensorrt": "tensorrt 10.3.0", "compute_capability": "8.7", "gpu": "Orin",
    "system": "Linux aarch64",
}  # fmt: skip


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
        self.network = network
        inputs = example_inputs(*SHAPE)
        self.tensors = {
            name: ["INPUT", "INT64" if name == "t" else "FLOAT", tuple(value.shape)]
            for name, value in inputs.items()
        }
        self.tensors[NETWORK_OUTPUT] = ["OUTPUT", "FLOAT", tuple(inputs["y"].shape)]
        self.num_io_tensors, self.addresses = len(self.tensors), {}
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
        inputs = [torch.from_numpy(self._memory(name).copy()) for name in INPUTS]
        self._memory(NETWORK_OUTPUT)[...] = self.network(*inputs).numpy()
        return True

    def _memory(self, name):
        _, dtype, size = self.tensors[name]
        kind = ctypes.c_int64 if dtype == "INT64" else ctypes.c_float
        array = (kind * int(np.prod(size))).from_address(self.addresses[name])
        return np.ctypeslib.as_array(array).reshape(size)


@pytest.fixture
def fake(tiny_network, monkeypatch):
    """``fake.engine`` is deserialised next."""
    fake = SimpleNamespace(engine=FakeEngine(tiny_network), deserialised=[], log=[])

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
    monkeypatch.setattr(tensorrt_engine, "CudaGraphs", lambda function: function)
    monkeypatch.setattr(tensorrt_engine, "import_tensorrt", lambda: fake)
    monkeypatch.setattr(tensorrt_engine, "tensorrt_logger", lambda: None)
    monkeypatch.setattr(tensorrt_engine, "this_machine", lambda device: MACHINE)
    return fake


def runner_of(plan=b"plan", device=CPU):
    return TensorRTRunner(plan, SHAPE, device, recurrent=False)


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


# From a source to a runner


@pytest.fixture
def source(tiny_network, tmp_path, monkeypatch):
    """Of an engine file x.plan; its runners lie on the CPU."""
    monkeypatch.setattr(
        tensorrt_engine, "TensorRTRunner",
        lambda plan, shape, _, recurrent: TensorRTRunner(plan, shape, CPU, recurrent),
    )  # fmt: skip
    engine = str(tmp_path / "x.plan")
    runtime = Runtime(precision="fp32", engine=engine, tile=24, overlap=8, tile_batch=2)
    return NetworkSource(tiny_network, "a" * 64, torch.device("cuda"), runtime, "mine")


@pytest.fixture
def write(tmp_path):
    """Write the source's engine file; returns its path."""

    def write(machine=MACHINE, weights="a" * 64):
        wanted = EngineDescription(machine, "mine", weights, "fp32", *SHAPE)
        sha256 = hashlib.sha256(b"plan").hexdigest()
        write_engine(tmp_path / "x.plan", b"plan", replace(wanted, plan_sha256=sha256))
        return tmp_path / "x.plan"

    return write


def test_no_refused_engine_is_deserialised(fake, source, write):
    with pytest.raises(EngineRefused, match="No such file"):
        build_tensorrt_runner(source)
    write(MACHINE | {"gpu": "Xavier"})
    with pytest.raises(EngineRefused, match=r"Xavier, Orin is needed.*difiisr build-engine mine"):
        build_tensorrt_runner(source)
    write().write_bytes(b"pla")
    with pytest.raises(EngineRefused, match="3 bytes have sha256"):
        build_tensorrt_runner(source)
    assert fake.deserialised == []
    write()
    assert build_tensorrt_runner(source).shape == SHAPE
    assert fake.deserialised == [b"plan"]


@pytest.mark.parametrize("there", [True, False])
def test_rebuild_builds_for_the_tiles_of_the_old_engine_or_the_frames(
    fake, source, write, monkeypatch, there
):
    built = []

    def build(network, path, wanted):
        built.append(wanted)
        write()

    monkeypatch.setattr(tensorrt_engine, "build_engine", build)
    if there:
        write(MACHINE | {"tensorrt": "tensorrt 8.6"})
    runtime = replace(source.runtime, engine_mismatch="rebuild")
    build_tensorrt_runner(replace(source, runtime=runtime))
    shape = SHAPE if there else (2, 24, 24)
    assert built == [EngineDescription(MACHINE, "mine", "a" * 64, "fp32", *shape)]
    assert fake.deserialised == [b"plan"]


def test_without_driver_gpu_or_file_nothing_is_touched(fake, source, write, monkeypatch):
    write()
    with pytest.raises(BackendUnavailable, match="the device is cpu"):
        build_tensorrt_runner(replace(source, device=CPU))
    with pytest.raises(BackendUnavailable, match="difiisr build-engine mine FILE"):
        build_tensorrt_runner(replace(source, runtime=Runtime()))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailable, match="needs an NVIDIA driver"):
        build_tensorrt_runner(source)
    assert fake.deserialised == []


def test_torch_tensorrt_says_which_release_to_install(source, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(ModuleNotFoundError, match="pip install its release for torch"):
        torch_runner.build_torch_tensorrt_runner(source)
    with pytest.raises(BackendUnavailable, match="the device is cpu"):
        torch_runner.build_torch_tensorrt_runner(replace(source, device=CPU))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_real_engine_gives_what_torch_gives(tiny_network, tmp_path, precision):
    device, plan = torch.device("cuda"), tmp_path / "x.plan"
    try:
        machine = this_machine(device)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    wanted = EngineDescription(machine, "tiny", "a" * 64, precision, *SHAPE)
    try:
        build_engine(tiny_network, plan, wanted)
    except BackendUnavailable as error:
        if "does not support this compute capability" in str(error):
            pytest.skip(str(error))
        raise
    assert read_sidecar(plan).machine == machine
    runner = runner_of(plan.read_bytes(), device)
    for seed in range(5):
        for flat in (True, False):
            expected = tiny_network(*frames(seed, flat=flat))
            result = runner(*frames(seed, "cuda", flat)).cpu()
            assert torch.isfinite(result).all()
            assert (result - expected).norm() <= 1e-2 * expected.norm()
