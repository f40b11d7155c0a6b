"""Start and end of the sr_node process; its end by SIGINT is tested in test_sr_node.py."""

import signal

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (pip extra ros, or a sourced distribution)")

from ros_peer import NodeProcess

from difiisr_ros.sr_node import main


def test_a_terminated_node_ends_with_0(tmp_path):
    node = NodeProcess(tmp_path / "log", "-p", "model:=bicubic", "-p", "autostart:=true")
    node.wait_for_log("active:")
    assert node.stop(signal.SIGTERM) == 0
    assert "Traceback" not in node.log


@pytest.mark.parametrize(
    ("argument", "explanation"),
    [
        ("fidelity:=1", "'fidelity' is of type double, but 1 is integer: write 1.0"),
        ("steps:=99", "steps"),
        ("device:=gpu", "must be one of auto, cpu, cuda, cuda:N"),
    ],
)
def test_a_bad_start_parameter_is_explained(argument, explanation, capfd):
    assert main(["--ros-args", "-p", argument]) == 1
    assert explanation in capfd.readouterr().err
