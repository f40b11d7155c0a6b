"""TensorRT engine files: what describes one, and all that is checked before it is deserialised.

A plan is executable code for one TensorRT on one GPU. Beside ``NAME`` lies ``NAME.json``, which
says what it was built from, for what, and where.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import shlex
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from difiisr_models.backends import EngineRefused, NetworkSource
from difiisr_models.backends.tensorrt_module import import_tensorrt

SIDECAR_FORMAT = 1
NO_GPU = "none"
"""Compute capability and GPU of a machine without one; such an engine runs nowhere."""


@dataclass(frozen=True)
class Machine:
    """What an engine is bound to; any difference makes it useless.

    Attributes:
        tensorrt: flavour and version, as in ``"tensorrt 10.3.0"`` or ``"tensorrt_rtx 1.7.1.116"``.
        compute_capability: of the GPU, as in ``"8.7"``, or :data:`NO_GPU`.
        gpu: its name, or :data:`NO_GPU`.
        system: operating system and processor, as in ``"Linux aarch64"``.
    """

    tensorrt: str
    compute_capability: str
    gpu: str
    system: str


@dataclass(frozen=True)
class EngineDescription:
    """The sidecar of an engine file.

    Attributes:
        machine: what it was built on and for.
        model: name or path of the model, as given to the command that built it.
        weights_sha256: of the file that its network was read from.
        onnx_sha256: of the graph that it was built from.
        plan_sha256: of the engine file.
        precision: one of ``precision.PRECISIONS``.
        batch: tiles per call.
        height: of a tile, low-resolution pixels.
        width: likewise.
        build_seconds: what building took.
        package_version: of difiisr_ros.
    """

    machine: Machine
    model: str
    weights_sha256: str
    onnx_sha256: str
    plan_sha256: str
    precision: str
    batch: int
    height: int
    width: int
    build_seconds: float
    package_version: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(batch, height, width)."""
        return self.batch, self.height, self.width


def this_machine(device: torch.device | None) -> Machine:
    """This machine with its GPU ``device``; None for a machine without one.

    Raises:
        ModuleNotFoundError: no TensorRT is installed.
    """
    trt = import_tensorrt()
    capability = gpu = NO_GPU
    if device is not None:
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        gpu = torch.cuda.get_device_name(device)
    system = f"{platform.system()} {platform.machine()}"
    return Machine(f"{trt.__name__} {trt.__version__}", capability, gpu, system)


def sidecar_path(plan: Path) -> Path:
    """Where the description of the engine file ``plan`` lies."""
    return plan.with_name(plan.name + ".json")


def write_engine(plan: Path, content: bytes, description: EngineDescription) -> None:
    """Write an engine file and its sidecar, readable by all and writable by the owner alone.

    Each appears whole or not at all, the sidecar first: what is left of an interrupted write is
    refused for its hash.
    """
    plan.parent.mkdir(parents=True, exist_ok=True)
    fields = {"format": SIDECAR_FORMAT, **dataclasses.asdict(description)}
    _replace(sidecar_path(plan), (json.dumps(fields, indent=2) + "\n").encode())
    _replace(plan, content)


def read_sidecar(plan: Path) -> EngineDescription:
    """The description of the engine file ``plan``.

    Raises:
        EngineRefused: it is missing, writable by others, or not a sidecar of this format.
    """
    path = sidecar_path(plan)
    try:
        content = _read_private(path)
    except FileNotFoundError as error:
        raise EngineRefused(f"{path}, the description of the engine, is missing") from error
    try:
        fields: dict[str, Any] = json.loads(content)
        found = fields.pop("format")
        if found != SIDECAR_FORMAT:
            raise EngineRefused(f"{path} has format {found!r}, this version reads {SIDECAR_FORMAT}")
        description = EngineDescription(Machine(**fields.pop("machine")), **fields)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, EngineRefused):
            raise
        raise EngineRefused(f"{path} does not describe an engine: {error}") from error
    for part in (description.machine, description):
        for field in dataclasses.fields(part):
            value, wanted = getattr(part, field.name), field.type
            if wanted in _TYPES and type(value) not in _TYPES[wanted]:
                raise EngineRefused(f"{path}: {field.name} is {value!r}, no {wanted}")
    if min(description.shape) < 1:
        raise EngineRefused(f"{path}: the shape {description.shape} has a size below 1")
    return description


def read_engine(
    plan: Path, machine: Machine, source: NetworkSource
) -> tuple[EngineDescription, bytes]:
    """The engine file's description and bytes, when it may be deserialised here.

    Nothing is deserialised, and the bytes returned are those that were checked. That there is a
    driver is the caller's check: without one, ``machine`` cannot be told.

    Args:
        plan: the engine file.
        machine: :func:`this_machine`.
        source: the network that is to run, and its precision.

    Raises:
        EngineRefused: a file is missing, a link, or may be written by others, the plan is damaged,
            or it was built for something else. All mismatches are named at once, both values of
            each, and what to delete, and the command that builds the right engine.
    """
    problems: list[str] = []
    content = description = None
    try:
        content = _read_private(plan)
    except FileNotFoundError:
        problems.append(f"{plan} does not exist")
    except EngineRefused as error:
        problems.append(str(error))
    try:
        description = read_sidecar(plan)
    except EngineRefused as error:
        problems.append(str(error))
    else:
        problems += [
            f"its {name} is {found}, {wanted} is needed"
            for name, found, wanted in (
                *_machine_rows(description.machine, machine),
                ("weights' sha256", description.weights_sha256, source.weights_sha256),
                ("precision", description.precision, source.precision),
            )
            if found != wanted
        ]
    if content is not None and description is not None:
        actual = hashlib.sha256(content).hexdigest()
        if actual != description.plan_sha256:
            problems.append(
                f"its {len(content)} bytes have sha256 {actual}, its description says "
                f"{description.plan_sha256}: damaged or replaced"
            )
    if problems:
        command = build_command(plan, description, source)
        in_the_way = [p for p in (plan, sidecar_path(plan)) if os.path.lexists(p)]
        advice = "Build it"
        if description is None and in_the_way:  # what may be no engine is never overwritten
            advice = f"Delete {' and '.join(map(str, in_the_way))}, then build it"
        raise EngineRefused(f"engine {plan} refused: {'; '.join(problems)}. {advice}: {command}")
    return description, content


def build_command(plan: Path, description: EngineDescription | None, source: NetworkSource) -> str:
    """The command line that builds ``plan`` for ``source``, with the tiles that it had."""
    size, batch = "HxW", 1
    if description is not None:
        size, batch = f"{description.height}x{description.width}", description.batch
    words = ["difiisr", "build-engine", source.model, str(plan), "--input-size", size]
    words += ["--precision", source.precision, "--batch", str(batch)]
    words += ["--device", str(source.device)] if source.device.index else []
    return shlex.join([*words, "--force"])


_TYPES = {"str": (str,), "int": (int,), "float": (int, float)}  # of annotations, which are text


def _machine_rows(found: Machine, wanted: Machine) -> list[tuple[str, str, str]]:
    names = {"tensorrt": "TensorRT", "compute_capability": "compute capability", "gpu": "GPU"}
    return [
        (names.get(field.name, field.name), getattr(found, field.name), getattr(wanted, field.name))
        for field in dataclasses.fields(Machine)
    ]


def _read_private(path: Path) -> bytes:
    """The bytes of a regular file that nobody but its owner, this user or root, may write.

    Raises:
        EngineRefused: it is not one.
        FileNotFoundError: it does not exist.
    """
    if path.is_symlink():
        raise EngineRefused(f"{path} is a link to {os.readlink(path)}: name the file itself")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise EngineRefused(f"{path} cannot be read: {error.strerror}") from error
    try:
        _check_private(os.fstat(descriptor), path)
    except EngineRefused:
        os.close(descriptor)
        raise
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def _check_private(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise EngineRefused(f"{path} is not a file")
    if status.st_uid not in (0, os.geteuid()):
        raise EngineRefused(
            f"{path} belongs to user {status.st_uid}, not to this user ({os.geteuid()}) or root"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(status.st_mode)
        raise EngineRefused(f"{path} has mode {mode:03o}: others may write it (chmod go-w)")


def _replace(path: Path, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(descriptor, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
