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

from difiisr_ros.node_process import dds_environment

PROFILE = Path(__file__).resolve().parents[2] / "config" / "fastdds.xml"
FRAMES = 60

# Publishes a 640x512 mono16 stream; the first frames go while the two ends find each other.
CAMERA = f"""
import time
import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

rclpy.init()
node = rclpy.create_node("camera")
qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
publisher = node.create_publisher(Image, "/thermal/image_raw", qos)
while not publisher.get_subscription_count():
    time.sleep(0.01)
message = Image(height=512, width=640, encoding="mono16", step=1280)
message._data = bytes(512 * 1280)
for frame in range({FRAMES}):
    message.header.stamp.sec = frame
    publisher.publish(message)
    time.sleep(1 / 30)
time.sleep(0.5)
rclpy.shutdown()
"""


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
        QoSProfile(depth=FRAMES, reliability=ReliabilityPolicy.BEST_EFFORT),
    )
    stop_spinning = spin_in_thread(node)
    yield stamps
    stop_spinning()
    node.destroy_node()
    rclpy.shutdown(context=context)


def test_a_640x512_camera_with_the_profile_loses_nothing(received):
    if os.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp") != "rmw_fastrtps_cpp":
        pytest.skip("another middleware than Fast DDS is selected")
    environment = {
        name: str(PROFILE) if name.endswith("_DEFAULT_PROFILES_FILE") else value
        for name, value in dds_environment().items()
    }
    for _ in range(3):  # a machine that is busy elsewhere loses a frame now and then
        received.clear()
        command = [sys.executable, "-c", CAMERA]
        subprocess.run(command, env=environment, check=True, timeout=PATIENCE)
        if len(received) > FRAMES / 2 and received == list(range(received[0], FRAMES)):
            return
    pytest.fail(f"received {received}")
