"""A node's camera and consumer in one: sends serialised frames, matches results by their stamps."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, Image

from difiisr_ros.bags import stamp_of
from difiisr_ros.node_process import own_domain

DEPTH = 50  # messages that may wait; all are sent reliably


class NodePeer:
    """A context; this process's environment must be that of ``node_process.dds_environment``.

    Args:
        image: topic that frames are sent on.
        result: topic of the results.
        info: topic that camera_info is sent on, None for none.
        record: called in a thread with topic and bytes of each result, its camera_info and each
            message of the diagnostics; what it raises, the end of the context raises.

    Attributes:
        sent, arrived: header stamp -> monotonic time, both ns, of the frames and of the results.
        identity: what the node's diagnostics said last: ``backend``, ``device``, ...
    """

    def __init__(
        self,
        image: str,
        result: str,
        info: str | None = None,
        record: Callable[[str, bytes], object] = lambda _topic, _raw: None,
    ) -> None:
        self._image, self._result, self._record = image, result, record
        self.sent: dict[int, int] = {}
        self.arrived: dict[int, int] = {}
        self.identity: dict[str, str] = {}
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=own_domain())
        self._node = rclpy.create_node("peer", context=self._context)
        self._publishers = {
            topic: self._node.create_publisher(kind, topic, DEPTH)
            for topic, kind in ((image, Image), (info, CameraInfo))
            if topic
        }
        infos = f"{result}/camera_info"
        heard = {result: Image, infos: CameraInfo, "/diagnostics": DiagnosticArray}
        for topic, kind in heard.items():
            take = partial(self._take, topic)
            self._node.create_subscription(kind, topic, take, DEPTH, raw=True)

    def __enter__(self) -> NodePeer:
        executor = SingleThreadedExecutor(context=self._context)
        executor.add_node(self._node)
        self._threads = ThreadPoolExecutor(1)
        self._spinning = self._threads.submit(executor.spin)
        return self

    def __exit__(self, *_: object) -> None:
        rclpy.try_shutdown(context=self._context)
        self._threads.shutdown()
        self._node.destroy_node()
        with suppress(ExternalShutdownException):
            self._spinning.result()

    def is_connected(self) -> bool:
        """Whether the node listens, offers results and has told of itself."""
        listens = self._publishers[self._image].get_subscription_count()
        return bool(self.identity and listens and self._node.count_publishers(self._result))

    def send(self, raw: bytes, topic: str | None = None) -> None:
        """Publish a serialised frame, or what comes on another ``topic``."""
        if topic in (None, self._image):
            self.sent[stamp_of(raw)] = time.monotonic_ns()
        self._publishers[topic or self._image].publish(raw)

    def answers(self) -> list[tuple[int, int]]:
        """When each answered frame was sent and its result arrived, monotonic ns, in order."""
        arrived = dict(self.arrived)
        pairs = [(at, arrived[stamp]) for stamp, at in self.sent.items() if stamp in arrived]
        return sorted(pairs, key=lambda pair: pair[1])

    def _take(self, topic: str, raw: bytes) -> None:
        if topic == self._result:
            self.arrived[stamp_of(raw)] = time.monotonic_ns()
        elif topic == "/diagnostics":
            for status in deserialize_message(raw, DiagnosticArray).status:
                values = {value.key: value.value for value in status.values}
                self.identity = values if "backend" in values else self.identity
        self._record(topic, raw)
