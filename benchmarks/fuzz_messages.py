"""Hostile messages through codec and upscaler, one stream for all of them; writes JSON.

    python benchmarks/fuzz_messages.py --cases 1000000 --seed 1 --out benchmarks/fuzz.json

Image, CompressedImage and CameraInfo. After every few hostile ones come two good frames, of which
the second must be right. The numbers of the part that is done are written again and again.
"""

from __future__ import annotations

import json
import resource
from collections import Counter
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import cyclopts
import numpy as np
import torch
from PIL import Image as Picture

from difiisr_models import Stream, load_upscaler
from difiisr_models.files import write_json
from difiisr_ros.camera_info import camera_info_of_result
from difiisr_ros.commands.hostile_messages import (
    SIDE,
    hostile_compressed,
    hostile_image,
    hostile_info,
)
from difiisr_ros.compressed_image import decompress
from difiisr_ros.image_codec import ImageCodecError, check_megapixels, image_to_array

MOST_MEGAPIXELS = 2.0  # the node's default
GROUP = 8  # hostile messages, then two good frames
REPORT = 10_000  # cases between two writings
_TOLERANCE = 0.5  # kelvin, of a pixel and the mean of the 4x4 that were made of it


def good_frame(rng: np.random.Generator) -> np.ndarray:
    """A warm body before a slope, ``(16, 16)`` float32, kelvin, with noise."""
    y, x = np.mgrid[:SIDE, :SIDE]
    body = 5 * np.exp(-((x - 8) ** 2 + (y - 8) ** 2) / 20)
    return (300 + 0.02 * x + body + rng.normal(0, 0.03, (SIDE, SIDE))).astype(np.float32)


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def fuzz(cases: int = 1_000_000, seed: int = 1, out: Path | None = None) -> dict[str, object]:
    """Counts of what became of the cases, the exceptions that escaped, and good frames gone wrong.

    ``out``: file that they are written to on the way.
    """
    torch.set_num_threads(1)
    up, stream, rng = load_upscaler("bicubic", device="cpu"), Stream(), np.random.default_rng(seed)
    files = []
    for kind in ("PNG", "JPEG"):
        buffer = BytesIO()
        Picture.fromarray(good_frame(rng).clip(0, 255).astype(np.uint8)).save(buffer, kind)
        files.append(buffer.getvalue())
    fates: Counter[str] = Counter()
    escaped: list[str] = []
    good, wrong, memory = 0, 0, 0

    def take(case: int) -> str:
        if case % 10 == 0:
            size = SimpleNamespace(width=SIDE, height=SIDE, header=None)
            return f"camera_info of {camera_info_of_result(hostile_info(rng), size, 4).width}"
        if case % 10 == 1:
            image = decompress(hostile_compressed(rng, files[case // 10 % 2]), MOST_MEGAPIXELS)
        else:
            image = hostile_image(rng)
        pixels = image_to_array(image)
        check_megapixels(image.width, image.height, MOST_MEGAPIXELS)
        up(pixels, stream, image.header.stamp.sec * 10**9 + image.header.stamp.nanosec)
        return "upscaled"

    for case in range(cases):
        try:
            fates[take(case)] += 1
        except ValueError as error:
            fates["refused image" if isinstance(error, ImageCodecError) else "refused"] += 1
        except Exception as error:
            escaped.append(f"case {case}: {type(error).__name__}: {error}"[:300])
        if case % GROUP == GROUP - 1:
            for _ in range(2):
                frame = good_frame(rng)
                result = up(frame, stream, case)
            means = result.astype(np.float64).reshape(SIDE, 4, SIDE, 4).mean((1, 3))
            good, wrong = good + 1, wrong + int(np.abs(means - frame).max() > _TOLERANCE)
        if case == min(2000, cases // 2):
            memory = _memory()
        if case % REPORT == REPORT - 1 or case == cases - 1:
            report = {
                "cases": case + 1, "seed": seed, "fates": dict(fates), "escaped": escaped[:20],
                "exceptions": len(escaped), "good_frames": good, "wrong_after_the_next": wrong,
                "memory_growth_mb": round((_memory() - memory) / 1024, 1),
            }  # fmt: skip
            if out is not None:
                write_json(out, report)
    return report


if __name__ == "__main__":
    print(json.dumps(cyclopts.run(fuzz), indent=1))
