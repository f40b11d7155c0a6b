"""Publishes a 640x512 mono16 stream: python camera_process.py FRAMES HERTZ."""

import sys
import time

import numpy as np
import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from difiisr_ros.image_codec import encode


def main():
    frames, hertz = int(sys.argv[1]), float(sys.argv[2])
    rclpy.init()
    node = rclpy.create_node("camera")
    qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    publisher = node.create_publisher(Image, "/thermal/image_raw", qos)
    while not publisher.get_subscription_count():
        time.sleep(0.01)
    time.sleep(0.5)  # the subscriber has to find the publisher too
    message = Image()
    for name, value in encode(np.full((512, 640), 7300, np.uint16), "mono16")._asdict().items():
        setattr(message, name, value)
    for frame in range(frames):
        message.header.stamp.sec = frame
        publisher.publish(message)
        time.sleep(1 / hertz)
    time.sleep(0.5)
    rclpy.shutdown()


if __name__ == "__main__":
    main()
