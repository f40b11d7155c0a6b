"""A frame's walk: our functions on the stack from the upscaler to the network's forward.

python -m benchmarks.frame_walk [BACKEND ...]
"""

from __future__ import annotations

import sys
from pathlib import Path
from traceback import walk_stack
from types import FrameType
from typing import Any

import numpy as np

import difiisr_models
from difiisr_models import Stream, load_upscaler

OURS = str(Path(difiisr_models.__file__).parent)
FRAME = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)


def walk(backend: str) -> list[str]:
    """Qualified names on the stack when the network of the compact model is first entered."""
    upscaler = load_upscaler("difiisr-rt-x4", device="cpu", backend=backend)
    upscaler.warm_up()
    found: list[str] = []

    def watch(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        is_network = code.co_filename.startswith(OURS) and code.co_name == "forward"
        if event != "call" or found or not (is_network or "onnxruntime" in code.co_filename):
            return
        for caller, _ in walk_stack(frame):
            if caller.f_code.co_filename.startswith(OURS):
                file = Path(caller.f_code.co_filename).relative_to(OURS)
                own = caller.f_locals.get("self")
                owner = f"{type(own).__name__}." if own is not None else ""
                found.insert(0, f"{file}: {owner}{caller.f_code.co_name}")

    sys.setprofile(watch)
    try:
        upscaler(FRAME, Stream())
    finally:
        sys.setprofile(None)
    return found


if __name__ == "__main__":
    for name in sys.argv[1:] or ("torch", "onnxruntime"):
        steps = walk(name)
        print(f"{name}: {len(steps)} functions", *steps, sep="\n  ")
