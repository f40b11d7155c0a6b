"""What ``difiisr bench`` makes of times: summaries, tables and verdicts."""

import json
import time

import pytest

from difiisr_ros.bench.cli import main
from difiisr_ros.bench.contenders import PUBLISHED
from difiisr_ros.bench.samples import kept_runs, summarise, time_in_turns
from difiisr_ros.bench.tables import markdown
from difiisr_ros.bench.targets import check_targets

OWN = "difiisr-rt-x4"


def call(stage, model, p50, runtime="torch", size="160x120"):
    times = {"p50": p50, "p90": p50, "p99": 2 * p50, "jitter": 0.0, "fps": 1 / p50}
    return {"stage": stage, "size": size, "pixels": 1, "model": model, "runtime": runtime, **times}


def stream(model, p50, p99, rate=9.0, loss=0.0, size="160x120", search=False):
    times = {"p50": p50, "p90": p50, "p99": p99, "jitter": 0.0, "fps": rate}
    load = {"cpu": 0.5, "memory_mib": 300.0}
    return {
        "stage": "node", "size": size, "pixels": 1, "model": model, "rate": rate, "loss": loss,
        "search": search, **times, **load,
    }  # fmt: skip


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


def test_targets_met():
    rows = [
        call("network", OWN, 0.010),
        call("network", "safmn", 0.015),
        call("upscaler", PUBLISHED, 5.0, size="64x64"),
        call("upscaler", OWN, 0.01, size="64x64"),
        call("upscaler", "bicubic", 0.030, size="640x512"),
        stream("bicubic", 0.038, 0.04, size="640x512"),
        stream(OWN, 0.1, 0.14),
    ]
    assert verdicts(rows) == ["met", "met", "not run", "met", "met", "not run"]


def test_targets_missed():
    rows = [
        call("network", OWN, 0.020),
        call("network", "safmn", 0.015),
        call("upscaler", PUBLISHED, 0.5, size="64x64"),
        call("upscaler", OWN, 0.01, size="64x64"),
        call("upscaler", "bicubic", 0.030, size="640x512"),
        stream("bicubic", 0.050, 0.06, size="640x512"),
        stream(OWN, 0.1, 0.16),
        stream(OWN, 0.1, 9.9, rate=60.0, loss=0.5),  # not a rate that it keeps up with
    ]
    assert verdicts(rows) == ["missed", "missed", "not run", "missed", "missed", "not run"]


def test_nothing_run_is_nothing_claimed():
    assert set(verdicts([])) == {"not run"}


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


def test_a_size_must_be_one(capsys):
    with pytest.raises(SystemExit):
        main(["--sizes", "640"])
    assert "640x512" in capsys.readouterr().err


def test_a_peer_without_its_file_says_what_is_needed(tmp_path):
    with pytest.raises(ValueError, match="--weights"):
        main(["--only", "network", "--models", "safmn", "--quick", "--out", str(tmp_path)])
