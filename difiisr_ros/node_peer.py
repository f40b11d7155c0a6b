"""A node's camera and consumer in one: sends serialised frames, matches results by their stamps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from threading import Event
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.client import Client
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.publisher import Publisher
from rclpy.serialization import deserialize_message
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, Image

from difiisr_ros.bags import stamp_of
from difiisr_ros.node_process import NodeProcess, own_domain

Timed = tuple[float, bytes, str | None]
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
        node: that does all this.
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
        self.node = rclpy.create_node("peer", context=self._context)
        self._publishers: dict[str, Publisher] = {}
        self._subscriptions: dict[str, Subscription] = {}
        self._clients: dict[str, Client] = {}
        self.appear({image: Image, info: CameraInfo} if info else {image: Image})
        self.listen({result: Image, f"{result}/camera_info": CameraInfo})
        self.listen({"/diagnostics": DiagnosticArray})

    def __enter__(self) -> NodePeer:
        executor = SingleThreadedExecutor(context=self._context)
        executor.add_node(self.node)
        self._threads = ThreadPoolExecutor(1)
        self._spinning = self._threads.submit(executor.spin)
        return self

    def __exit__(self, *_: object) -> None:
        rclpy.try_shutdown(context=self._context)
        self._threads.shutdown()
        self.node.destroy_node()
        with suppress(ExternalShutdownException):
            self._spinning.result()

    def is_connected(self) -> bool:
        """Whether the node listens, offers results and has told of itself."""
        listens = self._publishers[self._image].get_subscription_count()
        return bool(self.identity and listens and self.node.count_publishers(self._result))

    def send(self, raw: bytes, topic: str | None = None) -> None:
        """Publish a serialised frame, or what comes on another ``topic``."""
        if topic in (None, self._image):
            with suppress(ValueError):  # bytes that are no message may be sent too
                self.sent[stamp_of(raw)] = time.monotonic_ns()
        self._publishers[topic or self._image].publish(raw)

    def appear(self, topics: Mapping[str, type]) -> None:
        """Publish on these topics (name -> type), by new publishers where there were some."""
        for topic, kind in topics.items():
            if old := self._publishers.pop(topic, None):
                self.node.destroy_publisher(old)
            self._publishers[topic] = self.node.create_publisher(kind, topic, DEPTH)

    def listen(self, topics: Mapping[str, type]) -> None:
        """Subscribe to these topics (name -> type)."""
        for topic, kind in topics.items():
            take = partial(self._take, topic)
            subscription = self.node.create_subscription(kind, topic, take, DEPTH, raw=True)
            self._subscriptions[topic] = subscription

    def leave(self, topic: str) -> None:
        """Subscribe to this topic no more."""
        self.node.destroy_subscription(self._subscriptions.pop(topic))

    def call(self, kind: type, name: str, request: object, patience: float = 60.0) -> Any:
        """The answer of a service, None where none comes in ``patience`` seconds."""
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, name)
            self._clients[name].wait_for_service(patience)
            time.sleep(0.5)  # a node that has not found this client yet drops what it asks
        answered = Event()
        future = self._clients[name].call_async(request)
        future.add_done_callback(lambda _: answered.set())
        return future.result() if answered.wait(patience) else None

    def play(self, node: NodeProcess, messages: Iterable[Timed], patience: float) -> float:
        """Send messages while ``node`` runs, else ProcessFailed, and wait for the results.

        Args:
            node: the process.
            messages: when to send, seconds from now on, and the arguments of :meth:`send`.
            patience: seconds without a result, beside twice the slowest, after which none comes.

        Returns:
            seconds that sending took.
        """
        started = time.monotonic()
        for at, raw, topic in messages:
            time.sleep(max(0.0, started + at - time.monotonic()))
            node.check()
            self.send(raw, topic)
        ended = time.monotonic()

        def is_over() -> bool:
            answers, now = self.answers(), time.monotonic()
            slowest = max((arrived - sent for sent, arrived in answers), default=0) / 1e9
            last = max([ended, *(arrived / 1e9 for _, arrived in answers[-1:])])
            return len(answers) == len(self.sent) or now - last > patience + 2 * slowest

        node.wait_until(is_over, math.inf, "the last results")
        return ended - started

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
