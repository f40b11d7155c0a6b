"""Ctrl-C while torch is imported, where a KeyboardInterrupt becomes another error."""

import os
import signal
import subprocess
import sys
import time

import pytest

TORCH = """
import pathlib, time
pathlib.Path(__file__).with_name("importing").touch()
try:
    time.sleep(60)
except BaseException:
    raise SystemError("error return without exception set")
"""
IN_EXEC = """
import pathlib
pathlib.Path(__file__).with_name("importing").touch()
exec("import time; time.sleep(60)")
"""


def as_usual():
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


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
    if module.endswith("sr_node"):
        pytest.importorskip("rclpy")
    arguments = ["info", "bicubic"] if module.endswith("cli") else []
    (tmp_path / "torch.py").write_text(torch)
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_usual,  # tests before may have left this process with signals ignored
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "importing").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == code, error
    assert "Traceback" not in error
