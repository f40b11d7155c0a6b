"""What a live node did over DDS, judged from its recording."""

import subprocess
import sys

import pytest

from difiisr_ros.demo.live import missing_ros

pytest.importorskip("jinja2", reason="the page needs the extra eval")
pytest.importorskip("matplotlib", reason="the page needs the extra eval")

from difiisr_training.evaluation.recorded.cli import evaluate_recorded


@pytest.mark.skipif(bool(missing_ros()), reason=f"no ROS: {missing_ros()}")
def test_a_live_node_is_bit_exact_with_the_offline_run(tmp_path):
    """Whatever it dropped: a dropped frame leaves no trace in those after it."""
    arguments = ("--model", "bicubic", "--device", "cpu", "--frames", "15", "--out", str(tmp_path))
    demo = [sys.executable, "-m", "difiisr_ros.demo", *arguments]
    ended = subprocess.run(demo, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    report = evaluate_recorded(
        tmp_path / "sr",
        tmp_path / "report",
        model="bicubic",
        device="cpu",
        camera_bag=tmp_path / "scene",
    )
    assert report.fault == ""
    assert report.offline.frames >= 8
    assert report.offline.exact == report.offline.frames == report.sr.messages
    assert report.drops.total == 15 - report.sr.messages
    assert report.mismatches == {}
    assert report.camera_info.right == report.camera_info.messages > 0
    assert report.node["model"] == "bicubic"
