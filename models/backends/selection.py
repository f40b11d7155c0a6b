"""What can run a network here, and where."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch

from difiisr_models.backends import BackendUnavailable, NetworkSource, example_inputs
from difiisr_models.backends.onnx_graphs import build_onnxruntime_runner, build_openvino_runner
from difiisr_models.backends.tensorrt_engine import build_tensorrt_runner
from difiisr_models.backends.torch_runner import build_torch_runner, build_torch_tensorrt_runner
from difiisr_models.compact import Runner
from difiisr_models.settings import Backend, Runtime

BUILDERS: dict[Backend, Callable[[NetworkSource], Runner]] = {
    "tensorrt": build_tensorrt_runner,
    "torch_tensorrt": build_torch_tensorrt_runner,
    "openvino": build_openvino_runner,
    "onnxruntime": build_onnxruntime_runner,
    "torch": build_torch_runner,
}
"""Each imports its packages when it is called."""

_FASTEST_FIRST: dict[str, tuple[Backend, ...]] = {
    "cuda": ("tensorrt", "torch_tensorrt", "torch"),
    "cpu": ("tensorrt", "torch_tensorrt", "onnxruntime", "torch"),  # the first two say why not
}
_PROBE = (1, 24, 32)
# Largest difference to torch on a CPU, over the largest value: half a unit in TF32, which GPUs use
# for float32 convolutions, is as coarse as in fp16.
_TOLERANCE = {"fp32": 1e-2, "bf16": 5e-2, "fp16": 1e-2, "int8": 1e-1}
_CPU_TOLERANCE = 1e-4
_LIKE_A_FRAME = 0.05  # of white noise: frames do not differ from pixel to pixel as much as that


class BackendChoice(NamedTuple):
    """Which backend runs, and (backend, reason) of each that would have come first."""

    name: Backend
    passed_over: tuple[tuple[str, str], ...] = ()


def select_backend(source: NetworkSource) -> tuple[Runner, BackendChoice]:
    """Build the backend asked for; ``"auto"`` takes the fastest that really works here.

    A backend works when it can be built and agrees with torch on a small tile. An engine file is
    tried on every machine, and ``engine_mismatch`` says what follows when it does not run:
    ``"fallback"`` lets the backends of ``"auto"`` take over, ``"fail"`` raises, and so does
    ``"rebuild"`` once the engine has been built anew.

    Raises:
        BackendUnavailable: the backend asked for does not work here; the text says what to do.
    """
    source = replace(source, runtime=source.runtime.repeatable)
    runtime, asked = source.runtime, source.runtime.backend
    passed_over: list[tuple[str, str]] = []
    if runtime.engine and asked not in ("auto", "tensorrt"):
        reason = f"engine {runtime.engine} is not used: the backend {asked} was asked for"
        if runtime.engine_mismatch == "fail":
            raise BackendUnavailable(reason)
        passed_over.append(("tensorrt", reason))
    automatic = _FASTEST_FIRST[source.device.type]
    candidates = list(automatic) if asked == "auto" else [asked]
    for name in candidates:
        try:
            runner = BUILDERS[name](source)
            if name != "torch":
                _check_agreement(runner, source)
            return runner, BackendChoice(name, tuple(passed_over))
        except Exception as error:
            reason = " ".join(str(error).split())
            if not isinstance(error, (BackendUnavailable, ModuleNotFoundError)):
                reason = f"{type(error).__name__}: {reason}"
            policy = runtime.engine_mismatch if runtime.engine and name == "tensorrt" else ""
            if policy == "fail" or (name == asked and policy != "fallback"):
                raise BackendUnavailable(f"backend {name}: {reason}") from error
            if name == "torch":
                raise
            if name == asked:
                candidates += [other for other in automatic if other != name]
            passed_over.append((name, reason))
    raise AssertionError("torch is the last candidate and either runs or raises")


def torch_only(runtime: Runtime, model: str) -> BackendChoice:
    """The choice for a model that runs in torch whatever backend was asked for.

    Raises:
        BackendUnavailable: an engine is to run it, and ``engine_mismatch`` is ``"fail"``.
    """
    reason = f"{model} always runs in torch"
    asked = "tensorrt" if runtime.engine and runtime.backend == "auto" else runtime.backend
    if runtime.engine and asked == "tensorrt" and runtime.engine_mismatch == "fail":
        raise BackendUnavailable(f"engine {runtime.engine} is not used: {reason}")
    return BackendChoice("torch", () if asked in ("auto", "torch") else ((asked, reason),))


def resolve_device(name: str) -> torch.device:
    """Where the network runs; ``"auto"`` takes a CUDA GPU when there is one.

    Raises:
        ValueError: not a device that torch knows, or a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"(cpu|cuda)(:\d{1,3})?", name):
        raise ValueError(f"device {name!r} is not auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cpu":
        return torch.device("cpu")  # the one there is, whatever its number
    if (device.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(f"device {name!r} asked for, but torch sees {count} CUDA devices")
    return device


def check_precision(name: str, device: torch.device) -> None:
    """Raise ValueError for a precision that the device does not compute in."""
    if name == "int8" and device.type != "cpu":
        raise ValueError(f"int8 is for CPUs, the device is {device}; use fp16 or bf16")
    # Older ones emulate it slowly, and cuDNN has no convolutions of it there.
    if name == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8,):
        raise ValueError(f"{torch.cuda.get_device_name(device)} has no bf16; use fp16 or fp32")


@torch.inference_mode()
def _check_agreement(runner: Runner, source: NetworkSource) -> None:
    """Raise BackendUnavailable unless ``runner`` gives what torch gives, on one random tile."""
    shape: tuple[int, int, int] = getattr(runner, "shape", None) or _PROBE
    inputs = list(example_inputs(*shape, source.network.config.recurrent).values())
    if source.runtime.precision == "int8":  # for what frames are like, which noise is not
        inputs = [_LIKE_A_FRAME * x if x.ndim == 4 else x for x in inputs]
    expected = source.network(*inputs)
    result = runner(*(value.to(source.device) for value in inputs)).cpu()
    difference = float((result - expected).abs().max() / expected.abs().max())
    exact = source.device.type == "cpu" and source.runtime.precision == "fp32"
    tolerance = _CPU_TOLERANCE if exact else _TOLERANCE[source.runtime.precision]
    if not difference <= tolerance:
        raise BackendUnavailable(
            f"its result differs from torch by {difference:.1e} of the largest value, "
            f"more than {tolerance:.1e}"
        )
