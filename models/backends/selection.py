"""What can run a network here, and where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from difiisr_models.backends import (
    BackendUnavailable,
    NetworkRunner,
    NetworkSource,
)
from difiisr_models.precision import PRECISIONS

BACKENDS = ("auto", "tensorrt", "torch_tensorrt", "onnxruntime", "torch")

_FASTEST_FIRST = {
    "cuda": ("tensorrt", "torch_tensorrt", "torch"),
    "cpu": ("onnxruntime", "torch"),
}
_PROBE = (1, 24, 32)
# Largest difference to torch on a CPU, over the largest value: half a unit in TF32, which GPUs use
# for float32 convolutions, is as coarse as in fp16.
_TOLERANCE = {"fp32": 1e-2, "bf16": 5e-2, "fp16": 1e-2}
_CPU_TOLERANCE = 1e-4


@dataclass(frozen=True)
class BackendChoice:
    """Which backend runs, and why others do not.

    Attributes:
        name: one of :data:`BACKENDS` but auto.
        passed_over: (backend, reason) of each that would have come first.
    """

    name: str
    passed_over: tuple[tuple[str, str], ...] = ()


def select_backend(name: str, source: NetworkSource) -> tuple[NetworkRunner, BackendChoice]:
    """Build the backend asked for; ``"auto"`` takes the fastest that really works here.

    A backend works when it can be built and agrees with torch on a small tile. Where an engine file
    is given, TensorRT is tried on every machine, and ``engine_mismatch`` says what follows when it
    does not run: ``"fallback"`` lets the backends of ``"auto"`` take over, ``"fail"`` raises.

    Raises:
        BackendUnavailable: the backend asked for does not work here; the text says what to do.
        ValueError: an unknown backend.
    """
    check_backend(name)
    automatic = _FASTEST_FIRST[source.device.type]
    passed_over: list[tuple[str, str]] = []
    if source.engine is not None and name not in ("auto", "tensorrt"):
        reason = f"engine {source.engine} is not used: the backend {name} was asked for"
        if source.engine_mismatch == "fail":
            raise BackendUnavailable(reason)
        passed_over.append(("tensorrt", reason))
    candidates = list(automatic if name == "auto" else (name,))
    if name == "auto" and source.device.type == "cpu":
        needing_a_gpu = ["tensorrt", "torch_tensorrt"]
        if source.engine is not None:
            candidates.insert(0, needing_a_gpu.pop(0))
        passed_over += [(other, "needs a CUDA GPU") for other in needing_a_gpu]
    if name == "auto" and "torch_tensorrt" in candidates and not source.tile_given:
        # Whole frames in torch are less work than frames in tiles with borders of their own.
        candidates.remove("torch_tensorrt")
        passed_over.append(("torch_tensorrt", "takes tiles of one size: set 'tile' to have it"))
    while candidates:
        candidate = candidates.pop(0)
        try:
            runner = _builder(candidate)(source)
            if candidate != "torch":
                _check_agreement(runner, source)
        except Exception as error:
            given = candidate == "tensorrt" and source.engine is not None
            policy = source.engine_mismatch if given else ""
            if name == candidate and policy == "fallback":
                candidates += [other for other in automatic if other != name]
            elif name == candidate or policy == "fail":
                raise BackendUnavailable(f"backend {candidate}: {_reason(error)}") from error
            elif not candidates:
                raise
            passed_over.append((candidate, _reason(error)))
        else:
            return runner, BackendChoice(candidate, tuple(passed_over))
    raise AssertionError("torch is the last candidate and either runs or raises")


def torch_only(
    name: str, model: str, engine: str | Path | None = None, engine_mismatch: str = "fallback"
) -> BackendChoice:
    """The choice for a model that runs in torch whatever backend ``name`` was asked for.

    Raises:
        BackendUnavailable: an engine is to run it, and ``engine_mismatch`` is ``"fail"``.
        ValueError: an unknown backend.
    """
    check_backend(name)
    reason = f"{model} always runs in torch"
    asked = "tensorrt" if engine and name == "auto" else name
    if engine and asked == "tensorrt" and engine_mismatch == "fail":
        raise BackendUnavailable(f"engine {engine} is not used: {reason}")
    return BackendChoice("torch", () if asked in ("auto", "torch") else ((asked, reason),))


def check_backend(name: str) -> None:
    """Raise ValueError unless ``name`` is one of :data:`BACKENDS`."""
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r} is not one of {', '.join(BACKENDS)}")


def resolve_device(name: str) -> torch.device:
    """``"auto"`` takes a CUDA GPU when there is one.

    Raises:
        ValueError: not a device that torch knows, or a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is not auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is not auto, cpu, cuda or cuda:N")
    if device.type == "cpu":
        return torch.device("cpu")  # the one there is, whatever its number
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name!r} asked for, but torch sees {torch.cuda.device_count()} CUDA devices"
        )
    return device


def check_precision(name: str, device: torch.device) -> None:
    """Raise ValueError for an unknown precision, or one that the device does not compute in."""
    if name not in PRECISIONS:
        raise ValueError(f"precision {name!r} is not one of {', '.join(PRECISIONS)}")
    # Older ones emulate it slowly, and cuDNN has no convolutions of it there.
    if name == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8,):
        raise ValueError(f"{torch.cuda.get_device_name(device)} has no bf16; use fp16 or fp32")


def _builder(name: str) -> Callable[[NetworkSource], NetworkRunner]:
    """``build_runner`` of a backend's module, imported only now: it may need other packages."""
    if name == "tensorrt":
        from difiisr_models.backends.tensorrt_runner import build_runner
    elif name == "torch_tensorrt":
        from difiisr_models.backends.torch_tensorrt_runner import build_runner
    elif name == "onnxruntime":
        from difiisr_models.backends.onnxruntime_runner import build_runner
    else:
        from difiisr_models.backends.torch_runner import build_runner
    return build_runner


@torch.inference_mode()
def _check_agreement(runner: NetworkRunner, source: NetworkSource) -> None:
    """Raise BackendUnavailable unless ``runner`` gives what torch gives, on one random tile."""
    batch, height, width = runner.shape or _PROBE
    generator = torch.Generator().manual_seed(0)
    x_t, y, lr = (
        torch.randn(batch, channels, height, width, generator=generator) for channels in (16, 16, 1)
    )
    inputs = (x_t, y, lr, torch.tensor([14]), torch.tensor([0.5]))
    expected = source.network(*inputs)
    result = runner(*(value.to(source.device) for value in inputs)).cpu()
    difference = float((result - expected).abs().max() / expected.abs().max())
    exact = source.device.type == "cpu" and source.precision == "fp32"
    tolerance = _CPU_TOLERANCE if exact else _TOLERANCE[source.precision]
    if not difference <= tolerance:
        raise BackendUnavailable(
            f"its result differs from torch by {difference:.1e} of the largest value, "
            f"more than {tolerance:.1e}"
        )


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    expected = isinstance(error, (BackendUnavailable, ModuleNotFoundError))
    return text if expected else f"{type(error).__name__}: {text}"
