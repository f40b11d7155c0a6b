"""The shipped Fast DDS profile carries what the stock one loses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (pip extra ros, or a sourced distribution)")

import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_peer import DOMAIN, PATIENCE, spin_in_thread
from sensor_msgs.msg import Image

HERE = Path(__file__).resolve().parent
PROFILE = HERE.parents[1] / "config" / "fastdds.xml"
FRAMES = 60


@pytest.fixture
def received():
    """The stamps that a best-effort subscriber of the camera receives."""
    stamps = []
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=DOMAIN)
    node = rclpy.create_node("listener", context=context)
    node.create_subscription(
        Image,
        "/thermal/image_raw",
        lambda message: stamps.append(message.header.stamp.sec),
        QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT),
    )
    stop_spinning = spin_in_thread(node)
    yield stamps
    stop_spinning()
    node.destroy_node()
    rclpy.shutdown(context=context)


def test_a_640x512_camera_with_the_profile_loses_nothing(received):
    if os.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp") != "rmw_fastrtps_cpp":
        pytest.skip("another middleware than Fast DDS is selected")
    subprocess.run(
        [sys.executable, HERE / "camera_process.py", str(FRAMES), "30"],
        env={
            **os.environ,
            "ROS_DOMAIN_ID": str(DOMAIN),
            "FASTDDS_DEFAULT_PROFILES_FILE": str(PROFILE),
            "FASTRTPS_DEFAULT_PROFILES_FILE": str(PROFILE),
        },
        check=True,
        timeout=PATIENCE,
    )
    assert received == list(range(FRAMES))
