"""What the ROS tests talk to sr_node with: a domain of their own, and a peer of the node."""

import threading
import time
from array import array

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, Image

from difiisr_ros.image_codec import encode_rows
from difiisr_ros.node_peer import NodePeer
from difiisr_ros.node_process import own_domain

PATIENCE = 60.0  # seconds after which something that must happen has not
RETRY = 5.0  # seconds after which a message or a service call counts as lost
DOMAIN = own_domain()
IMAGE, INFO = "/thermal/image_raw", "/thermal/camera_info"
RESULTS = {"/thermal/sr": Image, "/thermal/sr/camera_info": CameraInfo}


def wait_until(condition, describe=lambda: "", patience=PATIENCE):
    """Wait for a true value of `condition()` and return it."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < deadline, describe() or "waited in vain"
        time.sleep(0.005)
    return value


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


def of(messages, sent):
    """The message with the stamp of `sent`, None without any."""
    found = [m for m in tuple(messages) if m.header.stamp == sent.header.stamp]
    assert len(found) <= 1, "answered twice"
    return found[0] if found else None


class Peer:
    """Camera, recorder and operator in one node, spun by a thread."""

    def __init__(self):
        self.images, self.infos, self.diagnostics = [], [], []
        self._peer = NodePeer(IMAGE, "/thermal/sr", INFO, self._keep)
        self.node = self._peer.node
        self._hears, self._stamp = True, 1_700_000_000
        self._peer.__enter__()

    def close(self):
        self._peer.__exit__()

    def _keep(self, topic, raw):
        kept = dict(zip(RESULTS, (self.images, self.infos), strict=True))
        kind = RESULTS.get(topic, DiagnosticArray)
        kept.get(topic, self.diagnostics).append(deserialize_message(raw, kind))

    # Recorder

    def listen(self):
        """Subscribe to the results, and wait until an active node answers."""
        self.images.clear()
        self.infos.clear()
        if not self._hears:
            self._peer.listen(RESULTS)
            self._hears = True
        # Both ends find each other one after the other: ask for an answer until there is one.
        wait_until(lambda: self.node.count_subscribers(INFO) == 1)
        probe = np.full((16, 16), 3000, np.uint16)
        wait_until(lambda: (self.send(probe) and time.sleep(0.05)) or self.images)

    def stop_listening(self):
        for topic in RESULTS if self._hears else ():
            self._peer.leave(topic)
        self._hears = False

    # Camera

    def restart_camera(self):
        """The images come from another publisher, with stamps of long ago."""
        self._peer.appear({IMAGE: Image})
        self._stamp -= 1_000_000_000

    def image(self, pixels, encoding="mono16"):
        """The message of these pixels, with a stamp and a frame_id that no other has."""
        self._stamp += 1
        message = Image()
        message.header.stamp.sec, message.header.stamp.nanosec = self._stamp, 123_456_789
        message.header.frame_id = f"thermal_optical_{self._stamp}"
        rows = encode_rows(pixels, encoding)
        message.height, message.width, message.step = *pixels.shape[:2], rows.shape[1]
        message.encoding, message.data = encoding, array("B", rows.tobytes())
        return message

    def send(self, pixels, encoding="mono16"):
        """Publish an image and return it."""
        return self.send_message(self.image(pixels, encoding))

    def send_message(self, message):
        self._peer.send(serialize_message(message))
        return message

    def send_info(self, info):
        self._peer.send(serialize_message(info), INFO)

    def answer_to(self, sent):
        """The result with the stamp of `sent`."""
        return wait_until(lambda: of(self.images, sent))

    def ask(self, pixels, encoding="mono16"):
        """Send an image, again if it is lost, which best effort may; what was sent, the answer."""
        deadline = time.monotonic() + PATIENCE
        while True:
            sent = self.send(pixels, encoding)
            try:
                return sent, wait_until(lambda sent=sent: of(self.images, sent), patience=RETRY)
            except AssertionError:
                assert time.monotonic() < deadline, "no answer to an image"

    def ask_with(self, info, pixels):
        """The camera_info of the result, once the node has taken note of `info`."""

        def answered():
            self.send_info(info)
            time.sleep(0.02)
            sent, _ = self.ask(pixels)
            time.sleep(0.02)
            return of(self.infos, sent)

        return wait_until(answered)

    # Operator

    def call(self, service_type, name, request, is_done=lambda: False):
        """The answer of a service, None once `is_done()` says that there was one.

        Asked again where no answer comes: a node that has not found this client yet drops it.
        """
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            answer = self._peer.call(service_type, f"/sr_node/{name}", request, RETRY)
            if answer is not None or is_done():
                return answer
        raise AssertionError(f"no answer from {name}")

    def transition(self, label):
        """Request a transition by label; whether it succeeded."""
        goals = {"configure": "inactive", "activate": "active", "deactivate": "inactive"}
        request = ChangeState.Request()
        request.transition.label = label
        answer = self.call(
            ChangeState,
            "change_state",
            request,
            lambda: self.state() == goals.get(label, "unconfigured"),
        )
        return answer is None or answer.success

    def state(self):
        return self.call(GetState, "get_state", GetState.Request()).current_state.label

    def set(self, **values):
        """Set one parameter; the result with `successful` and `reason`."""
        parameters = [Parameter(name, value=value) for name, value in values.items()]
        request = SetParameters.Request(parameters=[p.to_parameter_msg() for p in parameters])
        return self.call(SetParameters, "set_parameters", request).results[0]

    def get(self, *names):
        request = GetParameters.Request(names=names)
        return self.call(GetParameters, "get_parameters", request).values

    def status(self):
        """The newest diagnostic status and its values, from after this call."""
        count = len(self.diagnostics)
        # The first that comes may have been under way already.
        wait_until(lambda: len(self.diagnostics) >= count + 2)
        status = self.diagnostics[-1].status[0]
        return status, {value.key: value.value for value in status.values}

    def counts(self):
        """How many frames met each fate ("dropped stale", "frames idle", ...), once all have."""

        def settled():
            values = self.status()[1].items()
            frames = {k: int(v) for k, v in values if k.startswith(("frames", "dropped"))}
            received = frames["frames received"]
            never_came = frames["frames lost before"]
            assert received == sum(frames.values()) - received - never_came, frames
            return frames if not frames["frames pending"] else None

        return wait_until(settled)
