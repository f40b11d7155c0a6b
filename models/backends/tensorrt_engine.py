"""TensorRT engine files: built, described, checked before they are run, replayed as CUDA graphs.

A plan is executable code for one TensorRT on one GPU. Beside ``NAME`` lies ``NAME.json``, which
says what it was built from, for what, and where.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import logging
import os
import platform
import shlex
import stat
import time
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, ClassVar, Literal, NoReturn

import torch
from annotated_types import Ge
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from difiisr_models.backends import (
    NETWORK_OUTPUT,
    BackendUnavailable,
    EngineRefused,
    NetworkSource,
    example_inputs,
)
from difiisr_models.backends.onnx_graphs import export_graph
from difiisr_models.backends.torch_runner import CudaGraphs
from difiisr_models.compact import CompactNetwork
from difiisr_models.files import replaced
from difiisr_models.settings import Precision

NO_GPU = "none"
"""Compute capability and GPU of a machine without one; such an engine runs nowhere."""

_LOG = logging.getLogger(__name__)
_COMPLAINTS: deque[str] = deque(maxlen=8)  # more would not fit an error's text


def import_tensorrt() -> ModuleType:
    """``tensorrt``, or ``tensorrt_rtx`` where only that is installed; both have the same API.

    Raises:
        ModuleNotFoundError: neither is installed.
    """
    for name in ("tensorrt", "tensorrt_rtx"):
        with suppress(ModuleNotFoundError):
            return importlib.import_module(name)
    raise ModuleNotFoundError(
        "neither tensorrt nor tensorrt_rtx is installed: see docs/platforms.md for the packages of "
        "each platform, or pip install tensorrt-rtx on an RTX GPU"
    )


@functools.cache
def tensorrt_logger() -> Any:
    """Hands what TensorRT says to Python's logging; TensorRT keeps the first that it is given."""
    logger: Any = import_tensorrt().ILogger
    levels = {"INTERNAL_ERROR": logging.ERROR, "ERROR": logging.ERROR, "WARNING": logging.WARNING}

    class PythonLogger(logger):
        def __init__(self) -> None:
            logger.__init__(self)

        def log(self, kind: Any, message: str) -> None:
            level = levels.get(kind.name, logging.DEBUG)
            if level == logging.ERROR:
                _COMPLAINTS.append(message)
            _LOG.log(level, "TensorRT: %s", message)

    return PythonLogger()


def _fail(text: str) -> NoReturn:
    """Raise, with what TensorRT, which raises nothing itself, logged as errors."""
    said = "; ".join(_COMPLAINTS) or "nothing about it."
    _COMPLAINTS.clear()
    raise BackendUnavailable(f"{text} TensorRT says: {said}")


def this_machine(device: torch.device | None) -> dict[str, str]:
    """What an engine is bound to: this machine with its GPU ``device``, None for one without.

    Returns:
        ``{"tensorrt": "tensorrt_rtx 1.7.1.116", "compute_capability": "8.7", "gpu": its name,
        "system": "Linux aarch64"}``; without a GPU both in the middle are :data:`NO_GPU`.

    Raises:
        ModuleNotFoundError: no TensorRT is installed.
    """
    trt, capability, gpu = import_tensorrt(), NO_GPU, NO_GPU
    if device is not None:
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        gpu = torch.cuda.get_device_name(device)
    return {
        "tensorrt": f"{trt.__name__} {trt.__version__}",
        "compute_capability": capability,
        "gpu": gpu,
        "system": f"{platform.system()} {platform.machine()}",
    }


@dataclass(frozen=True)
class EngineDescription:
    """What an engine is to be, and once it is built the content of its sidecar.

    Attributes:
        machine: what it is built on and for: :func:`this_machine`.
        model: name or path of the model, as given to the command that builds it.
        weights_sha256: of the file that its network was read from.
        precision: of the graph.
        batch: tiles per call; their ``height`` and ``width`` in low-resolution pixels.
        onnx_sha256: of the graph that it was built from; ``plan_sha256``: of the engine file.
        build_seconds: what building took.
        package_version: of difiisr_ros.
        format: of the sidecar.
    """

    machine: dict[str, str]
    model: str
    weights_sha256: str
    precision: Precision
    batch: Annotated[int, Ge(1)]
    height: Annotated[int, Ge(1)]
    width: Annotated[int, Ge(1)]
    onnx_sha256: str = ""
    plan_sha256: str = ""
    build_seconds: float = 0.0
    package_version: str = ""
    format: Literal[1] = 1

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(batch, height, width)."""
        return self.batch, self.height, self.width


def sidecar_path(plan: Path) -> Path:
    """Where the description of the engine file ``plan`` lies."""
    return plan.with_name(plan.name + ".json")


def write_engine(
    plan: Path, content: bytes, description: EngineDescription, force: bool = True
) -> None:
    """Write an engine file and its sidecar, readable by all and writable by the owner alone.

    Each appears whole or not at all, the sidecar first: what is left of an interrupted write is
    refused for its hash.
    """
    text = json.dumps(asdict(description), indent=2) + "\n"
    for path, written in ((sidecar_path(plan), text.encode()), (plan, content)):
        with replaced(path, force) as beside:
            beside.write_bytes(written)
            beside.chmod(0o644)


def read_sidecar(plan: Path) -> EngineDescription:
    """The description of the engine file ``plan``.

    Raises:
        EngineRefused: it is missing, writable by others, or not a sidecar of this format.
    """
    path = sidecar_path(plan)
    try:
        return TypeAdapter(EngineDescription).validate_json(_read_private(path))
    except ValidationError as error:
        wrong = (f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())
        raise EngineRefused(f"{path} does not describe an engine: {'; '.join(wrong)}") from error


def read_engine(
    plan: Path, machine: dict[str, str], source: NetworkSource
) -> tuple[EngineDescription, bytes]:
    """The engine file's description and bytes, when it may be deserialised on ``machine``.

    Nothing is deserialised, and the bytes returned are those that were checked. That there is a
    driver is the caller's check: without one, :func:`this_machine` cannot be told.

    Raises:
        EngineRefused: a file is missing, a link, or may be written by others, the plan is damaged,
            or it was built for something else than ``source``. The text names all mismatches with
            both values, what to delete, and the command that builds the right engine.
    """
    size, batch, doing = "WIDTHxHEIGHT", 1, "Build it"
    if there := [str(path) for path in (plan, sidecar_path(plan)) if os.path.lexists(path)]:
        doing = f"Delete {' and '.join(there)}, then build it"  # they may be no engine
    try:
        description = read_sidecar(plan)
        size, batch = f"{description.width}x{description.height}", description.batch
        doing = "Build it"
        content = _read_private(plan)
    except EngineRefused as error:
        problems = [str(error)]
    else:
        actual = hashlib.sha256(content).hexdigest()
        bound = {"weights_sha256": source.weights_sha256, "precision": source.runtime.precision}
        found = description.machine | asdict(description)
        problems = [
            f"its {name} is {found.get(name)}, {value} is needed"
            for name, value in (machine | bound).items()
            if found.get(name) != value
        ]
        if actual != description.plan_sha256:
            problems.append(
                f"its {len(content)} bytes have sha256 {actual}, its description says "
                f"{description.plan_sha256}: damaged or replaced"
            )
        if not problems:
            return description, content
    words = ["difiisr", "build-engine", source.model, str(plan), "--size", size]
    words += ["--precision", source.runtime.precision, "--batch", str(batch)]
    words += ["--device", str(source.device)] if source.device.index else []
    raise EngineRefused(
        f"engine {plan} refused: {'; '.join(problems)}. {doing}: {shlex.join(words)} --force"
    )


def _read_private(path: Path) -> bytes:
    """The bytes of a regular file that nobody but its owner, this user or root, may write."""
    if path.is_symlink():
        raise EngineRefused(f"{path} is a link to {os.readlink(path)}: name the file itself")
    careful = os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | careful)) as file:
            status = os.fstat(file.fileno())
            owner, mode = status.st_uid, stat.S_IMODE(status.st_mode)
            if not stat.S_ISREG(status.st_mode):
                raise EngineRefused(f"{path} is not a file")
            if owner not in (0, os.geteuid()):
                raise EngineRefused(
                    f"{path} belongs to user {owner}, not to this user ({os.geteuid()}) or root"
                )
            if mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise EngineRefused(f"{path} has mode {mode:03o}: others may write it (chmod go-w)")
            return file.read()
    except OSError as error:
        raise EngineRefused(f"{path} cannot be read: {error.strerror}") from error


def build_engine(
    network: CompactNetwork,
    plan: Path,
    wanted: EngineDescription,
    workspace: int = 1 << 30,
    force: bool = True,
) -> EngineDescription:
    """Build an engine for the current GPU, and write it with its sidecar when all has worked.

    Args:
        network: a graph of it is exported.
        plan: the engine file to write.
        wanted: what it is to be; ``machine`` must be :func:`this_machine`.
        workspace: bytes of GPU memory that a layer may use for scratch.
        force: replace an engine that has come into being meanwhile.

    Returns:
        What the sidecar says.

    Raises:
        BackendUnavailable: no file is written; the text names every node that cannot be parsed, or
            says why the engine cannot run here.
        FileExistsError: what is called like ``plan`` or its sidecar may be no engine.
        ModuleNotFoundError: TensorRT or a package of the extra ``onnx`` is missing.
    """
    if os.path.lexists(plan) or os.path.lexists(sidecar_path(plan)):
        try:
            read_sidecar(plan)
        except EngineRefused as error:
            raise FileExistsError(
                f"{plan} or {sidecar_path(plan).name} exists, and they may be no engine: delete "
                f"them, or name another file ({error})"
            ) from error
    graph = export_graph(network, wanted.shape, wanted.precision).graph
    started = time.monotonic()
    content = _serialized_engine(graph, wanted.machine, workspace)
    built = replace(
        wanted,
        onnx_sha256=hashlib.sha256(graph).hexdigest(),
        plan_sha256=hashlib.sha256(content).hexdigest(),
        build_seconds=round(time.monotonic() - started, 3),
        package_version=version("difiisr_ros"),
    )
    write_engine(plan, content, built, force)
    return built


def _serialized_engine(graph: bytes, machine: dict[str, str], workspace: int) -> bytes:
    trt, has_gpu = import_tensorrt(), machine["gpu"] != NO_GPU
    if not has_gpu and trt.__name__ == "tensorrt":
        raise BackendUnavailable(
            "TensorRT builds engines only where their GPU is, and here is none"
        )
    _COMPLAINTS.clear()  # of what was before
    builder = trt.Builder(tensorrt_logger())
    # Strong typing: a flag in TensorRT 10, all there is where the flag is gone.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, tensorrt_logger())
    if not parser.parse(graph):
        errors = map(parser.get_error, range(parser.num_errors))
        texts = (
            f"node {e.node_name()!r} ({e.node_operator()}): {e.desc()} [{e.code()}]" for e in errors
        )
        raise BackendUnavailable(f"TensorRT cannot read the exported graph: {'; '.join(texts)}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    if has_gpu and trt.__name__ != "tensorrt":  # tensorrt_rtx would build for GPUs of many kinds
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(trt.ComputeCapability.CURRENT, 0):
            raise BackendUnavailable(f"{machine['tensorrt']} does not build for {machine['gpu']}.")
    content = builder.build_serialized_network(network, config)
    if content is None:
        _fail("TensorRT built no engine from the exported graph.")
    runtime = trt.Runtime(tensorrt_logger())  # outlives the engine
    if has_gpu and runtime.deserialize_cuda_engine(bytes(content)) is None:
        _fail(  # tensorrt_rtx also builds for GPUs that it then refuses
            f"{machine['tensorrt']} built an engine that it could not load on this "
            f"{machine['gpu']} ({machine['compute_capability']})."
        )
    return bytes(content)


class TensorRTRunner:
    """A ``compact.Runner`` that takes tiles of the engine's shape."""

    def __init__(
        self, plan: bytes, shape: tuple[int, int, int], device: torch.device, recurrent: bool
    ) -> None:
        """Deserialise an engine that ``read_engine`` has checked, where there is a driver.

        ``shape``: (batch, height, width) of its tiles.

        Raises:
            BackendUnavailable: TensorRT cannot deserialise or run the engine.
            EngineRefused: it is not the engine of a compact network of that shape.
        """
        _COMPLAINTS.clear()  # of what was before
        self.shape = shape
        examples = example_inputs(*shape, recurrent).items()
        inputs = {name: value.to(device) for name, value in examples}
        self._kinds = {name: (tuple(value.shape), value.dtype) for name, value in inputs.items()}
        self._output = torch.cat([inputs["y"]] * (1 + recurrent), dim=1)
        with torch.cuda.device(device):
            self._runtime = import_tensorrt().Runtime(tensorrt_logger())
            engine = self._runtime.deserialize_cuda_engine(plan)
            if engine is None:
                _fail(f"TensorRT could not deserialise the engine of {len(plan)} bytes.")
            _check_tensors(engine, inputs | {NETWORK_OUTPUT: self._output})
            self._context = engine.create_execution_context()
            if self._context is None:
                megabytes = engine.device_memory_size_v2 / 1e6
                _fail(f"TensorRT could not get the {megabytes:.0f} MB of GPU memory that it needs.")
            # The engine must not be freed under work that is still queued.
            weakref.finalize(self, torch.cuda.synchronize, device)
            self._run = CudaGraphs(self._enqueue)
            self._run(*inputs.values())

    def __call__(self, *inputs: Tensor) -> Tensor:
        """As ``CompactNetwork.forward``; ValueError for tensors of another shape or dtype."""
        kinds = ((tuple(value.shape), value.dtype) for value in inputs)
        if (given := dict(zip(self._kinds, kinds, strict=False))) != self._kinds:
            raise ValueError(f"the engine takes {self._kinds}, got {given}")
        return self._run(*inputs)

    def _enqueue(self, *inputs: Tensor) -> Tensor:
        """Queue the engine's work on torch's current stream."""
        held = [value.contiguous() for value in inputs]
        tensors = dict(zip(self._kinds, held, strict=True)) | {NETWORK_OUTPUT: self._output}
        for name, tensor in tensors.items():
            if not self._context.set_tensor_address(name, tensor.data_ptr()):
                _fail(f"TensorRT did not take the memory of tensor {name!r}.")
        stream = torch.cuda.current_stream(self._output.device)
        if not self._context.execute_async_v3(stream.cuda_stream):
            _fail("TensorRT could not queue the engine's work.")
        return self._output


def _check_tensors(engine: Any, tensors: dict[str, Tensor]) -> None:
    """Raise EngineRefused unless the engine's tensors are those of a compact network."""
    kinds = {torch.int64: "INT64", torch.float32: "FLOAT"}
    wanted = {
        name: ("OUTPUT" if name == NETWORK_OUTPUT else "INPUT", kinds[value.dtype], *value.shape)
        for name, value in tensors.items()
    }
    found = {
        name: (
            engine.get_tensor_mode(name).name,
            engine.get_tensor_dtype(name).name,
            *engine.get_tensor_shape(name),
        )
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors))
    }
    if found != wanted:
        raise EngineRefused(f"build the engine anew: its tensors are {found}, not {wanted}")


def build_tensorrt_runner(source: NetworkSource) -> TensorRTRunner:
    """The engine of ``runtime.engine``; with ``engine_mismatch`` "rebuild" one that fits is built.

    Raises:
        BackendUnavailable: no GPU, no driver, no engine file given, or TensorRT fails.
        EngineRefused: the engine is not the one for this network, machine and runtime, and it was
            not asked to be built anew.
        ModuleNotFoundError: no TensorRT, or no exporter to build with.
    """
    device, runtime = source.device, source.runtime
    if device.type != "cuda":
        raise BackendUnavailable(f"needs a CUDA GPU, the device is {device}")
    if not torch.cuda.is_available():  # deserialising would crash the process
        raise BackendUnavailable("needs an NVIDIA driver, and torch finds no CUDA GPU here")
    if not runtime.engine:
        raise BackendUnavailable(
            "no engine file was given: build one with `difiisr build-engine "
            f"{source.model} FILE --size WIDTHxHEIGHT` and set 'engine' to it"
        )
    plan, machine = Path(runtime.engine).expanduser(), this_machine(device)
    shape, recurrent = source.tile_shape, source.network.config.recurrent
    try:
        description, content = read_engine(plan, machine, source)
        return TensorRTRunner(content, description.shape, device, recurrent)
    except EngineRefused as error:
        if runtime.engine_mismatch != "rebuild":
            raise
        _LOG.warning("building anew: %s", error)
    with suppress(EngineRefused):  # for the tiles of the engine that is there
        shape = read_sidecar(plan).shape
    precision = runtime.precision
    assert precision != "auto", "the source says which"
    assert precision != "int8", "that is for CPUs"
    built_for = (source.model, source.weights_sha256, precision, *shape)
    with torch.cuda.device(device):  # TensorRT builds for the current GPU
        build_engine(source.network, plan, EngineDescription(machine, *built_for))
    description, content = read_engine(plan, machine, source)
    return TensorRTRunner(content, description.shape, device, recurrent)
