"""Memory that a process has freed, or holds for no frame to come, in a process apart."""

import json
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only the GNU C library can be told"
)

FRAME = 40 << 20  # bytes: a 2560x2048 image in float32, twice
PROCESS = f"""
import json, resource, sys
import numpy as np
from difiisr_ros.process_setup import keep_freed_memory, return_freed_memory

def frames(count):
    for _ in range(count):
        np.ones({FRAME}, np.uint8)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

kept = keep_freed_memory() if sys.argv[1] == "keep" else None
frames(2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
frames(10)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
held = resident()
return_freed_memory()
print(json.dumps({{"kept": kept, "faults": faults, "returned": held - resident()}}))
"""


def run(mode):
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, mode], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_a_stream_of_frames_reuses_its_memory_until_it_is_given_back():
    """A page fault for each page of each frame is what makes large images slow."""
    stock, kept = run("stock"), run("keep")
    pages = 10 * FRAME // (2 << 20)  # at most so few, where pages are huge ones
    assert kept["kept"] is True
    assert stock["faults"] >= pages
    assert kept["faults"] < stock["faults"] / 10
    assert kept["returned"] > FRAME / 2


SIZES = """
import os, psutil
from difiisr_ros import process_setup
process_setup.keep_freed_memory()
import numpy as np
from difiisr_models import Stream, load_upscaler

up, used = load_upscaler("bicubic-consistent", device="cpu", threads=1), []
for count, (height, width) in enumerate(np.random.default_rng(0).integers(16, 90, (200, 2))):
    up(np.arange(height * width, dtype=np.uint16).reshape(height, width), Stream())
    if count in (39, 199):
        process_setup.return_freed_memory()
        used.append(psutil.Process().memory_info().rss / 1e6)
print(used[1] - used[0])
"""


def test_frames_of_ever_new_sizes_leave_little_behind():
    grown = subprocess.run([sys.executable, "-c", SIZES], capture_output=True, text=True)
    assert float(grown.stdout) < 12, grown.stderr
