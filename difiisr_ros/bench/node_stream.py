"""The node over DDS: frames at a fixed rate, results matched by their stamps."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import cycle, pairwise
from pathlib import Path

import numpy as np
import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from difiisr_models.message_header import stamp_of
from difiisr_models.weights import share_dir
from difiisr_ros.bench.contenders import Running
from difiisr_ros.bench.gpu import GpuLoad, free_mib
from difiisr_ros.bench.stream_runs import Load, StreamRun
from difiisr_ros.demo.processes import Processes, ProcessFailed
from difiisr_ros.diagnostics import UPSCALING
from difiisr_ros.image_codec import encode
from difiisr_ros.stream_statistics import WINDOW

IMAGE, RESULT = "/bench/image_raw", "/bench/sr"
START_PATIENCE = 180.0  # seconds for the node to load and answer
TAIL_PATIENCE = 2.0  # seconds for the last results
_SHARE = 0.95  # of what the diagnostics look back on, that a run must last to be told by them


@dataclass(frozen=True)
class _Sent:
    """What the camera did in one run: when each stamp went out (ns), and until its end (s)."""

    stamps: dict[int, int]
    started: float
    ended: float
    cpu: float
    gpu: float | None


class NodeUnderTest:
    """An ``sr_node`` process, with the camera and the consumer beside it in this process.

    A context; ``environment`` must hold the DDS settings of this process too.

    Attributes:
        identity: what its diagnostics say of it: ``backend``, ``device``, ``weights sha256``, ...
    """

    def __init__(
        self, frames: list[np.ndarray], model: str, running: Running, device: torch.device,
        threads: int, logs: Path, environment: Mapping[str, str],
    ) -> None:  # fmt: skip
        """``frames``: ``(H, W)`` uint16, published one after the other, over and over."""
        self._arguments = _node_arguments(model, running, device, threads)
        self._device = device
        self._processes = Processes(logs, dict(environment))
        self._messages = cycle([_message(frame) for frame in frames])
        self._arrived: dict[int, int] = {}
        self._stamp = 0
        self.identity: dict[str, str] = {}

    def __enter__(self) -> NodeUnderTest:
        self._processes.__enter__()
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=int(os.environ["ROS_DOMAIN_ID"]))
        self._node = Node("bench", context=self._context)
        qos = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
        self._publisher = self._node.create_publisher(Image, IMAGE, qos)
        self._node.create_subscription(Image, RESULT, self._receive, qos, raw=True)
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._identify, 10)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._spinning = threading.Thread(target=self._spin, daemon=True)
        self._spinning.start()
        self._free_before = free_mib(self._device)
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
            ProcessFailed: the node died.
            KeyboardInterrupt: SIGINT or SIGTERM came.
        """
        count = max(2, round(rate * seconds))
        stop = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(self._send, count, rate, stop)
            try:
                self._processes.wait_until(
                    lambda: sending.done() and self._answered(sending.result()), math.inf, "a run"
                )
            finally:
                stop.set()
        sent, arrived = sending.result(), dict(self._arrived)
        answers = sorted(
            (arrived[stamp], at) for stamp, at in sent.stamps.items() if stamp in arrived
        )
        return StreamRun(
            (count - 1) / max(sent.ended - sent.started, 1e-9),
            count,
            len(answers),
            [(arrival - at) / 1e9 for arrival, at in answers],
            [(b - a) / 1e9 for (a, _), (b, _) in pairwise(answers)],
            Load(sent.cpu, self._peak_mib(), self._upscaling(sent), sent.gpu, self._gpu_mib()),
        )

    def _send(self, count: int, rate: float, stop: threading.Event) -> _Sent:
        """The camera's thread: the other one watches the processes."""
        self._arrived = {}
        stamps = {}
        cpu, started = self._cpu_seconds(), time.monotonic()
        with GpuLoad(self._device) as gpu:
            for i in range(count):
                if stop.wait(max(0.0, started + i / rate - time.monotonic())):
                    break
                stamp, at = self._publish()
                stamps[stamp] = at
            cpu, ended = self._cpu_seconds() - cpu, time.monotonic()
        return _Sent(stamps, started, ended, cpu / (ended - started), gpu.share)

    def _answered(self, sent: _Sent) -> bool:
        """Whether nothing more is to be expected; results of earlier runs do not count."""
        late = time.monotonic() - sent.ended > TAIL_PATIENCE
        return late or sent.stamps.keys() <= self._arrived.keys()

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except Exception:  # the context is shut down while it waits
            if self._context.ok():
                raise

    def _receive(self, raw: bytes) -> None:
        self._arrived[stamp_of(raw)] = time.monotonic_ns()

    def _identify(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {value.key: value.value for value in status.values}
            if "backend" in values:
                self.identity = values

    def _publish(self) -> tuple[int, int]:
        """Send the next frame; its stamp, and when it went."""
        message = next(self._messages)
        self._stamp = max(self._stamp + 1, time.time_ns())
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(self._stamp, 10**9)
        at = time.monotonic_ns()
        self._publisher.publish(message)
        return self._stamp, at

    def _wait_for_first_result(self) -> None:
        def answered() -> bool:
            self._publish()
            return bool(self._arrived and self.identity)

        self._processes.wait_until(answered, START_PATIENCE, "waiting for the node's first result")
        time.sleep(1.0)  # results of the other frames that called it

    def _cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _peak_mib(self) -> float:
        for line in Path(f"/proc/{self._pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
        raise ProcessFailed(f"the node process {self._pid} ended at the end of a run")

    def _upscaling(self, sent: _Sent) -> float | None:
        milliseconds = float(self.identity.get(UPSCALING, "nan"))
        whole = sent.ended - sent.started >= _SHARE * WINDOW
        return milliseconds / 1e3 if whole and not math.isnan(milliseconds) else None

    def _gpu_mib(self) -> float | None:
        if self._free_before is None:
            return None
        return self._free_before - free_mib(self._device)

    @property
    def _pid(self) -> int:
        return self._processes.pid("node")


def _message(frame: np.ndarray) -> Image:
    encoded = encode(frame, "mono16")
    message = Image()
    message.header.frame_id = "thermal"
    message.height, message.width, message.encoding = encoded[:3]
    message.is_bigendian, message.step, message.data = encoded[3:]
    return message


def _node_arguments(model: str, running: Running, device: torch.device, threads: int) -> list[str]:
    parameters = {"autostart": "true", "model": model, "device": device, "threads": threads}
    if model != "bicubic":
        parameters |= {name: value for name, value in asdict(running).items() if value}
    remaps = {"image_raw": IMAGE, "sr/image_raw": RESULT}
    return [
        "--ros-args", "--params-file", str(share_dir() / "config" / "sr.yaml"),
        *(part for name, value in parameters.items() for part in ("-p", f"{name}:={value}")),
        *(part for name, value in remaps.items() for part in ("-r", f"{name}:={value}")),
    ]  # fmt: skip
