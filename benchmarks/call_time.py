"""What a whole call of the recurrent models costs: ``benchmarks/call_time.json``.

``python -m benchmarks.call_time`` in the checkout. Milliseconds of processor time, motion, noise
and state included, on one thread in ONNX Runtime: median of 32 frames of a pan there and back, the
models in turns.
"""

import platform
import time
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import torch

from difiisr_models import Stream, load_upscaler
from difiisr_models.files import write_json
from difiisr_ros.commands.bench_calls import camera_frames
from difiisr_ros.process_setup import keep_freed_memory

MODELS = ("difiisr-rt-x4", "difiisr-rtv-x4", "difiisr-rtv-s-x4")
SIZES, NOISES = ((120, 160), (256, 320)), (0, 15)
FRAMES, ROUNDS = 16, 3  # the first round warms up


def main() -> None:
    """Measure, print and write."""
    keep_freed_memory()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows = []
    for size, noise in product(SIZES, NOISES):
        ups = {
            name: load_upscaler(name, backend="onnxruntime", device="cpu", threads=1)
            for name in MODELS
        }
        streams = {name: Stream() for name in MODELS}
        took: dict[str, list[float]] = {name: [] for name in MODELS}
        for turn, frame in product(range(ROUNDS), camera_frames(size, FRAMES, noise)):
            for name, up in ups.items():
                begun = time.process_time()
                up(frame, streams[name])
                if turn:
                    took[name].append(time.process_time() - begun)
        found = {name: 1e3 * float(np.median(values)) for name, values in took.items()}
        over = {name: value / found[MODELS[0]] for name, value in found.items()}
        rows.append({"size": f"{size[1]}x{size[0]}", "noise": noise, "ms": found, "ratio": over})
        print(rows[-1])
    where = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    write_json(Path(__file__).with_name("call_time.json"), where | {"rows": rows})


if __name__ == "__main__":
    main()
