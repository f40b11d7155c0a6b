"""Signals and full disks in the middle: an exit code, a line, and nothing half done."""

import os
import resource
import signal
import subprocess
import sys
import time

import pytest
from thermal_bags import messages, record

from difiisr_ros.bags import find_recordings

DIFIISR = [sys.executable, "-m", "difiisr_ros.cli"]


def start(arguments, **options):
    return subprocess.Popen(
        [*DIFIISR, *map(str, arguments)], stderr=subprocess.PIPE, text=True, **options
    )


def wait_until(condition, process):
    until = time.monotonic() + 100
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.02)


def usual_signals():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("verb", "number"),
    [("replay", signal.SIGINT), ("replay", signal.SIGTERM), ("scene", signal.SIGHUP)],
)
def test_a_signal_leaves_the_older_output_and_nothing_else(tmp_path, verb, number):
    older = record(tmp_path / "out", frames=1)
    before = messages(older)
    arguments = ["scene", older, "--force", "--frames", 100_000]
    if verb == "replay":
        source = record(tmp_path / "in", frames=3000)
        arguments = ["replay", source, older, "--force", "--model", "bicubic"]
    there = set(os.listdir(tmp_path))
    process = start(arguments, preexec_fn=usual_signals)
    wait_until(lambda: set(os.listdir(tmp_path)) != there, process)
    process.send_signal(number)
    _, error = process.communicate(timeout=100)
    assert process.returncode in (128 + number, -number)
    assert "Traceback" not in error
    assert number.name in error
    assert set(os.listdir(tmp_path)) == there
    assert messages(older) == before


def test_an_ignored_hangup_stays_ignored(tmp_path):
    process = start(
        ["scene", tmp_path / "out", "--frames", 300],
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    wait_until(lambda: os.listdir(tmp_path), process)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=100) == 0
    assert find_recordings(tmp_path) == [tmp_path / "out"]


def small_disk(size):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_full_disk_leaves_the_older_recording(tmp_path, storage):
    source = record(tmp_path / "in", storage, frames=30)
    older = record(tmp_path / "out", storage, frames=1)
    before = messages(older)
    arguments = ["replay", source, older, "--force", "--model", "bicubic"]
    process = start(arguments, preexec_fn=small_disk(100_000))
    _, error = process.communicate(timeout=100)
    assert process.returncode == 1
    assert error.strip().splitlines()[-1].startswith("difiisr: ")
    assert "Traceback" not in error
    assert messages(older) == before
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path):
    code = (
        "import sys, pathlib, torch; from difiisr_training.checkpoints import save_checkpoint\n"
        "try: save_checkpoint(pathlib.Path(sys.argv[1]), {}, {'n': torch.nn.Linear(300, 300)})\n"
        "except OSError as error: print(error); sys.exit(7)"
    )
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"older")
    command = [sys.executable, "-c", code, path]
    done = subprocess.run(command, preexec_fn=small_disk(50_000), capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert "checkpoint.pt" in done.stdout or "large" in done.stdout
    assert path.read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["checkpoint.pt"]
