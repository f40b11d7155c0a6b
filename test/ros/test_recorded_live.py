"""What a live node did over DDS, judged from its recording."""

import subprocess
import sys

import pytest

from difiisr_ros.node_process import missing_ros

pytest.importorskip("jinja2", reason="the page needs the extra eval")
pytest.importorskip("matplotlib", reason="the page needs the extra eval")

from difiisr_models import Runtime
from difiisr_ros.commands.recorded import judge_recording


@pytest.mark.skipif(bool(missing_ros()), reason=f"no ROS: {missing_ros()}")
def test_a_live_node_is_bit_exact_with_the_offline_run(tmp_path):
    """Whatever it dropped: a dropped frame leaves no trace in those after it."""
    arguments = ("--model", "bicubic", "--device", "cpu", "--frames", "15", "--out", str(tmp_path))
    demo = [sys.executable, "-m", "difiisr_ros.cli", "demo", *arguments]
    ended = subprocess.run(demo, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    values, _ = judge_recording(
        tmp_path / "sr",
        model="bicubic",
        runtime=Runtime(device="cpu"),
        camera_bag=tmp_path / "scene",
    )
    offline, info, results = values["offline"], values["camera_info"], values["sr"]["messages"]
    assert (values["fault"], values["mismatches"]) == ("", {})
    assert offline["frames"] >= 8
    assert offline["exact"] == offline["frames"] == results
    assert values["drops"]["total"] == 15 - results
    assert info["right"] == info["messages"] > 0
    assert values["node"]["model"] == "bicubic"
