"""``difiisr bench --only node``: a real node over DDS, every frame matched by its stamp."""

import json

import pytest

pytest.importorskip("rclpy")

from difiisr_ros.bench.cli import main


def test_the_node_is_measured_at_a_fixed_rate_and_at_its_peak(tmp_path, monkeypatch):
    for name in ("ROS_DOMAIN_ID", "FASTDDS_DEFAULT_PROFILES_FILE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)  # restored afterwards: the command sets them for its process
    arguments = ["--only", "node", "--models", "bicubic", "--quick", "--out", str(tmp_path)]
    assert main(arguments) == 0
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    fixed = rows[0]
    assert (fixed["model"], fixed["search"]) == ("bicubic", False)
    assert fixed["rate"] == pytest.approx(9.0, rel=0.2)
    assert 0 < fixed["received"] <= fixed["sent"] == 9
    assert 0 < fixed["p50"] <= fixed["p99"]
    assert fixed["memory_mib"] > 50
