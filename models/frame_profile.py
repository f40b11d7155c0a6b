"""Where a frame's milliseconds go, stage by stage, as torch's profiler saw them."""

from __future__ import annotations

import time

import numpy as np
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from difiisr_models.stream import Stream
from difiisr_models.upscaler import STAGE, Upscaler

_WARM_UP_FRAMES = 3
_FRAMES = 15
_FEWEST_FRAMES = 3  # of a model that takes longer than _PATIENCE for more
_PATIENCE = 30.0  # seconds


def profile_stages(upscaler: Upscaler, height: int, width: int) -> dict[str, tuple[float, float]]:
    """Profile mono16 frames of ``(height, width)``; a slow model is given fewer of them.

    The profiler itself costs a little at every operation.

    Returns:
        stage -> median milliseconds per frame on the CPU, and on the GPU from its first kernel to
        its last (0 without a GPU), in the order of the path. ``frame`` is the whole, ``network``
        the part of ``tiles`` that is not cutting and blending.
    """
    rng, stream = np.random.default_rng(0), Stream()
    counts = 22000 + np.add.outer(np.arange(height), np.arange(width)) % 400
    frames = (counts + rng.integers(0, 20, (_FRAMES, *counts.shape))).astype(np.uint16)
    for frame in frames[:_WARM_UP_FRAMES]:
        started = time.monotonic()
        upscaler(frame, stream)
        took = time.monotonic() - started
    count = max(_FEWEST_FRAMES, min(_FRAMES, int(_PATIENCE / max(took, 1e-6))))
    gpu = [ProfilerActivity.CUDA] if upscaler.device.startswith("cuda") else []
    with profile(activities=[ProfilerActivity.CPU, *gpu]) as profiler:
        for frame in frames[:count]:
            upscaler(frame, stream)
    stages = [event for event in profiler.events() if event.name.startswith(STAGE)]
    whole = [e for e in stages if e.name == STAGE + "frame" and e.device_type == DeviceType.CPU]
    names = list(dict.fromkeys(event.name for event in stages))
    totals = np.zeros((len(whole), len(names), 2))  # a stage may come several times per frame
    for event in stages:
        inside = [e.time_range.start <= event.time_range.start <= e.time_range.end for e in whole]
        on_device = int(event.device_type == DeviceType.CUDA)
        totals[inside, names.index(event.name), on_device] += event.time_range.elapsed_us() / 1e3
    medians = np.median(totals, axis=0).tolist()
    return {
        name.removeprefix(STAGE): tuple(both) for name, both in zip(names, medians, strict=True)
    }
