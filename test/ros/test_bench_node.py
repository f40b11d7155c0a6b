"""``difiisr bench --only node``: a real node over DDS, every frame matched by its stamp."""

import json
import os
import signal
import threading

import pytest
import torch

pytest.importorskip("rclpy")

from difiisr_ros.bench.cli import main, thermal_frames
from difiisr_ros.bench.contenders import Running
from difiisr_ros.bench.node_stream import NodeUnderTest
from difiisr_ros.demo.live import dds_environment
from difiisr_ros.demo.processes import ProcessFailed


@pytest.fixture
def own_domain(monkeypatch):
    """The environment of the process is restored afterwards: a benchmark sets it for itself."""
    for name in ("ROS_DOMAIN_ID", "FASTDDS_DEFAULT_PROFILES_FILE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in dds_environment(os.environ).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def node(own_domain, tmp_path):
    frames = thermal_frames(48, 64, 2)
    device = torch.device("cpu")
    with NodeUnderTest(frames, "bicubic", Running(), device, 1, tmp_path, os.environ) as node:
        yield node


def test_the_node_is_measured_at_a_fixed_rate_and_at_its_peak(own_domain, tmp_path):
    arguments = ["--only", "node", "--models", "difiisr-rt-x4", "--quick", "--device", "cpu"]
    assert main([*arguments, "--backend", "torch", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    fixed = rows[0]
    assert (fixed["model"], fixed["search"]) == ("bicubic", False)
    assert fixed["upscaling_p50"] is None  # a second says nothing of the ten looked back on
    assert fixed["rate"] == pytest.approx(9.0, rel=0.2)
    assert 0 < fixed["received"] <= fixed["sent"] == 9
    assert 0 < fixed["p50"] <= fixed["p99"]
    assert fixed["memory_mib"] > 50
    assert fixed["gpu"] is fixed["gpu_memory_mib"] is None
    ours = [row for row in rows if row["model"] == "difiisr-rt-x4" and "no_result" not in row]
    assert {row["backend"] for row in ours} == {"torch"}  # asked for: auto takes another
    assert {len(row["weights_sha256"]) for row in ours} == {64}
    assert rows[-1]["search"]


def test_answers_count_for_the_run_that_asked(node):
    pid = node._processes.pid("node")
    os.kill(pid, signal.SIGSTOP)
    try:
        silent = node.run(9.0, 1.0)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (silent.received, silent.loss, silent.latencies) == (0, 1.0, [])
    assert silent.load.cpu < 0.1
    answered = node.run(4.0, 2.0)  # while late answers to the run before arrive
    assert answered.received >= answered.sent - 1
    assert max(answered.latencies) < 2.0


def test_a_node_that_dies_ends_its_run(node):
    killing = threading.Timer(0.5, os.kill, (node._processes.pid("node"), signal.SIGKILL))
    killing.start()
    with pytest.raises(ProcessFailed, match="exit code -9"):
        node.run(9.0, 60.0)


def test_an_interrupt_ends_a_run(node):
    pressing = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    pressing.start()
    with pytest.raises(KeyboardInterrupt):
        node.run(9.0, 60.0)
