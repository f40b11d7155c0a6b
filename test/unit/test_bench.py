"""What ``difiisr bench`` makes of times: summaries, tables and verdicts."""

import json
import sys
import time
from types import ModuleType

import pytest
import torch
from torch import nn

from difiisr_models.weights import sha256_file
from difiisr_ros.bench import cli, gpu
from difiisr_ros.bench.cli import main
from difiisr_ros.bench.contenders import PUBLISHED, Running, network_contenders
from difiisr_ros.bench.roofline import Ceilings, Cost, measure_ceilings, network_cost
from difiisr_ros.bench.rows import size_columns, stream_rows
from difiisr_ros.bench.samples import kept_runs, summarise, time_in_turns
from difiisr_ros.bench.stream_runs import Load, Peak, StreamRun, find_peak
from difiisr_ros.bench.tables import markdown, save_plot
from difiisr_ros.bench.targets import check_targets
from difiisr_ros.demo.processes import ProcessFailed
from difiisr_training.evaluation.peer_networks import Safmn

OWN = "difiisr-rt-x4"
CPU = torch.device("cpu")
UNKNOWN = "not measured"


def call(stage, model, p50, runtime="torch", size="160x120"):
    times = {"p50": p50, "p90": p50, "p99": 2 * p50, "jitter": 0.0, "fps": 1 / p50}
    return {"stage": stage, "size": size, "pixels": 1, "model": model, "runtime": runtime, **times}


def stream(model, p50, p99, rate=9.0, loss=0.0, size="160x120", search=False):
    times = {"p50": p50, "p90": p50, "p99": p99, "jitter": 0.0, "fps": rate}
    load = {"cpu": 0.5, "memory_mib": 300.0, "upscaling_p50": 0.030}
    return {
        "stage": "node", "size": size, "pixels": 1, "model": model, "rate": rate, "loss": loss,
        "search": search, **times, **load,
    }  # fmt: skip


def run_of(rate, received=100, sent=100, latency=0.01, cpu=0.5):
    """One at a rate that was reached, with ``received`` results after ``latency``."""
    return StreamRun(
        rate, sent, received, [latency] * received, [1 / rate] * max(0, received - 1),
        Load(cpu, 300.0, latency / 2),
    )  # fmt: skip


def node_of(capacity, sender=1e9):
    """A node that answers ``capacity`` frames a second, and a camera no faster than ``sender``."""
    asked = []

    def run(rate, _seconds=1.0):
        asked.append(rate)
        reached = min(rate, sender)
        return run_of(reached, round(100 * min(1, capacity / reached)))

    return run, asked


def verdicts(rows):
    return [target.verdict for target in check_targets(rows, OWN)]


def test_best_and_worst_run_are_dropped():
    runs = [[1.0], [9.0], [2.0], [3.0], [0.1]]
    assert sorted(kept_runs(runs)) == [[1.0], [2.0], [3.0]]
    assert kept_runs([[1.0], [2.0]]) == [[1.0], [2.0]]


def test_summary_of_known_samples():
    summary = summarise([[float(i) for i in range(1, 101)]])
    assert (summary.p50, summary.p90, summary.p99) == (50.0, 90.0, 99.0)
    assert summary.mean == 50.5
    assert summary.rate == pytest.approx(1 / 50.5)


def test_no_sample_is_an_error():
    with pytest.raises(ValueError, match="sample"):
        summarise([[], []])


def test_functions_take_turns_and_the_slow_one_is_seen():
    order = []

    def slow():
        order.append("slow")
        time.sleep(0.005)

    found = time_in_turns({"fast": lambda: order.append("fast"), "slow": slow}, 3, 0.001)
    first_turn = order.index("slow", 4)
    assert "fast" in order[first_turn:]  # they alternate: fast again after slow
    assert order[-1] == "slow"
    assert found["slow"].p50 > 10 * found["fast"].p50


@pytest.mark.parametrize("first", [9.0, 60.0, 3000.0])
def test_the_peak_is_found_however_far_it_is_from_the_first_rate(first):
    run, _ = node_of(capacity=700)
    peak = find_peak(run, first, 0.5)
    assert peak.limit == "node"
    assert 0.94 * 700 <= peak.rate <= 700 / 0.945


def test_a_camera_that_is_slower_than_the_node_is_named():
    run, _ = node_of(capacity=1e6, sender=500)
    assert find_peak(run, 60.0, 0.5) == Peak(500, "sender")


def test_no_peak_where_every_rate_loses_frames():
    run, asked = node_of(capacity=0)
    assert find_peak(run, 60.0, 0.5) is None
    assert min(asked) >= 0.5


def test_the_search_begins_at_the_highest_rate_held_and_ends_with_all_runs():
    run, asked = node_of(capacity=45)
    rows = list(stream_rows(run, [9.0, 30.0, 60.0], 3, 1.0))
    assert [row["search"] for row in rows] == [False, False, False, True]
    assert asked[9:11] == [30.0, 60.0]  # after three runs at each rate: doubled from 30
    assert len(set(asked[-3:])) == 1
    assert rows[-1]["rate"] == asked[-1]
    assert rows[-1]["limit"] == "node"


def test_a_rate_that_the_search_held_by_luck_is_lowered_until_all_runs_hold_it():
    (lucky, asked), (usual, _) = node_of(capacity=45), node_of(capacity=30)

    def run(rate, *seconds):
        return (usual if rate in asked else lucky)(rate, *seconds)

    rows = list(stream_rows(run, [9.0], 3, 1.0))
    assert rows[-1]["loss"] <= 0.05
    assert rows[-1]["rate"] < 36
    assert rows[-1]["limit"] == "node"


def test_every_column_is_of_the_runs_that_are_kept():
    latencies = iter([0.020, 0.001, 0.500, 0.020, 0.020])

    def run(rate, _seconds):
        latency = next(latencies, 0.020)
        odd = latency != 0.020
        return run_of(rate, 50 if odd else 100, latency=latency, cpu=9.0 if odd else 0.5)

    row = next(stream_rows(run, [9.0], 5, 1.0))
    assert (row["sent"], row["received"], row["loss"]) == (300, 300, 0.0)
    assert (row["p99"], row["cpu"]) == (0.020, 0.5)
    assert row["fps"] == pytest.approx(9.0)


def test_one_result_alone_has_no_rate():
    row = next(stream_rows(lambda rate, _: run_of(rate, 1, 1), [9.0], 1, 1.0))
    assert (row["received"], row["fps"]) == (1, None)
    row |= size_columns("node", "ours", (120, 160)) | {"backend": "torch", "device": "cpu"}
    assert "| ours | torch | 9.0 |  | 0.0 % |" in markdown([row], [], "ours")


def test_a_run_without_results_is_the_worst_and_not_forgotten():
    received = iter([100, 0, 0, 100, 100])
    row = next(stream_rows(lambda rate, _: run_of(rate, next(received)), [9.0], 5, 1.0))
    assert row["loss"] == pytest.approx(1 / 3)


def test_a_rate_without_any_result_is_a_row_that_says_so():
    run, _ = node_of(capacity=0)
    fixed, peak = stream_rows(run, [9.0], 2, 1.0)
    assert fixed["no_result"] == "no result of 200 frames at 9 Hz"
    assert "5 % lost at every rate" in peak["no_result"]


def test_rows_without_a_result_are_shown_and_not_judged(tmp_path):
    rows = [call("network", OWN, 0.010), stream(OWN, 0.1, 0.14)]
    failed = {"stage": "node", "size": "160x120", "model": OWN, "rate": None, "search": False}
    rows.append(failed | {"no_result": "the node ended | badly\nits log"})
    rows.append({**rows[0], "model": "safmn", "no_result": "the engine takes another size"})
    text = markdown(rows, check_targets(rows, OWN), OWN)
    assert "no result: the node ended / badly" in text
    assert "no result: the engine takes another size" in text
    assert "its log" not in text
    columns = {line.count("|") for line in text.split("\n\n")[1].splitlines()}
    assert len(columns) == 1
    assert verdicts(rows) == verdicts(rows[:2])
    save_plot(rows, tmp_path / "plot.png")


def test_targets_met():
    rows = [
        call("network", OWN, 0.010),
        call("network", "safmn", 0.015),
        call("upscaler", PUBLISHED, 5.0, size="64x64"),
        call("upscaler", OWN, 0.01, size="64x64"),
        stream("bicubic", 0.038, 0.04, size="640x512"),
        stream(OWN, 0.1, 0.14),
    ]
    assert verdicts(rows) == ["met", "met", UNKNOWN, "met", "met", *[UNKNOWN] * 3]


def test_targets_missed():
    rows = [
        call("network", OWN, 0.020),
        call("network", "safmn", 0.015),
        call("upscaler", PUBLISHED, 0.5, size="64x64"),
        call("upscaler", OWN, 0.01, size="64x64"),
        stream("bicubic", 0.050, 0.06, size="640x512"),
        stream(OWN, 0.1, 0.16),
        stream(OWN, 0.1, 9.9, rate=60.0, loss=0.5),  # not a rate that it keeps up with
    ]
    assert verdicts(rows) == ["missed", "missed", UNKNOWN, "missed", "missed", *[UNKNOWN] * 3]


def test_nothing_run_is_nothing_claimed():
    assert set(verdicts([])) == {UNKNOWN}


@pytest.mark.parametrize(
    ("fps", "roofline", "expected"),
    [(50, 0.3, ["missed"] * 3), (100, 0.4, ["met", "missed", "met"]), (240, 0.9, ["met"] * 3)],
)
def test_targets_of_a_gpu(fps, roofline, expected):
    on_gpu = {"device": "cuda", "fps": fps, "roofline": roofline}
    rows = [
        call(stage, OWN, 0.01, size="640x512") | on_gpu | more
        for stage, more in (("upscaler", {}), ("network", {}), ("network", {"roofline": 0.1}))
    ]
    assert verdicts(rows)[-3:] == expected


def test_table_gives_ratios_to_ours_in_the_same_runtime():
    rows = [call("network", OWN, 0.010), call("network", "safmn", 0.015)]
    rows.append(call("network", "rlfn", 0.010, runtime="onnxruntime"))
    text = markdown(rows, check_targets(rows, OWN), OWN)
    safmn = next(line for line in text.splitlines() if "| safmn |" in line)
    assert safmn.endswith("| 1.50 |")
    rlfn = next(line for line in text.splitlines() if "| rlfn |" in line)
    assert rlfn.endswith("|  |")


def test_the_command_writes_what_it_measured(tmp_path, capsys):
    arguments = ["--only", "upscaler", "--models", "bicubic", "--quick", "--out", str(tmp_path)]
    assert main(arguments) == 0
    written = json.loads((tmp_path / "bench.json").read_text())
    (row,) = written["rows"]
    assert (row["model"], row["size"]) == ("bicubic", "160x120")
    assert row["p50"] > 0
    assert written["machine"]["cores"] >= 1
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert "160x120" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--sizes", "640"), ("--sizes", "0x0"), ("--sizes", "1600000x1600000"),
        ("--rates", "0"), ("--rates", "-4"), ("--rates", "inf"), ("--seconds", "nan"),
        ("--seconds", "0"), ("--runs", "0"), ("--threads", "100000"), ("--threads", "-3"),
    ],
)  # fmt: skip
def test_what_cannot_be_timed_is_bad_usage(capsys, option, value):
    with pytest.raises(SystemExit) as stop:
        main([option, value])
    assert stop.value.code == 2
    assert f"argument {option}: " in capsys.readouterr().err


def test_a_peer_without_its_file_says_what_is_needed(tmp_path):
    with pytest.raises(ValueError, match="--weights"):
        main(["--only", "network", "--models", "safmn", "--quick", "--out", str(tmp_path)])


def test_cost_of_a_convolution():
    network, image = nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.zeros(1, 3, 16, 16)
    cost = network_cost(network, "fp32", (image,))
    assert cost.flop == 2 * 3 * 8 * 9 * 256
    assert cost.bytes == 4 * (3 * 8 * 9 + (3 + 8) * 256)
    half = network_cost(network, "bf16", (image,))
    assert half == Cost(cost.flop, cost.bytes - 2 * 3 * 8 * 9)


def test_the_lower_ceiling_counts():
    ceilings = Ceilings(flops=100.0, bandwidth=10.0)
    assert ceilings.share(Cost(flop=50, bytes=1), 1.0) == 0.5
    assert ceilings.share(Cost(flop=50, bytes=8), 1.0) == 0.8


def test_ceilings_of_this_machine():
    started = time.monotonic()
    ceilings = measure_ceilings(CPU, "fp32")
    assert time.monotonic() - started < 10  # under 2 on an idle machine
    assert ceilings.flops > 1e8
    assert ceilings.bandwidth > 1e7


def test_load_of_a_gpu_is_what_nvidia_smi_says(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\n[ "$2" = GPU-7 ] && echo 42 || echo "[N/A]"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(gpu, "_PERIOD", 0.01)
    for name, expected in (("GPU-7", 0.42), ("GPU-8", None)):
        monkeypatch.setattr(gpu, "_gpu_name", lambda _, name=name: name)
        with gpu.GpuLoad(torch.device("cuda")) as load:
            time.sleep(0.5)
        assert load.share == pytest.approx(expected)


def test_a_cpu_has_no_gpu_columns():
    with gpu.GpuLoad(CPU) as load:
        pass
    assert (load.share, gpu.free_mib(CPU)) == (None, None)


def test_backend_and_precision_are_those_of_our_models(tmp_path):
    arguments = ["--only", "network", "upscaler", "--models", f"{OWN},bicubic", "--quick"]
    main([*arguments, "--backend", "torch", "--precision", "bf16", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    seen = [(row["stage"], row["model"], row["runtime"], row["precision"]) for row in rows]
    assert seen == [
        ("network", OWN, "torch", "bf16"),
        ("upscaler", OWN, "torch", "bf16"),
        ("upscaler", "bicubic", "torch", "fp32"),
    ]
    network = rows[0]
    assert network["flops"] == pytest.approx(network["flop"] / network["p50"])
    assert network["roofline"] > 0
    assert "GFLOP" in (tmp_path / "bench.md").read_text()


def test_half_precision_on_a_cpu_is_timed_in_torch(tmp_path):
    arguments = ["--only", "upscaler", "--models", OWN, "--quick", "--device", "cpu"]
    main([*arguments, "--precision", "bf16", "--out", str(tmp_path)])
    (row,) = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert (row["runtime"], row["precision"]) == ("torch", "bf16")


def test_what_takes_over_from_an_engine_is_named(tmp_path):
    arguments = ["--only", "upscaler", "--quick", "--backend", "tensorrt", "--engine", "none.plan"]
    main([*arguments, "--models", OWN, "--device", "cpu", "--out", str(tmp_path)])
    (row,) = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert row["runtime"] == "onnxruntime"


def test_peers_are_named_by_their_hash_and_run_channels_last(tmp_path):
    path = tmp_path / "safmn_ntire23_x4.pth"
    torch.save(Safmn().state_dict(), path)
    found = network_contenders(["safmn"], (16, 16), tmp_path, CPU, Running(precision="bf16"))
    assert [peer.runtime for peer in found] == ["torch", "onnxruntime"]
    assert {peer.weights_sha256 for peer in found} == {sha256_file(path)}
    assert {peer.precision for peer in found} == {"fp32"}
    assert all(peer.cost.flop > 0 for peer in found)
    result = found[0].call()
    assert result.shape == (1, 3, 64, 64)
    assert result.is_contiguous(memory_format=torch.channels_last)
    (other,) = found[1].call()
    torch.testing.assert_close(torch.from_numpy(other), result.contiguous(), atol=1e-3, rtol=1e-3)


@pytest.fixture
def failing_node(monkeypatch):
    """The node's stage with a stand-in for the node: what it raises in its second run, by model."""
    raised = {}

    class Node:
        def __init__(self, _frames, model, *_others):
            self.error, self.made = raised.get(model), 0
            self.identity = {"backend": "torch", "device": "cpu", "weights sha256": "abc"}

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def run(self, rate, _seconds):
            self.made += 1
            if self.made == 2 and self.error:
                raise self.error
            return run_of(min(rate, 20.0))

    module = ModuleType("difiisr_ros.bench.node_stream")
    module.NodeUnderTest = Node
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(cli, "missing_ros", lambda: "")
    monkeypatch.setattr(cli, "dds_environment", lambda _: {})
    return raised


def test_a_stream_that_fails_does_not_take_the_others_with_it(failing_node, tmp_path):
    failing_node["bicubic"] = ProcessFailed("the node process ended with exit code 1\nlog")
    assert main(["--only", "node", "--models", OWN, "--quick", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["bicubic", "bicubic", OWN, OWN]
    assert "exit code 1" in rows[1]["no_result"]
    assert (rows[2]["backend"], rows[2]["weights_sha256"]) == ("torch", "abc")
    assert rows[3]["limit"] == "sender"
    assert "the sender's limit" in (tmp_path / "bench.md").read_text()


def test_an_interrupted_benchmark_keeps_its_rows(failing_node, tmp_path):
    failing_node[OWN] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        main(["--only", "node", "--models", OWN, "--quick", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["bicubic", "bicubic", OWN]
