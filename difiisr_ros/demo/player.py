"""Plays the thermal topic of a rosbag2 through DDS at its recorded rate: the camera of the demo.

Publishes the recorded bytes as they are. Waits for a subscriber before the first frame.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image

from difiisr_ros.bag_reader import BagReader, choose_info_topic, stamp_of
from difiisr_ros.demo.message_log import MessageLog
from difiisr_ros.freed_memory import keep_freed_memory

PATIENCE = 120.0  # seconds to wait for the node's subscription


def wait_for_subscriber(node: Node, publisher: object) -> bool:
    """Whether somebody subscribes before the patience is over."""
    until = time.monotonic() + PATIENCE
    while not publisher.get_subscription_count() and time.monotonic() < until:
        rclpy.spin_once(node, timeout_sec=0.05)
    return publisher.get_subscription_count() > 0


def play(node: Node, bag: BagReader, topic: str, frames: int | None, log: MessageLog) -> bool:
    """Publish up to ``frames`` frames and their camera_info; False if nobody came to listen."""
    info_topic = choose_info_topic(bag.connections, topic, None)
    qos = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
    publishers = {topic: node.create_publisher(Image, topic, qos)}
    if info_topic is not None:
        publishers[info_topic] = node.create_publisher(CameraInfo, info_topic, qos)
    if not wait_for_subscriber(node, publishers[topic]):
        return False
    played, begin = 0, None
    for connection, at, raw in bag.messages(set(publishers)):
        is_frame = connection.topic == topic
        if is_frame and played == frames:
            break
        begin = begin if begin is not None else time.monotonic() - at / 1e9
        time.sleep(max(begin + at / 1e9 - time.monotonic(), 0.0))
        if is_frame:
            log.add(stamp_of(raw))
            played += 1
        publishers[connection.topic].publish(bytes(raw))
    return True


def main() -> int:
    """Play; exit code 1 when no node subscribed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bag", type=Path)
    parser.add_argument("topic")
    parser.add_argument("log", type=Path, help="file to note the stamps and times in")
    parser.add_argument("--frames", type=int, help="stop after so many")
    options = parser.parse_args()
    keep_freed_memory()
    rclpy.init(args=[])
    node = Node("demo_player")
    log = MessageLog(options.log)
    try:
        with BagReader(options.bag) as bag:
            heard = play(node, bag, options.topic, options.frames, log)
        if heard:
            time.sleep(0.5)  # let the last frame leave before the publisher goes
        else:
            print(f"nobody subscribed to {options.topic} in {PATIENCE:.0f} s", file=sys.stderr)
        return 0 if heard else 1
    finally:
        log.close()
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    sys.exit(main())
