"""Lifecycle node: ``image_raw``, ``camera_info`` in; ``sr/image_raw``, ``sr/camera_info`` out, x4.

Run it with ``python -m difiisr_ros.sr_node --ros-args -p autostart:=true`` or launch/sr.launch.py.
"""

from __future__ import annotations

import signal

from difiisr_ros.interrupts import as_before, end_at_once

if __name__ == "__main__":  # the imports take seconds
    end_at_once(0, signal.SIGINT, signal.SIGTERM)

import gc
import os
import sys
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import numpy as np
import rclpy
import torch
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import (
    LifecycleNode,
    LifecyclePublisher,
    LifecycleState,
    TransitionCallbackReturn,
)
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.signals import (
    SignalHandlerOptions,
    install_signal_handlers,
    uninstall_signal_handlers,
)
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import Trigger

from difiisr_models import Stream, Upscaler
from difiisr_models.calibration import Calibration
from difiisr_models.model_loading import load_quickest
from difiisr_models.settings import Crop
from difiisr_models.stream import StreamEvents
from difiisr_ros.allocator import keep_freed_memory, return_freed_memory
from difiisr_ros.camera_info import camera_info_of_result
from difiisr_ros.compressed_image import decompress
from difiisr_ros.derived_outputs import DerivedOutputs, image_message
from difiisr_ros.diagnostics import (
    Finding,
    diagnostic_array,
    event_values,
    fallback_values,
    findings,
    model_values,
    scene_values,
    stream_state,
    stream_values,
    verdict,
)
from difiisr_ros.frame_worker import FrameWorker, Stopped, any_computing
from difiisr_ros.image_codec import (
    FALSE_COLOUR,
    ImageTooLarge,
    check_megapixels,
    image_to_array,
    is_false_colour,
)
from difiisr_ros.parameters import NAMES, Parameters, changed, declare, undeclared
from difiisr_ros.patient_upscaler import PatientUpscaler
from difiisr_ros.refusals import described, guard_services, shortened
from difiisr_ros.shutter import FLAG_TYPES, is_closed
from difiisr_ros.stream_statistics import WINDOW, StreamStatistics, Summary
from difiisr_ros.watchdog import FindingLog, twin_of

STOP_TIMEOUT = 1.0  # seconds that a transition waits for the frame being computed
INFO_PATIENCE = 3.0  # seconds after the first image that its camera_info may take
MOST_WARNINGS = 20  # of different troubles with the camera_info
RETRY_PERIOD = 5.0  # seconds
OUTPUT_DEPTH = 5  # a reliable subscriber may be this many results late
LONG_REPEAT = 0.2  # seconds of one frame: a shutter; a driver that sends each twice is faster
MOMENTARY = ("offset", "gain", "cut", "pause")  # events that are told of each time
DEFAULT_THREADS = torch.get_num_threads()


class Frame(NamedTuple):
    """An image on its way through the worker."""

    message: Any  # the Image as it came, or what was decompressed
    pixels: np.ndarray  # of the message but what crop cuts off, then the super-resolved ones
    stamp_ns: int  # of the message's header
    arrived: float  # monotonic seconds
    crop: Crop
    upscaling: float = 0.0  # seconds
    scale: int = 0  # of the result
    is_dropped: bool = False  # it is the frame before it, and is not to be published
    state: DiagnosticStatus | None = None  # of the stream, where it has changed


def topic_qos(depth: int, reliability: str) -> QoSProfile:
    """Return a volatile keep-last profile; make one per topic, since overrides change it."""
    return QoSProfile(depth=depth, reliability=ReliabilityPolicy[reliability.upper()])


Transition = Callable[["SrNode", LifecycleState], TransitionCallbackReturn]


def _with_reason(transition: Transition) -> Transition:
    """Keep the reason of an exception for `on_error`; rclpy alone would lose it."""

    @wraps(transition)
    def guarded(node: SrNode, state: LifecycleState) -> TransitionCallbackReturn:
        node._fault = ""
        try:
            return transition(node, state)
        except Exception as error:
            node._fault = f"{transition.__name__[3:]} failed: {described(error)}"
            return TransitionCallbackReturn.ERROR

    return guarded


class SrNode(LifecycleNode):
    """Super-resolves a thermal image stream.

    A frame's way: ``_on_image`` in the executor's thread receives, checks and hands over; the
    ``FrameWorker``'s thread runs ``_upscale``, then ``_publish``. Parameters and topics: README.
    """

    def __init__(self, **node_arguments: object) -> None:
        """Declare parameters and start diagnostics; raises ValueError on a bad parameter."""
        super().__init__("sr_node", **node_arguments)
        self._settings = declare(self)
        if unknown := undeclared(self):
            self.get_logger().warning(f"there are no parameters {', '.join(unknown)}: ignored")
        self.add_on_set_parameters_callback(self._on_set_parameters)
        guard_services(self)
        self._upscaler: Upscaler | None = None
        self._patient: PatientUpscaler | None = None
        self._outputs: list[LifecyclePublisher] = []
        self._derived: DerivedOutputs | None = None
        self._inputs: list[Subscription] = []
        self._worker: FrameWorker[Frame, Frame] | None = None
        self._calibration: Calibration | None = None
        self._stream = self._new_stream()
        self._state_output: LifecyclePublisher | None = None
        self._flag: Subscription | None = None
        self._info: CameraInfo | None = None
        self._mismatch = ""  # why the camera_info is not used
        self._warned: set[str] = set()  # troubles with the camera_info that were
        self._first_image: float | None = None  # monotonic seconds
        self._due = 0.0  # monotonic seconds: max_rate allows the next frame then
        self._colours_seen = False  # looked for in the first image only
        self._statistics = StreamStatistics()
        self._log_findings = FindingLog(self)
        self._fault = ""
        self._fallbacks = 0  # results that are plain bicubic, as far as diagnostics told
        self.failed = False  # to configure, or what build_only was started for
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_service(Trigger, "~/calibrate", self._on_calibrate)
        self.create_service(Trigger, "~/reset", self._on_reset)
        # Timers of the machine's own clock: simulated time may stand still.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        period = self._settings.diagnostics_period
        self.create_timer(period, self._publish_diagnostics, clock=self._steady)
        if self._settings.autostart:
            self._autostart = self.create_timer(0.0, self._start, clock=self._steady)

    def load(self, settings: Parameters) -> Upscaler:
        """The upscaler that the settings ask for."""
        return load_quickest(settings.model, **settings.load_arguments())

    # Transitions

    @_with_reason
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model, verify its hash, warm it up, create the publishers."""
        started = time.monotonic()
        settings = self._settings
        torch.set_num_threads(DEFAULT_THREADS)  # a model before may have had its own number
        upscaler = self._upscaler = self.load(settings)
        upscaler.warm_up()
        self._patient = PatientUpscaler(upscaler)
        for message_type, topic in ((Image, "sr/image_raw"), (CameraInfo, "sr/camera_info")):
            publisher = self.create_lifecycle_publisher(
                message_type,
                topic,
                topic_qos(OUTPUT_DEPTH, settings.output_reliability),
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )
            self._outputs.append(publisher)
        self._derived = DerivedOutputs(
            self,
            self._outputs[0].topic_name,
            settings,
            lambda: topic_qos(OUTPUT_DEPTH, settings.output_reliability),
            self._warn_once,
        )
        self._outputs += self._derived.publishers.values()
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._state_output = self.create_lifecycle_publisher(
            DiagnosticStatus, "sr/stream_state", latched
        )
        self._load_calibration()
        # What is loaded stays: looking through it for garbage would stop frames for 80 ms.
        gc.collect()
        gc.freeze()
        passed_over = [f"not {name}: {why}" for name, why in upscaler.passed_over]
        measured = [f"{name}: {ms:.0f} ms" for name, ms in upscaler.measured.items()]
        runs = "; ".join([f"{upscaler.backend} on {upscaler.device}", *passed_over, *measured])
        self.get_logger().info(
            f"configured {upscaler.name} ({runs}) in {time.monotonic() - started:.1f} s"
        )
        if settings.build_only:
            if upscaler.backend != "tensorrt":
                raise ValueError(f"build_only: no engine was built for {settings.model}: {runs}")
            self.get_logger().info(f"build_only: {settings.engine} is ready, the node ends")
            self.create_timer(0.0, self.context.try_shutdown, clock=self._steady)
        return super().on_configure(state)

    @_with_reason
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin a new stream: subscribe, forget what is known of the last one."""
        self._statistics.begin()
        self._stream, self._fallbacks = self._new_stream(), 0
        self._info, self._mismatch, self._first_image = None, "", None
        self._due, self._colours_seen = 0.0, False
        self._warned.clear()
        self._worker = FrameWorker(self._upscale, self._publish, self._on_frame_failed)
        images = (Image, "image_raw", self._on_image)
        if (transport := self._settings.transport) != "raw":
            topic = f"{self.resolve_topic_name('image_raw')}/{transport}"
            images = (CompressedImage, topic, self._on_image)
        for message_type, topic, callback in (
            images,
            (CameraInfo, "camera_info", self._on_camera_info),
        ):
            subscription = self.create_subscription(
                message_type,
                topic,
                callback,
                topic_qos(self._settings.input_depth, self._settings.input_reliability),
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )
            self._inputs.append(subscription)
        inputs, outputs = (
            ", ".join(end.topic_name for end in ends) for ends in (self._inputs, self._outputs)
        )
        self.get_logger().info(f"active: {inputs} -> {outputs}")
        return super().on_activate(state)

    @_with_reason
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe; the frame being computed is not published any more."""
        self.stop_stream()
        return super().on_deactivate(state)

    @_with_reason
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free model and memory; parameters of the model may change now."""
        self._release()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything."""
        self._release()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Log the reason and go back to unconfigured."""
        self.get_logger().error(self._fault or f"a transition failed from state {state.label}")
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def stop_stream(self) -> None:
        """Unsubscribe and stop the worker; a frame that takes long is waited for a moment only."""
        if self._worker is None:
            return
        for subscription in (*self._inputs, *([self._flag] if self._flag else [])):
            self.destroy_subscription(subscription)
        self._inputs.clear()
        self._flag = None
        worker, self._worker = self._worker, None
        worker.stop(STOP_TIMEOUT)

    def _release(self) -> None:
        self.stop_stream()
        for publisher in self._outputs:
            self.destroy_lifecycle_publisher(publisher)
        self._outputs.clear()
        if self._state_output is not None:
            self.destroy_lifecycle_publisher(self._state_output)
            self._state_output = None
        if self._upscaler is None:
            return
        self._upscaler = self._patient = None
        gc.unfreeze()
        gc.collect()
        return_freed_memory()
        torch.cuda.empty_cache()  # nothing where no GPU is in use

    def _start(self) -> None:
        self._autostart.cancel()
        configured = self.trigger_configure() == TransitionCallbackReturn.SUCCESS
        if configured and not self._settings.build_only:
            self.trigger_activate()
        elif not configured and (self._settings.build_only or self._settings.on_failure == "exit"):
            self.failed = True
            self.context.try_shutdown()
        elif not configured and self._settings.on_failure == "retry":
            self.get_logger().info(f"configuring again in {RETRY_PERIOD:g} s")
            self.destroy_timer(self._autostart)
            self._autostart = self.create_timer(RETRY_PERIOD, self._start, clock=self._steady)

    # A frame's way, in the executor's thread

    def _on_camera_info(self, info: CameraInfo) -> None:
        self._info = info

    def _on_image(self, message: Image | CompressedImage) -> None:
        arrived = time.monotonic()
        stamp_ns = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
        self._statistics.received(stamp_ns)
        self._first_image = self._first_image or arrived
        try:
            self._hand_over(message, stamp_ns, arrived)
        except ImageTooLarge as error:
            self._statistics.dropped("too_large", str(error))
        except ValueError as error:
            self._statistics.dropped("malformed", shortened(str(error)))
        except Exception as error:
            self._on_frame_failed(error)

    def _hand_over(self, message: Image | CompressedImage, stamp_ns: int, arrived: float) -> None:
        idle = self._settings.lazy and not self._has_subscribers()
        if idle and isinstance(message, CompressedImage):  # whose decoding takes long
            self._statistics.idle()
            return
        if not (idle or self._is_due(arrived)):
            self._statistics.dropped("over_rate")
            return
        most = self._settings.max_frame_megapixels
        if isinstance(message, CompressedImage):
            message = decompress(message, most)
        pixels = image_to_array(message)
        check_megapixels(message.width, message.height, most)
        crop = self._settings.window(*pixels.shape[:2])
        if self._worker is None:
            raise Stopped
        self._warn_of_colours(message)
        if idle:
            self._statistics.idle()
        elif self._worker.submit(Frame(message, crop.cut(pixels), stamp_ns, arrived, crop)):
            self._statistics.dropped("stale")

    def _has_subscribers(self) -> bool:
        images = (output for output in self._outputs if output is not self._outputs[1])
        return any(output.get_subscription_count() for output in images)

    def _is_due(self, now: float) -> bool:
        """Whether max_rate allows a frame now; a camera's jitter makes none late."""
        if not self._settings.max_rate:
            return True
        period = 1 / self._settings.max_rate
        if now < self._due - period / 4:
            return False
        self._due = max(self._due, now - period / 4) + period
        return True

    def _warn_of_colours(self, message: Any) -> None:
        if not self._colours_seen:
            self._colours_seen = True
            if is_false_colour(message):
                self._warn_once(FALSE_COLOUR.format(self._inputs[0].topic_name))

    # ... and in the worker's thread

    def _upscale(self, frame: Frame) -> Frame:
        started = time.monotonic()
        stream, before = self._stream, self._stream.events
        pixels = self._patient(frame.pixels, stream, frame.stamp_ns)
        upscaling = time.monotonic() - started
        state = self._state(frame, stream, before)
        is_dropped = self._settings.on_repeat == "drop" and stream.is_repeat
        return frame._replace(
            pixels=pixels, upscaling=upscaling, scale=len(pixels) // len(frame.pixels),
            is_dropped=is_dropped, state=state,
        )  # fmt: skip

    def _state(self, frame: Frame, stream: Stream, before: StreamEvents) -> DiagnosticStatus | None:
        """The state of the stream after a frame; None where it is the same as before it."""
        events, known = stream.events, stream.calibration
        kind, since = events.event.kind, events.since_ns or frame.stamp_ns
        is_frozen = kind == "repeat" and frame.stamp_ns - since >= 1e9 * LONG_REPEAT
        if is_frozen or kind in ("offset", "flat"):
            self._statistics.explained()
        if known is not None and not stream.fits(frame.pixels.shape):
            height, width = known.bad.shape
            self._warn_once(
                f"calibration {self._settings.calibration} is of frames of {width}x{height} "
                "pixels: it is not used; call ~/calibrate to write a new one"
            )
        is_first = not any(before.counts.values())
        if kind == before.event.kind and kind not in MOMENTARY and not is_first:
            return None
        name = f"{self.get_fully_qualified_name().lstrip('/')}: stream"
        return stream_state(name, frame.message.header.frame_id, events)

    def _publish(self, frame: Frame) -> None:
        if frame.state is not None:
            self._state_output.publish(frame.state)
        if frame.is_dropped:
            self._statistics.dropped("repeated")
            return
        image = image_message(frame.message, frame.pixels)
        info = self._info_of_result(frame)
        image_output, info_output, *_ = self._outputs
        image_output.publish(image)
        if info is not None:
            info_output.publish(info)
        self._derived.publish(frame.message, frame.pixels, self._stream, self._settings)
        self._statistics.published(time.monotonic() - frame.arrived, frame.upscaling)

    def _info_of_result(self, frame: Frame) -> CameraInfo | None:
        """The camera_info of the result; None, and a warning once, of images of another size."""
        info = self._info
        if info is None:
            return None
        try:
            rows = self._settings.telemetry_rows
            result = camera_info_of_result(info, frame.message, frame.scale, frame.crop, rows)
        except ValueError as error:
            self._mismatch = str(error)
            self._warn_once(self._mismatch)
            return None
        self._mismatch = ""
        return result

    def _info_trouble(self) -> str:
        """What is wrong with the camera_info of the active stream, "" if nothing is."""
        since = self._first_image
        if self._info is not None or since is None or time.monotonic() - since < INFO_PATIENCE:
            return self._mismatch
        text = (
            f"no camera_info on {self._inputs[1].topic_name}: the results have none; if the "
            "camera's has another name, launch with camera_info:=NAME"
        )
        self._warn_once(text)
        return text

    def _warn_once(self, text: str) -> None:
        if text not in self._warned and len(self._warned) < MOST_WARNINGS:
            self._warned.add(text)
            self.get_logger().warning(text)

    def _on_frame_failed(self, error: Exception) -> None:
        if isinstance(error, Stopped):
            self._statistics.dropped("stopped")
        else:
            self._statistics.dropped("failed", described(error))

    # Shutter and calibration

    def _new_stream(self) -> Stream:
        settings = self._settings
        return Stream(settings.no_data_values, settings.max_pause, self._calibration)

    def _load_calibration(self) -> None:
        """Read the calibration, if there is one; a bad one is not used, with a warning."""
        self._calibration, path = None, self._settings.calibration
        try:
            self._calibration = Calibration.load(path) if path else None
        except FileNotFoundError:
            self.get_logger().info(f"there is no calibration {path} yet: ~/calibrate writes it")
        except ValueError as error:
            self.get_logger().warning(f"calibration not used: {error}")

    def _on_calibrate(self, _: Trigger.Request, answer: Trigger.Response) -> Trigger.Response:
        """Save what the stream tells of the camera."""
        path = self._settings.calibration
        try:
            if not path:
                raise ValueError("the parameter calibration names no file: set it, then configure")
            found = self._stream.calibrate()
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
        """Begin a new stream, with what the calibration says."""
        self._stream = self._new_stream()
        answer.success, answer.message = True, "the next frame begins a new stream"
        return answer

    def _find_flag(self) -> None:
        """Subscribe to the shutter flag once somebody publishes one."""
        topic = self.resolve_topic_name("shutter_flag")
        for kind in {end.topic_type for end in self.get_publishers_info_by_topic(topic)}:
            if kind in FLAG_TYPES:
                qos = topic_qos(1, "best_effort")
                self._flag = self.create_subscription(FLAG_TYPES[kind], topic, self._on_flag, qos)
                return
            known = ", ".join(FLAG_TYPES)
            self._warn_once(f"{topic} is a {kind}, which tells no shutter: ignored; read: {known}")

    def _on_flag(self, message: object) -> None:
        self._stream.is_closed = is_closed(message)
        self._statistics.explained()

    # Operator

    def _on_set_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        changes = {p.name: p.value for p in parameters if p.name in NAMES}
        try:
            updated = changed(self._settings, self._upscaler is not None, changes)
            if self._upscaler is not None:
                self._upscaler.change(**updated.live_arguments())
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self._settings = updated
        self._stream.no_data = updated.no_data_values
        self._stream.max_pause = updated.max_pause
        return SetParametersResult(successful=True)

    def _publish_diagnostics(self) -> None:
        summary, upscaler = self._statistics.summary(), self._upscaler
        values = stream_values(summary)
        if (scene := self._stream.seen) is not None:
            values |= scene_values(scene) | event_values(self._stream.events)
        values |= fallback_values(self._stream)
        if upscaler is not None:
            values |= model_values(upscaler)
        if self._fault:
            level, text = DiagnosticStatus.ERROR, self._fault
        elif self._worker is None:
            level, text = DiagnosticStatus.OK, "inactive" if upscaler else "unconfigured"
        else:
            if self._flag is None:
                self._find_flag()
            found = self._findings(summary)
            self._log_findings([one for one in found if one.kind != "camera_info"])  # told once
            trouble = self._info_trouble()
            values["camera_info"] = trouble or ("none yet" if self._info is None else "used")
            level, text = verdict(found, summary)
        name = f"{self.get_fully_qualified_name().lstrip('/')}: super-resolution"
        stamp: Time = self.get_clock().now().to_msg()
        self._diagnostics.publish(
            diagnostic_array(stamp, name, self._settings.model, level, text, values)
        )

    def _findings(self, summary: Summary) -> list[Finding]:
        """What is wrong with the active stream and around it."""
        since, topic = self._worker.computing_since, self._inputs[0].topic_name
        computing = 0.0 if since is None else time.monotonic() - since
        found = findings(summary, topic, computing, self._settings.min_rate)
        told, self._fallbacks = self._fallbacks, self._stream.fallbacks
        fallback = (
            f"{self._fallbacks - told} results are plain bicubic: {self._stream.last_fallback}; "
            "configure the node anew, and check precision, model and the machine's memory"
        )
        warnings = {
            "plain bicubic": fallback if self._fallbacks > told else "",
            "camera_info": self._info_trouble(),
            "out of memory": self._patient.trouble,
            "twin": twin_of(self, self._outputs[0].topic_name),
        }
        level = DiagnosticStatus.WARN
        return [*found, *(Finding(kind, level, text) for kind, text in warnings.items() if text)]


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; returns what :func:`run_nodes` does."""
    return run_nodes(lambda: [SrNode()], args)


def run_nodes(make: Callable[[], list[SrNode]], args: list[str] | None = None) -> int:
    """Run the nodes that ``make`` gives in one process until SIGINT or SIGTERM.

    Returns 0; 1 when a start parameter is not allowed or build_only did not build; 2 when the
    arguments, or a file of parameters, cannot be read.
    """
    keep_freed_memory()
    log, nodes, failed = rclpy.logging.get_logger("sr_node"), [], False
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except Exception as error:
        log.fatal(f"the arguments cannot be read: {' '.join(described(error).split())}")
        return 2
    try:
        as_before()
        install_signal_handlers(SignalHandlerOptions.ALL)
        nodes = make()
        _spin(nodes)
    except ValueError as error:
        log.fatal(str(error))
        failed = True
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Exception:
        if rclpy.ok():  # else SIGINT or SIGTERM came while the node was being made
            raise
    # Without a terminal, launch hands on a SIGINT that came to this process already.
    uninstall_signal_handlers()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    for node in nodes:
        node.stop_stream()
        node.destroy_node()
        failed = failed or node.failed
    rclpy.try_shutdown()
    if any_computing():
        # A frame of minutes: end without tearing the network down under it.
        sys.stdout.flush()
        os._exit(0)
    return int(failed)


def _spin(nodes: list[SrNode]) -> None:
    """Until the context ends; an error of a callback, rclpy's own too, is logged and left."""
    executor = SingleThreadedExecutor()
    for node in nodes:
        executor.add_node(node)
    while rclpy.ok():
        try:
            executor.spin()
        except (KeyboardInterrupt, ExternalShutdownException):
            return
        except Exception as error:
            # rclpy's own: an invalid request of a transition on Jazzy, a /clock before 0, ...
            text = f"left by a callback: {described(error)}"
            nodes[0].get_logger().error(text, throttle_duration_sec=WINDOW)


if __name__ == "__main__":
    sys.exit(main())
