"""sr_node with faults that a frame asks for by its first pixels: what soak tests."""

from __future__ import annotations

import gc
import runpy
import time
from typing import Any

import numpy as np
import torch

from difiisr_models import Upscaler
from difiisr_ros import process_setup
from difiisr_ros.patient_upscaler import FALLBACK

MARK = (11, 22, 33)  # of the first three pixels, uint16; the fourth says which fault
RAISES, NO_MEMORY, HANGS, RESTS = range(4)
HANG = 8.0  # seconds

_upscale = Upscaler.__call__


def _faulty(upscaler: Upscaler, frame: np.ndarray, *others: Any) -> np.ndarray:
    *mark, fault = frame.flat[:4].tolist()
    if tuple(mark) == MARK and fault == RAISES:
        raise RuntimeError("a fault that the frame asked for")
    if tuple(mark) == MARK and fault == NO_MEMORY and upscaler.name != FALLBACK:
        raise torch.OutOfMemoryError
    if tuple(mark) == MARK and fault == HANGS:
        time.sleep(HANG)
    result = _upscale(upscaler, frame, *others)
    if tuple(mark) == MARK and fault == RESTS:  # what is resident then is in use
        gc.collect()
        process_setup.return_freed_memory()
    return result


if __name__ == "__main__":
    Upscaler.__call__ = _faulty  # type: ignore[method-assign, assignment]  # on purpose
    runpy.run_module("difiisr_ros.sr_node", run_name="__main__", alter_sys=True)
