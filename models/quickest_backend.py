"""Which backend and precision is the quickest on this CPU, by a short measurement.

For a robot that is to keep up with its camera. Two machines, or two starts, may choose otherwise,
and bfloat16 rounds otherwise: what is to be repeated asks for one backend and precision.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from difiisr_models.backends import BackendUnavailable
from difiisr_models.backends.selection import resolve_device
from difiisr_models.frame_model import BICUBIC
from difiisr_models.model_loading import load_upscaler
from difiisr_models.settings import FrameSettings, Runtime, with_fields
from difiisr_models.stream import Stream
from difiisr_models.upscaler import Upscaler

_CANDIDATES = {"openvino": ("bf16", "fp32"), "onnxruntime": ("fp32",), "torch": ("bf16", "fp32")}
_HEIGHT, _WIDTH, _FRAMES = 72, 96, 3
_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}


def load_quickest(
    name: str,
    *,
    runtime: Runtime = Runtime(),
    settings: FrameSettings = FrameSettings(),
    **fields: object,
) -> Upscaler:
    """``load_upscaler``, whose ``backend`` and ``precision`` auto is what computes a frame soonest.

    On a GPU, with an engine, and for models that always run in torch nothing is measured.
    Arguments and what is raised are those of ``load_upscaler``.
    """
    runtime, settings = with_fields(runtime, settings, fields)
    on_cpu = resolve_device(runtime.device).type == "cpu"
    asked = runtime.backend in ("auto", *_CANDIDATES)
    if name in BICUBIC or runtime.engine or not on_cpu or not asked:
        return load_upscaler(name, runtime=runtime, settings=settings)
    has_bf16 = bool(_BF16_FLAGS & cpu_flags())
    best, measured, passed_over = None, {}, []
    for backend in _CANDIDATES if runtime.backend == "auto" else (runtime.backend,):
        precision = runtime.precision
        if precision == "auto":
            precision = "bf16" if has_bf16 and "bf16" in _CANDIDATES[backend] else "fp32"
        try:
            chosen = replace(runtime, backend=backend, precision=precision)
            up = load_upscaler(name, runtime=chosen, settings=settings)
        except BackendUnavailable as error:
            if runtime.backend != "auto":
                raise
            passed_over.append((backend, str(error)))
            continue
        if up.backend != backend or runtime.backend != "auto":
            return up
        took = _milliseconds(up)
        if not measured or took < min(measured.values()):
            best = up
        measured[f"{backend} {precision}"] = took
    if best is None:
        raise BackendUnavailable("; ".join(f"{backend}: {why}" for backend, why in passed_over))
    best.measured, best.passed_over = measured, tuple(passed_over)
    return best


def cpu_flags() -> set[str]:
    """What the CPU has instructions for, as Linux names it; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def _milliseconds(up: Upscaler) -> float:
    """Of a small frame, the median of three after one that warms up."""
    frame, took = np.arange(_HEIGHT * _WIDTH, dtype=np.uint16).reshape(_HEIGHT, _WIDTH), []
    for _ in range(_FRAMES + 1):
        begun = time.perf_counter()
        up(frame, Stream())
        took.append(1e3 * (time.perf_counter() - begun))
    return median(took[1:])
