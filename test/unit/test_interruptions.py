"""Signals and full disks in the middle: an exit code, a line, and nothing half done."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from thermal_bags import messages, record
from wave_frames import write_waves

from difiisr_ros.bags import find_recordings
from difiisr_ros.cli import main
from difiisr_training.checkpoints import load_average


def start(arguments, module="difiisr_ros.cli", **options):
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)


def ended(process, number, *codes):
    """What the process says when a signal ends it, with one of these exit codes."""
    process.send_signal(number)
    _, error = process.communicate(timeout=100)
    assert process.returncode in (codes or (128 + number,)), error
    assert "Traceback" not in error
    return error


def wait_until(condition, process):
    until = time.monotonic() + 100
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.02)


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
    process = start(arguments)
    wait_until(lambda: set(os.listdir(tmp_path)) != there, process)
    assert number.name in ended(process, number, 128 + number)
    assert set(os.listdir(tmp_path)) == there
    assert messages(older) == before


MKDIR = """
import os, signal, sys
from difiisr_ros.cli import main

def stopped(path, *options, make=os.mkdir, **more):
    make(path, *options, **more)
    if ".partial" in str(path):
        os.kill(os.getpid(), signal.SIGTERM)

os.mkdir = stopped
sys.exit(main(sys.argv[1:]))
"""


def test_a_signal_as_the_first_folder_is_made_leaves_nothing(tmp_path):
    command = [sys.executable, "-c", MKDIR, "scene", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 143, done.stderr
    assert not os.listdir(tmp_path)


SWALLOWS = """
import os, signal, time
from difiisr_ros.process_setup import Interrupt, interrupts_noted

class Swallows:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)

with interrupts_noted() as noted:
    try:
        Swallows()
        time.sleep(60)
    except Interrupt as error:
        print(error.args[0], set(noted) == {signal.SIGTERM})
"""


def test_an_interrupt_that_a_finalizer_swallows_comes_again():
    command = [sys.executable, "-c", SWALLOWS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.stdout == f"{int(signal.SIGTERM)} True\n", done.stderr
    assert done.stderr == ""


TRAINING = """
name: tiny
network: {channels: 8, blocks: 1, time_features: 16}
sources: [{folder: frames, val_share: 0.0}]
crops: {lr_size: 16}
iterations: 100000
batch: 1
log_every: 1
checkpoint_every: 1
"""


def results_of(folder, frames):
    """A recording with the results of its frames beside them."""
    record(folder / "in", frames=frames)
    assert main(["replay", str(folder / "in"), str(folder / "both"), "--model=bicubic"]) == 0
    return folder / "both"


def training(folder):
    """The arguments of a training that takes hours."""
    write_waves(folder / "data" / "frames", 2)
    (folder / "tiny.yaml").write_text(TRAINING)
    return ["train", folder / "tiny.yaml", "--data", folder / "data", "--workers", 0]


def evaluation(source, out):
    arguments = ["--models=bicubic", "--metrics=psnr", "--device=cpu", "--no-report"]
    return ["evaluate", source, "--out", out, *arguments]


def test_an_evaluation_that_is_ended_has_no_result(tmp_path):
    source, out = record(tmp_path / "in", frames=5000), tmp_path / "out"
    process = start(evaluation(source, out))
    wait_until((out / "frames").exists, process)
    assert ended(process, signal.SIGTERM).splitlines()[-1] == "difiisr: interrupted by SIGTERM"
    assert os.listdir(out) == ["frames"]


def test_a_judgement_of_a_recording_that_is_ended_leaves_nothing(tmp_path):
    source = results_of(tmp_path, 600)
    arguments = ["recorded", source, "--model=bicubic", "--out", tmp_path / "out"]
    process = start(arguments)
    watched = psutil.Process(process.pid)
    wait_until(lambda: any(f.path.startswith(str(source)) for f in watched.open_files()), process)
    ended(process, signal.SIGINT)
    assert not (tmp_path / "out").exists()


def test_a_training_that_is_ended_saves_first(tmp_path):
    run = tmp_path / "run"
    process = start([*training(tmp_path), "--run", run])
    wait_until((run / "checkpoint.pt").exists, process)
    ended(process, signal.SIGTERM)
    assert load_average(run / "checkpoint.pt")[2] >= 1
    assert not list(run.glob("*.partial")) + list(run.glob(".*.partial"))


def test_a_fleet_ends_with_the_code_of_the_signal_and_leaves_nothing_of_ray(tmp_path):
    pytest.importorskip("ray", reason="needs the extra fleet")
    source, out = record(tmp_path / "in", frames=5000), tmp_path / "out"
    sessions = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray")
    process = start(["fleet", "replay", source, "--model", "bicubic", "--out", out])
    ours = psutil.Process(process.pid)

    def works():
        return any("ray::Worker" in child.name() for child in ours.children(recursive=True))

    wait_until(works, process)
    began = ours.children(recursive=True)
    ended(process, signal.SIGTERM)
    assert not psutil.wait_procs(began, timeout=10)[1]
    assert not [*sessions.glob(f"*_{process.pid}")]
    assert not [*out.rglob("*")]


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


def test_a_full_disk_leaves_the_older_recording(tmp_path):
    source = record(tmp_path / "in", frames=30)
    older = record(tmp_path / "out", frames=1)
    before = messages(older)
    arguments = ["replay", source, older, "--force", "--model", "bicubic"]
    process = start(arguments, preexec_fn=small_disk(100_000))
    _, error = process.communicate(timeout=100)
    assert process.returncode == 1
    assert error.strip().splitlines()[-1].startswith("difiisr: ")
    assert "Traceback" not in error
    assert messages(older) == before
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


@pytest.mark.parametrize("verb", ["evaluate", "recorded", "train"])
def test_a_full_disk_in_the_middle_is_one_line_and_no_half_file(tmp_path, capsys, verb):
    out = tmp_path / "out"
    if verb == "evaluate":
        arguments = evaluation(record(tmp_path / "in", frames=40), out)
    elif verb == "recorded":
        arguments = [verb, results_of(tmp_path, 30), "--model=none", "--out", out]
    else:
        arguments = [*training(tmp_path), "--run", out]
    capsys.readouterr()
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, usual[1]))
    try:
        code = main([str(word) for word in arguments])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("difiisr: ")
    made = {path.name for path in out.rglob("*")} if out.exists() else set()
    assert not [name for name in made if name.endswith(".partial")]
    assert not made & {"results.json", "per_frame.csv", "recorded.json", "checkpoint.pt"}


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path):
    code = (
        "import sys, pathlib, torch; from difiisr_training.checkpoints import save_checkpoint\n"
        "try: save_checkpoint(pathlib.Path(sys.argv[1]), torch.nn.Linear(300, 300).state_dict())\n"
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


IN_EXEC = """
import pathlib
pathlib.Path(__file__).with_name("importing").touch()
exec("import time; time.sleep(60)")
"""
TORCH = """
import pathlib, time
pathlib.Path(__file__).with_name("importing").touch()
try:
    time.sleep(60)
except BaseException:
    raise SystemError("error return without exception set")
"""


@pytest.mark.parametrize(
    ("torch", "module", "number", "code"),
    [
        (TORCH, "difiisr_ros.cli", signal.SIGINT, 130),
        (IN_EXEC, "difiisr_ros.cli", signal.SIGINT, 130),
        (IN_EXEC, "difiisr_ros.cli", signal.SIGTERM, 143),
        (TORCH, "difiisr_ros.sr_node", signal.SIGINT, 0),
        (TORCH, "difiisr_ros.sr_node", signal.SIGTERM, 0),
    ],
)
def test_a_signal_during_the_imports_leaves_no_traceback(tmp_path, torch, module, number, code):
    """While torch is imported, where a KeyboardInterrupt becomes another error."""
    if module.endswith("sr_node"):
        pytest.importorskip("rclpy")
    arguments = ["info", "bicubic"] if module.endswith("cli") else []
    (tmp_path / "torch.py").write_text(torch)
    process = start(arguments, module, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    wait_until((tmp_path / "importing").exists, process)
    ended(process, number, code)
