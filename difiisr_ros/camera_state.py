"""What a node knows of its camera: the stream so far, its calibration, the state of its shutter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from std_msgs.msg import Bool, Int8, Int32, String, UInt8, UInt32
from std_srvs.srv import Trigger

from difiisr_models import Stream
from difiisr_models.camera_files import Calibration
from difiisr_models.stream import StreamEvents
from difiisr_ros.diagnostics import event_values, status_message
from difiisr_ros.parameters import Parameters
from difiisr_ros.refusals import described

LONG_REPEAT = 0.2  # seconds of one frame: a shutter; a driver that sends each twice is faster
_MOMENTARY = ("offset", "gain", "cut", "pause")  # events that are told of each time
_OPEN, _ERROR = 0, 4  # of EnumFlagState in libirimager: open, closed, opening, closing, error, ...

# Message types of a shutter flag by the name that the ROS graph has for them.
_FLAG_TYPES: dict[str, type] = {
    f"std_msgs/msg/{kind.__name__}": kind for kind in (Bool, Int8, Int32, String, UInt8, UInt32)
}
try:
    from optris_drivers2.msg import Flag  # Optris cameras; where that driver is installed
except ImportError:
    pass
else:
    _FLAG_TYPES["optris_drivers2/msg/Flag"] = Flag


class CameraState:
    """Makes the streams of a node's camera, with the services ``~/calibrate`` and ``~/reset``.

    Attributes:
        stream: what is remembered of the frames so far.
        is_closed: the shutter flag says that the shutter is closed.
    """

    def __init__(
        self,
        node: Node,
        settings: Parameters,
        warn_once: Callable[[str], None],
        explained: Callable[[], None],
    ) -> None:
        """``explained`` is told when the shutter has been at work."""
        self._node, self._settings = node, settings
        self._warn_once, self._explained = warn_once, explained
        self._calibration: Calibration | None = None
        self._flag: Subscription | None = None
        node.create_service(Trigger, "~/calibrate", self._on_calibrate)
        node.create_service(Trigger, "~/reset", self._on_reset)
        self.begin()

    def begin(self) -> None:
        """Begin a new stream, with what the calibration says."""
        settings, self.is_closed = self._settings, False
        self.stream = Stream(settings.no_data_values, settings.max_pause, self._calibration)

    def change(self, settings: Parameters) -> None:
        """Take other settings, from the next frame on; the calibration when it is loaded."""
        self._settings = settings
        self.stream.no_data, self.stream.max_pause = settings.no_data_values, settings.max_pause

    def load_calibration(self) -> None:
        """Read the calibration, if there is one; a bad one is not used, with a warning."""
        self._calibration, path = None, self._settings.calibration
        try:
            self._calibration = Calibration.load(path) if path else None
        except FileNotFoundError:
            text = f"there is no calibration {path} yet: ~/calibrate writes it"
            self._node.get_logger().info(text)
        except ValueError as error:
            self._node.get_logger().warning(f"calibration not used: {error}")

    def news(
        self, stream: Stream, before: StreamEvents, image: Any, pixels: np.ndarray, stamp_ns: int
    ) -> DiagnosticStatus | None:
        """The state of a stream after an image; None where it is the same as ``before``."""
        events = stream.events
        kind, since = events.event.kind, events.since_ns or stamp_ns
        is_frozen = kind == "repeat" and stamp_ns - since >= 1e9 * LONG_REPEAT
        if is_frozen or kind in ("offset", "flat"):
            self._explained()
        if stream.calibration is not None and not stream.fits(pixels.shape):
            height, width = stream.calibration.bad.shape
            self._warn_once(
                f"calibration {self._settings.calibration} is of frames of {width}x{height} "
                "pixels: it is not used; call ~/calibrate to write a new one"
            )
        is_first = not any(before.counts.values())
        if kind == before.event.kind and kind not in _MOMENTARY and not is_first:
            return None
        name = f"{self._node.get_fully_qualified_name().lstrip('/')}: stream"
        values = event_values(events)
        return status_message(name, image.header.frame_id, DiagnosticStatus.OK, kind, values)

    def find_flag(self) -> None:
        """Subscribe to the shutter flag once somebody publishes one."""
        if self._flag is not None:
            return
        topic = self._node.resolve_topic_name("shutter_flag")
        for kind in {end.topic_type for end in self._node.get_publishers_info_by_topic(topic)}:
            if kind in _FLAG_TYPES:
                qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
                self._flag = self._node.create_subscription(
                    _FLAG_TYPES[kind], topic, self._on_flag, qos
                )
                return
            known = ", ".join(_FLAG_TYPES)
            self._warn_once(f"{topic} is a {kind}, which tells no shutter: ignored; read: {known}")

    def leave_flag(self) -> None:
        """Subscribe to the shutter flag no more."""
        if self._flag is not None:
            self._node.destroy_subscription(self._flag)
            self._flag = None

    def _on_flag(self, message: Any) -> None:
        self.is_closed = is_closed(message)
        self._explained()

    def _on_calibrate(self, _: Trigger.Request, answer: Trigger.Response) -> Trigger.Response:
        """Save what the stream tells of the camera."""
        path = self._settings.calibration
        try:
            if not path:
                raise ValueError("the parameter calibration names no file: set it, then configure")
            found = self.stream.calibrate()
            found.save(path)
        except (OSError, ValueError) as error:
            answer.success, answer.message = False, described(error)
            return answer
        self._calibration = found
        answer.success = True
        answer.message = (
            f"{path}: {found.bad.sum()} stuck pixels, noise {found.noise:.3g} counts, "
            f"{'fixed pattern' if found.pattern else 'no fixed pattern yet'}"
        )
        return answer

    def _on_reset(self, _: Trigger.Request, answer: Trigger.Response) -> Trigger.Response:
        self.begin()
        answer.success, answer.message = True, "the next frame begins a new stream"
        return answer


def is_closed(message: Any) -> bool:
    """Whether a shutter flag says that the shutter is not open.

    Numbers are those of Optris' libirimager (0 open, 1 closed, 2 opening, 3 closing, 4 error); a
    text says ``open`` or another word.
    """
    state = message.flag_state if hasattr(message, "flag_state") else message.data
    if isinstance(state, str):
        return state.strip().lower() not in ("", "open")
    return state if isinstance(state, bool) else _OPEN < state < _ERROR
