"""What a soak makes of what it saw."""

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (pip extra ros, or a sourced distribution)")

from difiisr_ros.cli import main
from difiisr_ros.commands.soak import slopes


def test_a_leak_shows_in_the_slopes_and_a_start_or_noise_does_not():
    minute = np.arange(1, 60, 2.0)
    steady = 500 - 80 * (minute < 10) + np.random.default_rng(1).normal(0, 0.3, len(minute))
    series = {"minute": minute, "steady": steady, "leaks": steady + 0.1 * minute}
    found = slopes(series, settled=10.0)
    assert found["steady"]["upper_95"] < 0.02
    assert 0.08 < found["leaks"]["slope"] < found["leaks"]["upper_95"] < 0.12
    assert slopes(series, settled=55.0)["leaks"] == {"slope": None, "upper_95": None}


def test_what_shall_not_happen_is_refused_before_a_node_is_started(tmp_path, capsys):
    arguments = ["soak", "--only", "flood,nonsense", "--out", str(tmp_path / "out")]
    assert main(arguments) == 1
    assert "no nonsense among hostile_frames, " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
