"""Building TensorRT engines: network -> ONNX graph -> plan and sidecar."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from difiisr_models.backends import EngineRefused
from difiisr_models.backends.engine_file import (
    NO_GPU,
    EngineDescription,
    Machine,
    read_sidecar,
    sidecar_path,
    write_engine,
)
from difiisr_models.backends.tensorrt_module import import_tensorrt, tensorrt_logger
from difiisr_models.compact import CompactNetwork
from difiisr_models.graph_cache import cache_folder
from difiisr_models.onnx_graph import NETWORK_INPUTS, GraphShape, export_network
from difiisr_models.precision import PRECISIONS
from difiisr_models.resample import PHASES

_LOG = logging.getLogger(__name__)

ReportProgress = Callable[[str, int, int], None]
"""Called with a phase of the build, its steps done, and all its steps."""


class BuildError(ValueError):
    """TensorRT cannot build an engine from a graph; the text has what it says."""


@dataclass(frozen=True)
class EngineSettings:
    """What to build.

    Attributes:
        model: name or path of the model, for the sidecar.
        weights_sha256: of the file that the network was read from.
        batch: tiles per call.
        height: of a tile, low-resolution pixels.
        width: likewise.
        precision: of the graph, one of ``precision.PRECISIONS``.
        workspace: bytes of GPU memory that a layer may use for scratch.

    Raises:
        ValueError: an unknown precision, or a size below 1.
    """

    model: str
    weights_sha256: str
    batch: int
    height: int
    width: int
    precision: str = "fp32"
    workspace: int = 1 << 30

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise ValueError(f"precision {self.precision!r} is not one of {known}")
        for name in ("batch", "height", "width", "workspace"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def build_from_network(
    network: CompactNetwork,
    plan: Path,
    settings: EngineSettings,
    machine: Machine,
    report_progress: ReportProgress,
) -> EngineDescription:
    """Export ``network`` and build an engine from its graph; see :func:`build_engine`.

    Raises:
        ModuleNotFoundError: TensorRT or a package of the extra ``onnx`` is missing.
        ValueError, OSError: as ``export_network`` and :func:`build_engine`.
    """
    _check_target(plan)  # before the work
    with tempfile.TemporaryDirectory(prefix="difiisr-engine") as folder:
        graph = Path(folder) / "network.onnx"
        shape = GraphShape(settings.batch, settings.height, settings.width)
        export_network(network, graph, shape, settings.precision)
        return build_engine(graph, plan, settings, machine, report_progress)


def build_engine(
    onnx: Path,
    plan: Path,
    settings: EngineSettings,
    machine: Machine,
    report_progress: ReportProgress,
) -> EngineDescription:
    """Build an engine for the current GPU from a graph that ``onnx_graph.export_network`` wrote.

    What TensorRT timed is kept in the user's cache folder, so that the next build is faster;
    tensorrt_rtx times nothing.

    Args:
        onnx: the graph; it holds the precision.
        plan: the engine file to write, with its sidecar, when all has worked.
        settings: what the graph is; its input shapes are compared with the graph's.
        machine: this machine, ``engine_file.this_machine``.
        report_progress: told of each step.

    Returns:
        What the sidecar says.

    Raises:
        BuildError: no file is written; the text names every node that cannot be parsed, or says
            why the engine cannot run here.
        FileExistsError: ``plan`` is there without a sidecar, or what is called as its sidecar
            describes no engine: both may be anything.
        KeyboardInterrupt: as ever; the build ends at its next step.
        OSError: a file cannot be read or written.
    """
    _check_target(plan)
    trt = import_tensorrt()
    if machine.gpu == NO_GPU and trt.__name__ == "tensorrt":
        raise BuildError("TensorRT builds engines only where their GPU is, and here is none")
    logger, complaints = tensorrt_logger()
    complaints.take()
    graph = onnx.read_bytes()
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        raise BuildError(f"TensorRT cannot read {onnx}: {'; '.join(map(_parser_error, errors))}")
    _check_inputs(network, onnx, settings)

    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace)
    monitor = _progress_monitor(trt, report_progress)
    config.progress_monitor = monitor
    kept = None
    if trt.__name__ == "tensorrt":
        key = hashlib.sha256(f"{machine.tensorrt} {machine.gpu}".encode()).hexdigest()[:16]
        kept = cache_folder() / f"timing-{key}.cache"
        load_timing_cache(config, kept)
    elif machine.gpu != NO_GPU:  # tensorrt_rtx would build for GPUs of many kinds
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(trt.ComputeCapability.CURRENT, 0):
            raise BuildError(f"{machine.tensorrt} does not build for {machine.gpu}.")

    started = time.monotonic()
    content = builder.build_serialized_network(network, config)
    if monitor.interrupted:
        raise KeyboardInterrupt
    if content is None:
        raise BuildError(f"TensorRT built no engine from {onnx}.{complaints.take()}")
    seconds = time.monotonic() - started
    content = bytes(content)
    if machine.gpu != NO_GPU:
        _check_that_it_loads(trt, content, machine)
    description = EngineDescription(
        machine,
        settings.model,
        settings.weights_sha256,
        hashlib.sha256(graph).hexdigest(),
        hashlib.sha256(content).hexdigest(),
        settings.precision,
        settings.batch,
        settings.height,
        settings.width,
        round(seconds, 3),
        _package_version(),
    )
    write_engine(plan, content, description)
    if kept is not None:
        try:
            save_timing_cache(config, kept)
        except OSError as error:
            _LOG.warning("timings are not kept for the next build: %s", error)
    return description


def load_timing_cache(config: Any, path: Path) -> None:
    """Give a builder configuration the timings kept in ``path``, or none if they do not fit."""
    kept = path.read_bytes() if path.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(kept), ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def save_timing_cache(config: Any, path: Path) -> None:
    """Keep what a build timed; ``path`` appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".timing") as folder:
        written = Path(folder) / path.name
        written.write_bytes(config.get_timing_cache().serialize())
        os.replace(written, path)


def _check_target(plan: Path) -> None:
    sidecar = sidecar_path(plan)
    if (plan.exists() or plan.is_symlink()) and not sidecar.is_file():
        raise FileExistsError(
            f"{plan} exists and has no {sidecar.name}, so it may be no engine: "
            "delete it, or name another file"
        )
    if sidecar.exists() or sidecar.is_symlink():
        try:
            read_sidecar(plan)
        except EngineRefused as error:
            raise FileExistsError(
                f"{sidecar} exists and describes no engine: delete it, and {plan.name} with it, or "
                f"name another file ({error})"
            ) from error


def _network_flags(trt: ModuleType) -> int:
    """Strong typing: a flag in TensorRT 10, all there is where the flag is gone."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parser_error(error: Any) -> str:
    where = f"node {error.node_name()!r} ({error.node_operator()}): " if error.node_name() else ""
    return f"{where}{error.desc()} [{error.code()}]"


def _check_that_it_loads(trt: ModuleType, plan: bytes, machine: Machine) -> None:
    """tensorrt_rtx also builds for GPUs that it then refuses."""
    logger, complaints = tensorrt_logger()
    runtime = trt.Runtime(logger)  # outlives the engine
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BuildError(
            f"{machine.tensorrt} built an engine that it could not load on this {machine.gpu} "
            f"(compute capability {machine.compute_capability}).{complaints.take()}"
        )


def _check_inputs(network: Any, onnx: Path, settings: EngineSettings) -> None:
    given = [network.get_input(i) for i in range(network.num_inputs)]
    found = {tensor.name: tuple(tensor.shape) for tensor in given}
    wanted = input_shapes((settings.batch, settings.height, settings.width))
    if found != wanted:
        raise BuildError(f"{onnx} has the inputs {found}, {wanted} are needed")


def input_shapes(shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """Shapes of the network's inputs by name, for tiles of ``(batch, height, width)``."""
    batch, *sides = shape
    shapes = ((batch, PHASES, *sides), (batch, PHASES, *sides), (batch, 1, *sides), (1,), (1,))
    return dict(zip(NETWORK_INPUTS, shapes, strict=True))


def _progress_monitor(trt: ModuleType, report: ReportProgress) -> Any:
    class Monitor(trt.IProgressMonitor):
        """Tells of each step; an interrupt cannot pass through TensorRT, so it is kept."""

        interrupted = False

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._steps[phase] = steps
            self._tell(phase, 0)

        def step_complete(self, phase: str, step: int) -> bool:
            self._tell(phase, step + 1)
            return not self.interrupted

        def phase_finish(self, phase: str) -> None:
            self._tell(phase, self._steps[phase])

        def _tell(self, phase: str, done: int) -> None:
            try:
                report(phase, done, self._steps[phase])
            except KeyboardInterrupt:
                self.interrupted = True

    return Monitor()


def _package_version() -> str:
    try:
        return version("difiisr_ros")
    except PackageNotFoundError:  # run from a checkout
        return "not installed"
