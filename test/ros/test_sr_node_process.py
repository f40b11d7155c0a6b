"""Start and end of the sr_node process."""

import signal

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (pip extra ros, or a sourced distribution)")

from ros_peer import NodeProcess

BICUBIC = ("-p", "model:=bicubic", "-p", "autostart:=true")


def test_interrupted_and_terminated_nodes_end_with_0(tmp_path):
    numbers = (signal.SIGINT, signal.SIGTERM)
    nodes = [NodeProcess(tmp_path / number.name, *BICUBIC) for number in numbers]
    for node in nodes:
        node.wait_for_log("active:")
    codes = [node.stop(number) for node, number in zip(nodes, numbers, strict=True)]
    assert codes == [0, 0]
    for node in nodes:
        assert "Traceback" not in node.log


def test_an_integer_for_a_double_parameter_is_explained(tmp_path):
    node = NodeProcess(tmp_path / "log", "-p", "fidelity:=1")
    assert node.exit_code() == 1
    assert "'fidelity' is of type double, but 1 is integer: write 1.0" in node.log
    assert "Traceback" not in node.log
