"""Hostile messages through codec and upscaler, one stream for all of them.

``FUZZ_CASES=1000000 FUZZ_SEED=1 FUZZ_JSON=fuzz.json`` does it for hours and writes what was found.
After every few hostile ones come two good frames, of which the second must be right.
"""

import os
import resource
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tqdm import trange

from difiisr_models import Stream, load_upscaler
from difiisr_models.files import write_json
from difiisr_ros.camera_info import camera_info_of_result
from difiisr_ros.image_codec import check_megapixels, decompress, image_to_array

pytest.importorskip("rcl_interfaces", reason="needs ROS messages")

from difiisr_ros.commands.hostile_messages import (
    SIDE,
    hostile_compressed,
    hostile_image,
    hostile_info,
)

CASES, SEED = int(os.environ.get("FUZZ_CASES", "1500")), int(os.environ.get("FUZZ_SEED", "7"))
MEGAPIXELS = 2.0  # the node's default
SIZE = SimpleNamespace(width=SIDE, height=SIDE, header=None)


def good_frame(rng):
    """A warm body before a slope, kelvin, with noise."""
    y, x = np.mgrid[:SIDE, :SIDE]
    body = 5 * np.exp(-((x - 8) ** 2 + (y - 8) ** 2) / 20)
    return (300 + 0.02 * x + body + rng.normal(0, 0.03, (SIDE, SIDE))).astype(np.float32)


def memory_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.timeout(0 if CASES > 1500 else 300)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_hostile_messages_raise_nothing_and_spoil_no_good_frame_but_the_next():
    torch.set_num_threads(1)
    up, stream, rng = load_upscaler("bicubic", device="cpu"), Stream(), np.random.default_rng(SEED)
    fates, begun = Counter(), 0

    def take(case):
        if case % 10 == 0:
            return camera_info_of_result(hostile_info(rng), SIZE, 4)
        if case % 10 == 1:
            image = decompress(hostile_compressed(rng), MEGAPIXELS)
        else:
            image = hostile_image(rng)
        pixels = image_to_array(image)
        check_megapixels(image.width, image.height, MEGAPIXELS)
        stamp = image.header.stamp
        return up(pixels, stream, stamp.sec * 10**9 + stamp.nanosec)

    exceptions, wrong, started = Counter(), [], time.monotonic()
    for case in trange(CASES, mininterval=5):
        try:
            take(case)
            fates["taken"] += 1
        except ValueError:
            fates["refused"] += 1
        except Exception as error:
            exceptions[f"{type(error).__name__}: {error}"] += 1
        if case % 8 == 7:
            up(good_frame(rng), stream, case)
            frame = good_frame(rng)
            means = up(frame, stream, case).reshape(SIDE, 4, SIDE, 4).mean((1, 3))
            fates["good_frames"] += 1
            wrong += [] if np.abs(means - frame).max() < 0.5 else [case]
        begun = memory_mb() if case == min(2000, CASES // 2) else begun
    grown, seconds = memory_mb() - begun, time.monotonic() - started
    if path := os.environ.get("FUZZ_JSON"):
        found = {"cases": CASES, "seed": SEED, **fates, "good_frames_wrong_after_case": wrong}
        found |= {"exceptions": exceptions, "memory_growth_mb": grown, "seconds": seconds}
        write_json(Path(path), found)
    assert not exceptions, f"seed {SEED}"
    assert not wrong, f"seed {SEED}"
    assert min(fates["taken"], fates["refused"]) > 0.2 * CASES
    assert grown < 500  # images of 2 megapixels are allowed
