"""An upscaler that goes on with less where memory runs out, and comes back by itself."""

from __future__ import annotations

import copy
import gc
import re
import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import torch

from difiisr_models import Stream, Upscaler, load_upscaler
from difiisr_ros.refusals import described

RECOVERY = 20.0  # seconds until all is tried again
FALLBACK = "bicubic-consistent"
_LEAN = {"tile": 128, "overlap": 16, "tile_batch": 1}


def is_out_of_memory(error: Exception) -> bool:
    """Whether numpy, torch, ONNX Runtime or TensorRT found no memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return bool(re.search("out of memory|allocate (\\w+ )?memory", str(error), re.IGNORECASE))


class PatientUpscaler:
    """Calls ``upscaler``; where memory runs out, with small tiles, then the fallback on the CPU.

    A frame whose memory runs out is tried again with less at once. After ``RECOVERY`` seconds the
    next frame tries all of it again.

    Attributes:
        trouble: what is done with less, and since when, "" while nothing is.
    """

    def __init__(self, upscaler: Upscaler, clock: Callable[[], float] = time.monotonic) -> None:
        self._upscaler, self._clock = upscaler, clock
        self._fallback = load_upscaler(FALLBACK, device="cpu")
        self._step, self._again = 0, 0.0
        self.trouble = ""

    def __call__(self, frame: np.ndarray, stream: Stream, stamp_ns: int) -> np.ndarray:
        """As of an :class:`Upscaler`; raises what it raises, at the last step memory errors too."""
        if self._step and self._clock() >= self._again:
            self._step = 0
        while True:
            try:
                result = self._at_step()(frame, stream, stamp_ns)
            except Exception as error:
                if not is_out_of_memory(error) or self._step == 2:
                    raise
                self._step_down(error)
            else:
                self.trouble = self.trouble if self._step else ""
                return result

    def _at_step(self) -> Upscaler:
        if self._step == 0:
            return self._upscaler
        if self._step == 1:
            lean = copy.copy(self._upscaler)  # the same network
            with suppress(ValueError):  # an engine takes its own tiles only
                lean.change(**_LEAN)
            return lean
        self._fallback.settings = self._upscaler.settings
        return self._fallback

    def _step_down(self, error: Exception) -> None:
        self._again = self._clock() + RECOVERY
        self._step += 1
        instead = FALLBACK if self._step == 2 else f"tiles of {_LEAN['tile']} pixels"
        self.trouble = (
            f"out of memory: {instead} in place of {self._upscaler.name} as it was asked for, "
            f"which is tried every {RECOVERY:.0f} s; use a smaller tile or tile_batch, or a "
            f"smaller model ({described(error)})"
        )
        gc.collect()
        torch.cuda.empty_cache()  # nothing where no GPU is in use
