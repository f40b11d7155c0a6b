"""``difiisr bench --only node``: a real node over DDS, every frame matched by its stamp."""

import json
import os
import signal
import threading

import pytest

pytest.importorskip("rclpy")

from difiisr_models import Runtime
from difiisr_ros import cli
from difiisr_ros.commands.bench_calls import Bench
from difiisr_ros.commands.bench_node import node_under_test
from difiisr_ros.node_process import ProcessFailed, dds_environment


@pytest.fixture(scope="module", autouse=True)
def own_domain():
    """The environment of the process is restored afterwards: a benchmark sets it for itself."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in dds_environment().items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """One for all tests that ask for it; the last of them ends it."""
    plan = Bench(runtime=Runtime(device="cpu", threads=1))
    logs = tmp_path_factory.mktemp("logs")
    with node_under_test(plan, "bicubic", (48, 64), logs) as node:
        yield node


def test_the_node_is_measured_at_a_fixed_rate(tmp_path):
    small = ["--size", "32x24", "--rates", "8", "--runs", "1", "--seconds", "0.5"]
    ours = ["--models", "difiisr-rt-x4", "--device", "cpu", "--backend", "torch"]
    assert cli.main(["bench", "--only", "node", *small, *ours, "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    fixed = rows[0]
    assert fixed["model"] == "bicubic"
    assert fixed["upscaling_p50"] is None  # half a second says nothing of the ten looked back on
    assert fixed["rate"] == pytest.approx(8.0, rel=0.2)
    assert 0 < fixed["received"] <= fixed["sent"] == 4
    assert 0 < fixed["p50"] <= fixed["p99"]
    assert fixed["memory_mib"] > 50
    ours = [row for row in rows if row["model"] == "difiisr-rt-x4" and "no_result" not in row]
    assert {row["backend"] for row in ours} == {"torch"}  # asked for: auto takes another
    assert {len(row["weights_sha256"]) for row in ours} == {64}


def test_answers_count_for_the_run_that_asked(node):
    pid = node.process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        silent = node.run(9.0, 1.0)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (silent["sent"], silent["received"], silent["latencies"]) == (9, 0, [])
    assert silent["cpu"] < 0.1
    answered = node.run(4.0, 2.0)  # while late answers to the run before arrive
    assert answered["received"] >= answered["sent"] - 1
    assert max(answered["latencies"]) < 2.0


def test_a_node_that_dies_ends_its_run(node):
    killing = threading.Timer(0.5, os.kill, (node.process.pid, signal.SIGKILL))
    killing.start()
    with pytest.raises(ProcessFailed, match="exit code -9"):
        node.run(9.0, 60.0)
