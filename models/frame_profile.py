"""Where a frame's milliseconds go, stage by stage, as torch's profiler saw them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from difiisr_models.radiometry import RangeTracker
from difiisr_models.upscaler import STAGE, Upscaler

_WARM_UP_FRAMES = 3


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


def profile_stages(
    upscaler: Upscaler, height: int, width: int, frames: int = 15
) -> list[StageTime]:
    """Profile mono16 frames of ``(height, width)``; the last row, ``frame``, is the whole.

    The profiler itself costs a little at every operation.
    """
    activities = [ProfilerActivity.CPU]
    if upscaler.device.startswith("cuda"):
        activities.append(ProfilerActivity.CUDA)
    rng, tracker = np.random.default_rng(0), RangeTracker()
    counts = 22000 + np.add.outer(np.arange(height), np.arange(width)) % 400
    noise = rng.integers(0, 20, (frames + _WARM_UP_FRAMES, height, width))
    stream = (counts + noise).astype(np.uint16)
    for frame in stream[:_WARM_UP_FRAMES]:
        upscaler(frame, tracker)
    times: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for frame in stream[_WARM_UP_FRAMES:]:
        with profile(activities=activities) as profiler:
            upscaler(frame, tracker)
        spent: dict[tuple[str, bool], float] = defaultdict(float)
        for event in profiler.events():
            if event.name.startswith(STAGE):
                on_device = event.device_type == DeviceType.CUDA
                spent[event.name[len(STAGE) :], on_device] += event.time_range.elapsed_us() / 1e3
        for (name, on_device), milliseconds in spent.items():
            times[name][on_device].append(milliseconds)
    medians = {
        name: [float(np.median(v)) if v else 0.0 for v in both] for name, both in times.items()
    }
    return [StageTime(name, *both) for name, both in medians.items()]
