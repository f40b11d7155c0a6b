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
from scipy.ndimage import gaussian_filter

from difiisr_models import Stream, load_upscaler
from difiisr_models.files import write_json
from difiisr_ros.process_setup import keep_freed_memory

MODELS = ("difiisr-rt-x4", "difiisr-rtv-x4", "difiisr-rtv-s-x4")
SIZES, NOISES = ((120, 160), (256, 320)), (0, 15)  # 15 counts are about 1 % of the span
FRAMES, ROUNDS = 16, 3  # the first round warms up


def pan(height: int, width: int, noise: float) -> list[np.ndarray]:
    """Frames of uint16 counts, one pixel further each, there and back."""
    rng = np.random.default_rng(0)
    scene = gaussian_filter(rng.normal(size=(height + FRAMES, width + FRAMES)), 2.0)
    scene *= 250 / scene.std()
    places = [min(k, FRAMES - k) for k in range(FRAMES)]
    seen = [7500 + scene[k : k + height, k : k + width] for k in places]
    return [(x + rng.normal(0, noise, x.shape)).astype(np.uint16) for x in seen]


def main() -> None:
    """Measure, print and write."""
    keep_freed_memory()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows = []
    for (height, width), noise in product(SIZES, NOISES):
        ups = {
            name: load_upscaler(name, backend="onnxruntime", device="cpu", threads=1)
            for name in MODELS
        }
        streams = {name: Stream() for name in MODELS}
        took: dict[str, list[float]] = {name: [] for name in MODELS}
        for turn, frame in product(range(ROUNDS), pan(height, width, noise)):
            for name, up in ups.items():
                begun = time.process_time()
                up(frame, streams[name])
                if turn:
                    took[name].append(time.process_time() - begun)
        found = {name: 1e3 * float(np.median(values)) for name, values in took.items()}
        over = {name: value / found[MODELS[0]] for name, value in found.items()}
        rows.append({"size": f"{width}x{height}", "noise": noise, "ms": found, "ratio": over})
        print(rows[-1])
    where = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    write_json(Path(__file__).with_name("call_time.json"), where | {"rows": rows})


if __name__ == "__main__":
    main()
