"""The node over DDS: frames at a fixed rate, results matched by their stamps."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from difiisr_models.message_header import stamp_of
from difiisr_models.weights import share_dir
from difiisr_ros.demo.processes import Processes, ProcessFailed
from difiisr_ros.image_codec import encode

IMAGE, RESULT = "/bench/image_raw", "/bench/sr"
START_PATIENCE = 180.0  # seconds for the node to load and answer
TAIL_PATIENCE = 2.0  # seconds for the last results


@dataclass(frozen=True)
class Load:
    """What the node's process took.

    Attributes:
        cpu: cores, 1.0 = one of them all the time.
        memory_mib: largest resident size so far.
    """

    cpu: float
    memory_mib: float


@dataclass(frozen=True)
class StreamRun:
    """One run at one rate.

    Attributes:
        rate: frames published per second, as reached.
        sent, received: frames.
        seconds: from the first frame to the last result.
        latencies: seconds from publishing to the result's arrival, one per result.
        intervals: seconds between results.
        load: of the node.
    """

    rate: float
    sent: int
    received: int
    seconds: float
    latencies: list[float]
    intervals: list[float]
    load: Load

    @property
    def loss(self) -> float:
        """Share of the frames without a result."""
        return 1 - self.received / self.sent


class NodeUnderTest:
    """An ``sr_node`` process, with the camera and the consumer beside it in this process.

    A context; ``environment`` must hold the DDS settings of this process too.
    """

    def __init__(
        self, frames: list[np.ndarray], model: str, device: str, threads: int, logs: Path,
        environment: Mapping[str, str],
    ) -> None:  # fmt: skip
        """``frames``: ``(H, W)`` uint16, published one after the other, over and over."""
        self._arguments = _node_arguments(model, device, threads)
        self._processes = Processes(logs, dict(environment))
        self._messages = [_message(frame) for frame in frames]
        self._sent: dict[int, int] = {}
        self._arrived: list[tuple[int, int]] = []
        self._stamp = 0

    def __enter__(self) -> NodeUnderTest:
        self._processes.__enter__()
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=int(os.environ["ROS_DOMAIN_ID"]))
        self._node = Node("bench", context=self._context)
        qos = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
        self._publisher = self._node.create_publisher(Image, IMAGE, qos)
        self._node.create_subscription(Image, RESULT, self._receive, qos, raw=True)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._spinning = threading.Thread(target=self._spin, daemon=True)
        self._spinning.start()
        try:
            self._processes.start("node", "difiisr_ros.sr_node", *self._arguments)
            self._wait_for_first_result()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.try_shutdown(context=self._context)
        self._spinning.join(5.0)
        self._processes.__exit__(None, None, None)

    def run(self, rate: float, seconds: float) -> StreamRun:
        """Publish at ``rate`` Hz for ``seconds`` and wait for the results.

        Raises:
            ProcessFailed: no frame was answered.
        """
        count = max(2, round(rate * seconds))
        before, self._arrived = len(self._sent), []
        cpu_before, started = self._cpu_seconds(), time.monotonic()
        for i in range(count):
            time.sleep(max(0.0, started + i / rate - time.monotonic()))
            self._publish()
        published = time.monotonic() - started
        stamps = set(list(self._sent)[before:])
        self._wait_for_results(stamps)
        answers = [(stamp, at) for stamp, at in self._arrived if stamp in stamps]
        if not answers:
            raise ProcessFailed(f"no result of {count} frames at {rate:g} Hz")
        ended = max(at for _, at in answers) / 1e9
        cpu = (self._cpu_seconds() - cpu_before) / (time.monotonic() - started)
        return StreamRun(
            (count - 1) / max(published, 1e-9),
            count,
            len(answers),
            ended - started,
            [(at - self._sent[stamp]) / 1e9 for stamp, at in answers],
            [(b - a) / 1e9 for (_, a), (_, b) in pairwise(answers)],
            Load(cpu, self._peak_mib()),
        )

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except Exception:  # the context is shut down while it waits
            if self._context.ok():
                raise

    def _receive(self, raw: bytes) -> None:
        self._arrived.append((stamp_of(raw), time.monotonic_ns()))

    def _publish(self) -> None:
        message = self._messages[len(self._sent) % len(self._messages)]
        self._stamp = max(self._stamp + 1, time.time_ns())
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(self._stamp, 10**9)
        self._sent[self._stamp] = time.monotonic_ns()
        self._publisher.publish(message)

    def _wait_for_first_result(self) -> None:
        def answered() -> bool:
            self._publish()
            return bool(self._arrived)

        self._processes.wait_until(answered, START_PATIENCE, "waiting for the node's first result")
        time.sleep(1.0)  # results of the other frames that called it

    def _wait_for_results(self, stamps: set[int]) -> None:
        until = time.monotonic() + TAIL_PATIENCE
        while len(self._arrived) < len(stamps) and time.monotonic() < until:
            time.sleep(0.01)

    def _cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _peak_mib(self) -> float:
        lines = Path(f"/proc/{self._pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

    @property
    def _pid(self) -> int:
        return self._processes.pid("node")


def find_peak(
    node: NodeUnderTest, first: float, seconds: float, largest_loss: float = 0.05, steps: int = 5
) -> StreamRun | None:
    """The fastest run that lost at most ``largest_loss``, by bisection from ``first`` Hz.

    Returns:
        ``None`` where every rate that was tried lost more.
    """
    low, high, rate, best = 0.0, float("inf"), first, None
    for _ in range(steps):
        run = node.run(rate, seconds)
        if run.loss <= largest_loss:
            low, best = rate, run
        else:
            high = rate
        rate = 1.6 * rate if high == float("inf") else (low + high) / 2
    return best


def _message(frame: np.ndarray) -> Image:
    encoded = encode(frame, "mono16")
    message = Image()
    message.header.frame_id = "thermal"
    message.height, message.width, message.encoding = encoded[:3]
    message.is_bigendian, message.step, message.data = encoded[3:]
    return message


def _node_arguments(model: str, device: str, threads: int) -> list[str]:
    parameters = {"autostart": "true", "model": model, "device": device, "threads": str(threads)}
    remaps = {"image_raw": IMAGE, "sr/image_raw": RESULT}
    return [
        "--ros-args", "--params-file", str(share_dir() / "config" / "sr.yaml"),
        *(part for name, value in parameters.items() for part in ("-p", f"{name}:={value}")),
        *(part for name, value in remaps.items() for part in ("-r", f"{name}:={value}")),
    ]  # fmt: skip
