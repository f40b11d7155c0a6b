"""What the ROS tests talk to sr_node with: the node as a process, and a peer beside it."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image

from difiisr_ros.image_codec import encode

PATIENCE = 30.0  # seconds after which something that must happen has not
DOMAIN = 1 + os.getpid() % 100  # apart from other tests on this machine


class NodeProcess:
    """`python -m difiisr_ros.sr_node` in a process of its own, its log in a file."""

    def __init__(self, log, *ros_arguments, domain=DOMAIN):
        self._log = log
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "difiisr_ros.sr_node", "--ros-args", *ros_arguments],
                env={**os.environ, "ROS_DOMAIN_ID": str(domain)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self):
        return self._log.read_text()

    def wait_for_log(self, text):
        wait_until(lambda: text in self.log or self._process.poll() is not None, lambda: self.log)
        assert text in self.log, self.log

    def stop(self, number):
        """Send a signal and return the exit code."""
        self._process.send_signal(number)
        try:
            return self._process.wait(PATIENCE)
        finally:
            self._process.kill()


def wait_until(condition, describe=lambda: ""):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, describe() or "waited in vain"
        time.sleep(0.005)


def spin_in_thread(node):
    """Spin `node` in a thread; return the function that ends it."""
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()

    def stop():
        executor.shutdown()
        thread.join(PATIENCE)

    return stop


class Peer:
    """Camera, recorder and operator in one node, spun by a thread."""

    def __init__(self, domain=DOMAIN):
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=domain)
        self.node = rclpy.create_node("peer", context=self._context)
        best_effort = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._image = self.node.create_publisher(Image, "/thermal/image_raw", best_effort)
        self._info = self.node.create_publisher(CameraInfo, "/thermal/camera_info", best_effort)
        self.images, self.infos, self.diagnostics = [], [], []
        self._recorders = []
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self.diagnostics.append, 10)
        self._clients = {}
        self._stop_spinning = spin_in_thread(self.node)
        self.stamp = 1_700_000_000

    def close(self):
        self._stop_spinning()
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)

    # Recorder

    def listen(self):
        """Subscribe to the results and wait until the node knows."""
        if not self._recorders:
            self._recorders = [
                self.node.create_subscription(Image, "/thermal/sr", self.images.append, 10),
                self.node.create_subscription(
                    CameraInfo, "/thermal/sr/camera_info", self.infos.append, 10
                ),
            ]
        wait_until(lambda: self.node.count_publishers("/thermal/sr") == 1)
        wait_until(lambda: self._image.get_subscription_count() == 1)
        wait_until(lambda: self._info.get_subscription_count() == 1)
        # Both ends find each other one after the other: ask for an answer until there is one.
        known = self._answered()
        wait_until(lambda: self._probe() or self._answered() > known)
        self.settle()

    def stop_listening(self):
        for recorder in self._recorders:
            self.node.destroy_subscription(recorder)
        self._recorders = []

    def _answered(self):
        return len(self.images)

    def _probe(self):
        self.send(np.full((16, 16), 3000, np.uint16))
        time.sleep(0.05)

    def settle(self):
        """Wait until nothing more comes, then forget what came."""
        before = -1
        while before != len(self.images):
            before = len(self.images)
            time.sleep(0.3)
        self.images.clear()
        self.infos.clear()

    def answer_to(self, sent):
        """The result with the stamp of `sent`."""
        wait_until(lambda: self._find(self.images, sent) is not None)
        return self._find(self.images, sent)

    def info_for(self, sent):
        wait_until(lambda: self._find(self.infos, sent) is not None)
        return self._find(self.infos, sent)

    def _find(self, messages, sent):
        found = [m for m in tuple(messages) if m.header.stamp == sent.header.stamp]
        assert len(found) <= 1, "answered twice"
        return found[0] if found else None

    # Camera

    def next_header(self, message):
        self.stamp += 1
        message.header.stamp.sec = self.stamp
        message.header.stamp.nanosec = 123_456_789
        message.header.frame_id = f"thermal_optical_{self.stamp}"
        return message

    def image(self, pixels, encoding="mono16"):
        message = self.next_header(Image())
        for name, value in encode(pixels, encoding)._asdict().items():
            setattr(message, name, value)
        return message

    def send(self, pixels, encoding="mono16"):
        """Publish an image and return it."""
        return self.send_message(self.image(pixels, encoding))

    def send_message(self, message):
        self._image.publish(message)
        return message

    def send_info(self, info):
        self._info.publish(info)

    # Operator

    def call(self, service_type, name, request):
        """Call a service of the node and return the future's result."""
        return self.call_later(service_type, name, request).wait()

    def call_later(self, service_type, name, request):
        if name not in self._clients:
            self._clients[name] = self.node.create_client(service_type, f"/sr_node/{name}")
        client = self._clients[name]
        assert client.wait_for_service(PATIENCE), f"no service {name}"
        return PendingCall(client.call_async(request))

    def transition(self, label):
        """Request a transition by label; whether it succeeded."""
        request = ChangeState.Request()
        request.transition.label = label
        return self.call(ChangeState, "change_state", request).success

    def state(self):
        """Asked again where no answer comes: a node that has not found this client yet drops it."""
        deadline = time.monotonic() + PATIENCE
        while True:
            pending = self.call_later(GetState, "get_state", GetState.Request())
            wait = min(2.0, deadline - time.monotonic())
            if pending.answered_within(wait) or wait < 2.0:
                return pending.wait().current_state.label

    def set(self, **values):
        """Set one parameter; the result with `successful` and `reason`."""
        parameters = [Parameter(name, value=value) for name, value in values.items()]
        request = SetParameters.Request(parameters=[p.to_parameter_msg() for p in parameters])
        return self.call(SetParameters, "set_parameters", request).results[0]

    def get_later(self, *names):
        return self.call_later(GetParameters, "get_parameters", GetParameters.Request(names=names))

    def status(self):
        """The newest diagnostic status and its values, from after this call."""
        count = len(self.diagnostics)
        # The first that comes may have been under way already.
        wait_until(lambda: len(self.diagnostics) >= count + 2)
        status = self.diagnostics[-1].status[0]
        return status, {value.key: value.value for value in status.values}


class PendingCall:
    """A service call under way."""

    def __init__(self, future):
        self._future = future
        self._done = threading.Event()
        future.add_done_callback(lambda _: self._done.set())

    @property
    def answered(self):
        return self._done.is_set()

    def answered_within(self, seconds):
        return self._done.wait(seconds)

    def wait(self):
        assert self._done.wait(PATIENCE), "no answer from the service"
        return self._future.result()
