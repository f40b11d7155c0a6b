"""Where a frame's milliseconds go, stage by stage, as torch's profiler saw them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from difiisr_models.radiometry import RangeTracker
from difiisr_models.upscaler import STAGE, Upscaler

_WARM_UP_FRAMES = 3
_FRAMES = 15
_FEWEST_FRAMES = 3  # of a model that takes longer than _PATIENCE for more
_PATIENCE = 30.0  # seconds


@dataclass(frozen=True)
class StageTime:
    """One stage of the frame path.

    Attributes:
        name: in the order of the path; ``network`` is the part of ``tiles`` that is not cutting
            and blending.
        host_ms: median time on the CPU per frame, milliseconds.
        device_ms: median time on the GPU, from its first kernel to its last; 0 without a GPU.
    """

    name: str
    host_ms: float
    device_ms: float


def profile_stages(upscaler: Upscaler, height: int, width: int) -> list[StageTime]:
    """Profile mono16 frames of ``(height, width)``; the row ``frame`` is the whole.

    The profiler itself costs a little at every operation. A slow model is given fewer frames.
    """
    activities = [ProfilerActivity.CPU]
    if upscaler.device.startswith("cuda"):
        activities.append(ProfilerActivity.CUDA)
    rng, tracker = np.random.default_rng(0), RangeTracker()
    counts = 22000 + np.add.outer(np.arange(height), np.arange(width)) % 400
    stream = [
        (counts + rng.integers(0, 20, counts.shape)).astype(np.uint16) for _ in range(_FRAMES)
    ]
    for frame in stream[:_WARM_UP_FRAMES]:
        started = time.monotonic()
        upscaler(frame, tracker)
        took = time.monotonic() - started
    frames = max(_FEWEST_FRAMES, min(_FRAMES, int(_PATIENCE / max(took, 1e-6))))
    with profile(activities=activities) as profiler:
        for frame in stream[:frames]:
            upscaler(frame, tracker)
    return _medians(profiler.events())


def _medians(events: Iterable[FunctionEvent]) -> list[StageTime]:
    stages = [event for event in events if event.name.startswith(STAGE)]
    whole = [e for e in stages if e.name == STAGE + "frame" and e.device_type == DeviceType.CPU]
    names = list(dict.fromkeys(event.name for event in stages))
    totals = np.zeros((len(whole), len(names), 2))  # a stage may come several times per frame
    for event in stages:
        inside = [e.time_range.start <= event.time_range.start <= e.time_range.end for e in whole]
        on_device = int(event.device_type == DeviceType.CUDA)
        totals[inside, names.index(event.name), on_device] += event.time_range.elapsed_us() / 1e3
    medians = np.median(totals, axis=0)
    return [
        StageTime(name[len(STAGE) :], *(float(value) for value in both))
        for name, both in zip(names, medians, strict=True)
    ]
