"""Records the results and diagnostics of the demo into an mcap bag, as the bytes that came.

Ends, and completes the bag, on SIGINT.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rosbags.rosbag2 import Writer
from sensor_msgs.msg import CameraInfo, Image

from difiisr_ros.bag_reader import CAMERA_INFO_TYPE, DIAGNOSTICS_TYPE, IMAGE_TYPE, stamp_of
from difiisr_ros.bag_writer import STORE, write_bag
from difiisr_ros.demo.message_log import MessageLog
from difiisr_ros.freed_memory import keep_freed_memory

DEPTH = 50  # results that may wait while one is written


class Recorder(Node):
    """Subscribes to ``topic``, its camera_info and /diagnostics, as reliably as each is offered."""

    def __init__(self, writer: Writer, topic: str, log: MessageLog) -> None:
        super().__init__("demo_recorder")
        self._writer = writer
        self._log = log
        for name, kind, message_type in (
            (topic, IMAGE_TYPE, Image),
            (f"{topic}/camera_info", CAMERA_INFO_TYPE, CameraInfo),
            ("/diagnostics", DIAGNOSTICS_TYPE, DiagnosticArray),
        ):
            self._subscribe(name, kind, message_type)

    def _subscribe(self, topic: str, kind: str, message_type: type) -> None:
        connection = self._writer.add_connection(topic, kind, typestore=STORE)

        def write(raw: bytes) -> None:
            self._writer.write(connection, time.time_ns(), raw)
            if kind == IMAGE_TYPE:
                self._log.add(stamp_of(raw))

        qos = QoSProfile(depth=DEPTH, reliability=self._offered(topic))
        self.create_subscription(message_type, topic, write, qos, raw=True)

    def _offered(self, topic: str) -> object:
        """Reliability of the topic's publisher; waits until there is one."""
        while not (offers := self.get_publishers_info_by_topic(topic)):
            rclpy.spin_once(self, timeout_sec=0.05)
        return offers[0].qos_profile.reliability


def main() -> int:
    """Record until SIGINT; prints "ready" when subscribed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bag", type=Path, help="rosbag2 folder to make")
    parser.add_argument("topic")
    parser.add_argument("log", type=Path, help="file to note the stamps and times in")
    options = parser.parse_args()
    keep_freed_memory()
    rclpy.init(args=[])
    log = MessageLog(options.log)
    try:
        with write_bag(options.bag, force=True) as writer:
            try:
                recorder = Recorder(writer, options.topic, log)
                print("ready", flush=True)
                rclpy.spin(recorder)
            except (KeyboardInterrupt, ExternalShutdownException):
                pass
        return 0
    finally:
        log.close()
        rclpy.try_shutdown()


if __name__ == "__main__":
    sys.exit(main())
