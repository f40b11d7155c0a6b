"""What ``difiisr bench`` makes of times: summaries and tables; and ``difiisr soak``: slopes."""

import json
import re
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from difiisr_models import Runtime
from difiisr_models.files import sha256_file
from difiisr_ros import cli
from difiisr_ros.commands.bench import markdown
from difiisr_ros.commands.bench_calls import Bench, network_calls
from difiisr_ros.commands.bench_node import stream_row
from difiisr_ros.node_process import ProcessFailed
from difiisr_training.evaluation.peers import Safmn

OWN = "difiisr-rt-x4"


def bench(tmp_path, *options):
    """Run the verb for a moment; exit code and rows."""
    small = ["--size", "32x24", "--rates", "9", "--runs", "1", "--seconds", "0.2"]
    arguments = ["bench", *small, "--device", "cpu", "--out", str(tmp_path), *options]
    return cli.main(arguments), json.loads((tmp_path / "bench.json").read_text())["rows"]


def call(model, p50, runtime="torch"):
    times = {"p50": p50, "p90": p50, "p99": 2 * p50, "jitter": 0.0, "fps": 1 / p50}
    where = {"stage": "network", "size": "160x120", "pixels": 1}
    return {**where, "model": model, "runtime": runtime, **times}


def run_of(rate, received=100, sent=100, latency=0.01, cpu=0.5):
    """One at a rate that was reached, with ``received`` results after ``latency``."""
    intervals = [1 / rate] * max(0, received - 1)
    return {
        "rate": rate, "sent": sent, "received": received, "latencies": [latency] * received,
        "intervals": intervals, "cpu": cpu, "memory_mib": 300.0, "upscaling": latency / 2,
    }  # fmt: skip


def table(rows):
    """The Markdown without what makes its columns as wide as each other."""
    return re.sub(" +", " ", markdown(rows, OWN))


def test_every_column_is_of_the_runs_that_are_kept():
    odd = [run_of(9.0, 50, latency=latency, cpu=9.0) for latency in (0.001, 0.5)]
    row = stream_row(9.0, [run_of(9.0, latency=0.02), *odd, *[run_of(9.0, latency=0.02)] * 2])
    assert (row["sent"], row["received"], row["loss"]) == (300, 300, 0.0)
    assert (row["p99"], row["cpu"]) == (0.020, 0.5)
    assert row["fps"] == pytest.approx(9.0)
    # A run without any result is the worst.
    silent = stream_row(9.0, [run_of(9.0, received) for received in (100, 0, 0, 100, 100)])
    assert silent["loss"] == pytest.approx(1 / 3)
    alone = stream_row(9.0, [run_of(9.0, 1, 1)])
    assert (alone["received"], alone["fps"]) == (1, None)
    none = stream_row(9.0, [run_of(9.0, 0)] * 2)
    assert none["no_result"] == "no result of 200 frames at 9 Hz"


def test_table_gives_ratios_to_ours_in_the_same_runtime_and_what_failed():
    rows = [call(OWN, 0.010), call("safmn", 0.015), call("rlfn", 0.010, runtime="onnxruntime")]
    rows.append({"stage": "node", "size": "1x1", "model": OWN, "no_result": "it | ended\nits log"})
    assert "| it / ended |" in table(rows)
    ours, safmn, rlfn = table(rows).splitlines()[2:5]
    assert "| ours |" not in ours
    assert safmn.endswith("| 1.5 |")
    assert rlfn.endswith("| |")


def test_backend_and_precision_are_those_of_our_models(tmp_path, json_of):
    models = ["--only", "network", "upscaler", "--models", f"{OWN},bicubic"]
    small = ["--size", "32x24", "--rates", "9", "--runs", "1", "--seconds", "0.2"]
    words = ["bench", *small, "--device", "cpu", "--out", tmp_path, *models, "--precision", "bf16"]
    found = json_of(*words)
    rows = found["rows"]
    assert json.loads((tmp_path / "bench.json").read_text()) == found
    seen = [(row["stage"], row["model"], row["runtime"], row["precision"]) for row in rows]
    assert seen == [
        ("network", OWN, "torch", "bf16"),
        ("upscaler", OWN, "torch", "bf16"),
        ("upscaler", "bicubic", "torch", "fp32"),
    ]
    network = rows[0]
    assert network["flops"] == pytest.approx(network["flop"] / network["p50"])
    assert "flops" in (tmp_path / "bench.md").read_text()
    machine = json.loads((tmp_path / "bench.json").read_text())["machine"]
    assert {"processor", "threads", "versions", "device", "cores"} <= machine.keys()


def test_peers_are_named_by_their_hash_and_run_in_both_runtimes(tmp_path):
    path = tmp_path / "safmn_ntire23_x4.pth"
    torch.save(Safmn().state_dict(), path)
    plan = Bench("safmn", tmp_path, runtime=Runtime(device="cpu", precision="bf16"))
    (ours, ours_call), (other, other_call) = network_calls(plan, "safmn", (16, 16))
    assert [ours["runtime"], other["runtime"]] == ["torch", "onnxruntime"]
    for row in (ours, other):
        assert row["weights_sha256"] == sha256_file(path)
        assert row["precision"] == "fp32"
        assert row["flop"] > 0
    torch.testing.assert_close(other_call(), ours_call(), atol=1e-3, rtol=1e-3)


@pytest.fixture
def failing_node(monkeypatch):
    """The node's stage with a stand-in for the node: what it raises in its second run, by model."""
    pytest.importorskip("rclpy")
    from difiisr_ros.commands import bench_node

    raised = {}

    @contextmanager
    def node_under_test(_bench, model, *_others):
        made = []

        def run(rate, _seconds):
            made.append(rate)
            if len(made) == 2 and model in raised:
                raise raised[model]
            return run_of(min(rate, 20.0))

        identity = {"backend": "torch", "device": "cpu", "weights sha256": "abc"}
        yield SimpleNamespace(run=run, peer=SimpleNamespace(identity=identity))

    monkeypatch.setattr(bench_node, "node_under_test", node_under_test)
    monkeypatch.setattr(bench_node.node_process, "dds_environment", dict)
    return raised


def test_a_stream_that_fails_or_is_interrupted_takes_no_row_with_it(failing_node, tmp_path):
    failing_node["bicubic"] = ProcessFailed("the node process ended with exit code 1\nlog")
    code, rows = bench(tmp_path, "--only", "node", "--models", OWN, "--rates", "30")
    assert code == 0
    assert [row["model"] for row in rows] == ["bicubic", "bicubic", OWN, OWN]
    assert "exit code 1" in rows[1]["no_result"]
    assert (rows[2]["backend"], rows[2]["weights_sha256"]) == ("torch", "abc")
    failing_node[OWN] = KeyboardInterrupt()
    code, rows = bench(tmp_path, "--only", "node", "--models", OWN, "--rates", "30")
    assert code == 130
    assert [row["model"] for row in rows] == ["bicubic", "bicubic", OWN]


def test_a_leak_shows_in_the_slopes_and_a_start_or_noise_does_not():
    pytest.importorskip("rclpy", reason="needs ROS 2 (pip extra ros, or a sourced distribution)")
    from difiisr_ros.commands.soak import slopes

    minute = np.arange(1, 60, 2.0)
    steady = 500 - 80 * (minute < 10) + np.random.default_rng(1).normal(0, 0.3, len(minute))
    series = {"minute": minute, "steady": steady, "leaks": steady + 0.1 * minute}
    found = slopes(series, settled=10.0)
    assert found["steady"]["upper_95"] < 0.02
    assert 0.08 < found["leaks"]["slope"] < found["leaks"]["upper_95"] < 0.12
    assert slopes(series, settled=55.0)["leaks"] == {"slope": None, "upper_95": None}


def test_what_a_soak_does_not_know_is_refused_before_a_node_is_started(tmp_path, difiisr):
    pytest.importorskip("rclpy", reason="needs ROS 2 (pip extra ros, or a sourced distribution)")
    error = difiisr("soak", "--only", "flood,nonsense", "--out", tmp_path / "out", code=1).err
    assert "no nonsense among hostile_frames, " in error
    assert not (tmp_path / "out").exists()
