"""The launch files, run by the real `ros2 launch`; test/unit/test_launch_files.py needs none."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (pip extra ros, or a sourced distribution)")
pytest.importorskip("launch_ros", reason="ros2 launch comes with a ROS distribution only")

from ros_peer import DOMAIN, PATIENCE, Peer, wait_until

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def environment(tmp_path):
    """Environment in which `ros2` finds the package of this checkout, as colcon installs it."""
    prefix = tmp_path / "install"
    share, program = prefix / "share" / "difiisr_ros", prefix / "lib" / "difiisr_ros" / "sr_node"
    marker = prefix / "share" / "ament_index" / "resource_index" / "packages" / "difiisr_ros"
    shutil.copytree(CHECKOUT / "launch", share / "launch")  # not found through a link
    for link, target in (
        (share / "config", CHECKOUT / "config"),
        (program, CHECKOUT / "scripts" / "sr_node"),
        (marker, CHECKOUT / "resource" / "difiisr_ros"),
    ):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    values = {
        **os.environ,
        "AMENT_PREFIX_PATH": f"{prefix}{os.pathsep}{os.environ['AMENT_PREFIX_PATH']}",
        # sr_node is to be run by this Python.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "ROS_DOMAIN_ID": str(DOMAIN),
        "ROS_LOG_DIR": str(tmp_path / "log"),
    }
    # The launch file is to set the profile.
    for variable in ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"):
        values.pop(variable, None)
    return values


@pytest.fixture
def launch(environment, tmp_path):
    """Return a function that starts a launch file; what it started ends with the test."""
    started = []

    def start(*arguments):
        log = tmp_path / "launch.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                ["ros2", "launch", "difiisr_ros", *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(process)
        return process, log

    yield start
    for process in started:
        if has_left_some(process):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def has_left_some(process):
    """Whether a process of its session is left."""
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for_all(process):
    """The exit code of launch; all that it started ends with it, if a moment later."""
    code = process.wait(PATIENCE)
    wait_until(lambda: not has_left_some(process), lambda: "a process is left")
    return code


def test_the_launched_node_answers_and_ends_with_launch(launch):
    process, log = launch("sr.launch.py", "model:=bicubic", "device:=cpu")
    wait_until(lambda: "active: " in log.read_text() or process.poll() is not None, log.read_text)
    assert "active: " in log.read_text(), log.read_text()
    peer = Peer()
    try:
        peer.listen()
        _, answer = peer.ask(np.full((32, 40), 3000, np.uint16))
    finally:
        peer.close()
    assert (answer.width, answer.height, answer.encoding) == (160, 128, "mono16")
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C
    assert wait_for_all(process) == 0, log.read_text()
    text = log.read_text()
    assert "process has finished cleanly" in text
    for trouble in ("Traceback", "[ERROR]", "deprecated", "XMLPARSER"):
        assert trouble not in text, text
