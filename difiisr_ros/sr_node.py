"""Lifecycle node: ``image_raw``, ``camera_info`` in; ``sr/image_raw``, ``sr/camera_info`` out, x4.

Run it with ``python -m difiisr_ros.sr_node --ros-args -p autostart:=true`` or launch/sr.launch.py.
"""

from __future__ import annotations

import signal

from difiisr_ros import process_setup

if __name__ == "__main__":  # the imports take seconds, and begin threads
    process_setup.end_at_once(0, signal.SIGINT, signal.SIGTERM)
    process_setup.keep_freed_memory()

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from copy import copy
from dataclasses import fields
from functools import wraps
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions, install_signal_handlers, uninstall_signal_handlers
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from difiisr_models import Runtime, Stream, Upscaler
from difiisr_models.model_loading import load_quickest
from difiisr_models.settings import Crop
from difiisr_ros import diagnostics, image_codec
from difiisr_ros.camera_info import camera_info_of_result
from difiisr_ros.camera_state import CameraState
from difiisr_ros.frame_worker import FrameWorker, Stopped, any_computing
from difiisr_ros.outputs import Outputs, overridable
from difiisr_ros.parameters import NAMES, Parameters, changed, declare, undeclared
from difiisr_ros.patient_upscaler import PatientUpscaler
from difiisr_ros.refusals import described, guard_services, shortened
from difiisr_ros.stream_statistics import WINDOW, StreamStatistics, Summary

STOP_TIMEOUT = 1.0  # seconds that a transition waits for the frame being computed
INFO_PATIENCE = 3.0  # seconds after the first image that its camera_info may take
MOST_WARNINGS = 20  # of different troubles with the camera_info
RETRY_PERIOD = 5.0  # seconds
DEFAULT_THREADS = torch.get_num_threads()

_loaded: WeakValueDictionary[tuple, Upscaler] = WeakValueDictionary()


class Frame(NamedTuple):
    """An image on its way through the worker."""

    message: Any  # the Image as it came, or what was decompressed
    pixels: np.ndarray  # of the message but what crop cuts off, then the super-resolved ones
    stamp_ns: int  # of the message's header
    arrived: float  # monotonic seconds
    crop: Crop
    is_shut: bool  # says the camera's telemetry
    upscaling: float = 0.0  # seconds
    scale: int = 0  # of the result
    is_dropped: bool = False  # it is the frame before it, and is not to be published
    stream: Stream | None = None  # that it belongs to
    state: DiagnosticStatus | None = None  # of the stream, where it has changed


def _load(settings: Parameters) -> Upscaler:
    """An upscaler around the model asked for, which is in memory once for all nodes in a process.

    Frames of all nodes that share one are computed one by one.
    """
    key = tuple(getattr(settings, name) for name in ("model", *(f.name for f in fields(Runtime))))
    loaded = _loaded.get(key)
    if loaded is None:
        loaded = _loaded[key] = load_quickest(settings.model, **settings.load_arguments())
        return loaded
    own = copy(loaded)  # of the model and its lock there is one
    own.stream = Stream()
    own.change(**settings.live_arguments())
    return own


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

    def __init__(self, **node_arguments: Any) -> None:
        """Declare parameters and start diagnostics; raises ValueError on a bad parameter."""
        super().__init__("sr_node", **node_arguments)
        self._settings = declare(self)
        if unknown := undeclared(self):
            self.get_logger().warning(f"there are no parameters {', '.join(unknown)}: ignored")
        self.add_on_set_parameters_callback(self._on_set_parameters)
        guard_services(self)
        self._upscaler: Upscaler | None = None
        self._patient: PatientUpscaler | None = None
        self._outputs = Outputs(self, self._warn_once)
        self._inputs: list[Subscription] = []
        self._worker: FrameWorker[Frame, Frame] | None = None
        self._statistics = StreamStatistics()
        explained = self._statistics.explained
        self._camera = CameraState(self, self._settings, self._warn_once, explained)
        self._info: CameraInfo | None = None
        self._mismatch = ""  # why the camera_info is not used
        self._warned: set[str] = set()  # of troubles of this stream
        self._logged: dict[str, float] = {}  # kind of a finding -> monotonic seconds
        self._first_image: float | None = None  # monotonic seconds
        self._due = 0.0  # monotonic seconds: max_rate allows the next frame then
        self._colours_seen = False  # looked for in the first image only
        self._fault = ""
        self._fallbacks = 0  # results that are plain bicubic, as far as diagnostics told
        self.failed = False  # to configure, or what build_only was started for
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # Timers of the machine's own clock: simulated time may stand still.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        period = self._settings.diagnostics_period
        self.create_timer(period, self._publish_diagnostics, clock=self._steady)
        if self._settings.autostart:
            self._autostart = self.create_timer(0.0, self._start, clock=self._steady)

    # Transitions

    @_with_reason
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model, verify its hash, warm it up, create the publishers."""
        started = time.monotonic()
        self._forget_destroyed()
        settings = self._settings
        torch.set_num_threads(DEFAULT_THREADS)  # a model before may have had its own number
        upscaler = self._upscaler = _load(settings)
        upscaler.warm_up()
        self._patient = PatientUpscaler(upscaler)
        self._outputs.create(settings)
        self._camera.load_calibration()
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
        self._forget_destroyed()
        self._statistics.begin()
        self._camera.begin()
        self._info, self._mismatch, self._first_image = None, "", None
        self._due, self._colours_seen, self._fallbacks = 0.0, False, 0
        self._warned.clear()
        self._worker = FrameWorker(self._upscale, self._publish, self._on_frame_failed)
        settings, images = self._settings, (Image, "image_raw", self._on_image)
        if settings.transport != "raw":
            topic = f"{self.resolve_topic_name('image_raw')}/{settings.transport}"
            images = (CompressedImage, topic, self._on_image)
        for end in (images, (CameraInfo, "camera_info", self._on_camera_info)):
            how = overridable(settings.input_depth, settings.input_reliability)
            self._inputs.append(self.create_subscription(*end, **how))
        inputs = ", ".join(end.topic_name for end in self._inputs)
        self.get_logger().info(f"active: {inputs} -> {self._outputs.topics}")
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
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        self._inputs.clear()
        self._camera.leave_flag()
        worker, self._worker = self._worker, None
        worker.stop(STOP_TIMEOUT)

    def _forget_destroyed(self) -> None:
        """Of each publisher and subscription that is destroyed, rclpy keeps references for ever."""
        entities = self.default_callback_group.entities
        entities.difference_update([entity for entity in tuple(entities) if entity() is None])

    def _release(self) -> None:
        self.stop_stream()
        self._outputs.destroy()
        if self._upscaler is None:
            return
        self._upscaler = self._patient = None
        gc.unfreeze()
        gc.collect()
        process_setup.return_freed_memory()
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
        except image_codec.ImageTooLarge as error:
            self._statistics.count("too_large", str(error))
        except ValueError as error:
            self._statistics.count("malformed", shortened(str(error)))
        except Exception as error:
            self._on_frame_failed(error)

    def _hand_over(self, message: Image | CompressedImage, stamp_ns: int, arrived: float) -> None:
        idle = self._settings.lazy and not self._outputs.is_wanted()
        if idle and isinstance(message, CompressedImage):  # whose decoding takes long
            self._statistics.count("idle")
            return
        if not (idle or self._is_due(arrived)):
            self._statistics.count("over_rate")
            return
        most = self._settings.max_frame_megapixels
        if isinstance(message, CompressedImage):
            message = image_codec.decompress(message, most)
        pixels = image_codec.image_to_array(message)
        image_codec.check_megapixels(message.width, message.height, most)
        crop = self._settings.window(*pixels.shape[:2])
        if self._worker is None:
            raise Stopped
        self._warn_of_colours(message)
        if idle:
            self._statistics.count("idle")
            return
        is_shut = self._settings.is_shut(pixels)
        if self._worker.submit(Frame(message, crop.cut(pixels), stamp_ns, arrived, crop, is_shut)):
            self._statistics.count("stale")

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
            if image_codec.is_false_colour(message):
                self._warn_once(image_codec.FALSE_COLOUR.format(self._inputs[0].topic_name))

    # ... and in the worker's thread

    def _upscale(self, frame: Frame) -> Frame:
        started = time.monotonic()
        stream = self._camera.stream
        before, stream.encoding = stream.events, frame.message.encoding
        stream.is_closed = frame.is_shut or self._camera.is_closed
        assert self._patient is not None, "it is made with the worker"
        pixels = self._patient(frame.pixels, stream, frame.stamp_ns)
        upscaling = time.monotonic() - started
        state = self._camera.news(stream, before, frame.message, frame.pixels, frame.stamp_ns)
        is_dropped = self._settings.on_repeat == "drop" and stream.is_repeat
        return frame._replace(
            pixels=pixels, upscaling=upscaling, scale=len(pixels) // len(frame.pixels),
            is_dropped=is_dropped, stream=stream, state=state,
        )  # fmt: skip

    def _publish(self, frame: Frame) -> None:
        if frame.state is not None:
            self._outputs.publish_state(frame.state)
        if frame.is_dropped:
            self._statistics.count("repeated")
            return
        assert frame.stream is not None, "_upscale puts it there"
        info = self._info_of_result(frame)
        self._outputs.publish(frame.message, frame.pixels, info, frame.stream, self._settings)
        latency = time.monotonic() - frame.arrived
        self._statistics.count("published", latency=latency, upscaling=frame.upscaling)

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
            self._statistics.count("stopped")
        else:
            self._statistics.count("failed", described(error))

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
        self._camera.change(updated)
        return SetParametersResult(successful=True)

    def _publish_diagnostics(self) -> None:
        summary, upscaler = self._statistics.summary(), self._upscaler
        values = diagnostics.stream_values(summary)
        values |= diagnostics.camera_values(self._camera.stream)
        if upscaler is not None:
            values |= diagnostics.model_values(upscaler)
        if self._fault:
            level, text = DiagnosticStatus.ERROR, self._fault
        elif self._worker is None:
            level, text = DiagnosticStatus.OK, "inactive" if upscaler else "unconfigured"
        else:
            self._camera.find_flag()
            found = self._findings(summary)
            self._log(found)
            trouble = self._info_trouble()
            values["camera_info"] = trouble or ("none yet" if self._info is None else "used")
            level, text = diagnostics.verdict(found, summary)
        name = f"{self.get_fully_qualified_name().lstrip('/')}: super-resolution"
        status = diagnostics.status_message(name, self._settings.model, level, text, values)
        message = DiagnosticArray(status=[status])
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)

    def _log(self, found: list[diagnostics.Finding]) -> None:
        """Log each kind of finding once in the time that diagnostics look back."""
        now = time.monotonic()
        for kind, level, text in found:
            # Of the camera_info it is told once.
            if kind == "camera_info" or now - self._logged.get(kind, -WINDOW) < WINDOW:
                continue
            self._logged[kind] = now
            if level == DiagnosticStatus.ERROR:  # rclpy wants one severity at a place
                self.get_logger().error(text)
            else:
                self.get_logger().warning(text)

    def _findings(self, summary: Summary) -> list[diagnostics.Finding]:
        """What is wrong with the active stream and around it."""
        assert self._worker is not None, "there is a stream"
        since, topic = self._worker.computing_since, self._inputs[0].topic_name
        computing = 0.0 if since is None else time.monotonic() - since
        found = diagnostics.findings(summary, topic, computing, self._settings.min_rate)
        stream = self._camera.stream
        told, self._fallbacks = self._fallbacks, stream.fallbacks
        fallback = (
            f"{self._fallbacks - told} results are plain bicubic: {stream.last_fallback}; "
            "configure the node anew, and check precision, model and the machine's memory"
        )
        warnings = {
            "plain bicubic": fallback if self._fallbacks > told else "",
            "camera_info": self._info_trouble(),
            "out of memory": self._patient.trouble if self._patient else "",
            "twin": diagnostics.twin_of(self, self._outputs.topic),
        }
        level = DiagnosticStatus.WARN
        return [
            *found,
            *(diagnostics.Finding(kind, level, text) for kind, text in warnings.items() if text),
        ]


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; returns what :func:`run_nodes` does."""
    return run_nodes(lambda: [SrNode()], args)


def main_of_several(cameras: list[str] | None = None) -> int:
    """Run a node for each camera in one process; an argument is one's ROS arguments, as JSON."""
    given = sys.argv[1:] if cameras is None else cameras
    return run_nodes(
        lambda: [SrNode(cli_args=["--ros-args", *json.loads(words)]) for words in given], []
    )


def run_nodes(make: Callable[[], list[SrNode]], args: list[str] | None = None) -> int:
    """Run the nodes that ``make`` gives in one process until SIGINT or SIGTERM.

    Returns 0; 1 when a start parameter is not allowed or build_only did not build; 2 when the
    arguments, or a file of parameters, cannot be read.
    """
    log, nodes, code = rclpy.logging.get_logger("sr_node"), [], 0

    def told(error: Exception) -> int:
        log.fatal(f"the arguments cannot be read: {' '.join(described(error).split())}")
        return 2

    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except Exception as error:
        return told(error)
    try:
        process_setup.as_before()
        install_signal_handlers(SignalHandlerOptions.ALL)
        nodes = make()
        _spin(nodes)
    except ValueError as error:
        log.fatal(str(error))
        code = 1
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Exception as error:
        if rclpy.ok():  # else SIGINT or SIGTERM came while the node was being made
            if nodes or not isinstance(error, RuntimeError):  # rclpy's, of one node's arguments
                raise
            code = told(error)
    # Without a terminal, launch hands on a SIGINT that came to this process already.
    uninstall_signal_handlers()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    for node in nodes:
        node.stop_stream()
        node.destroy_node()
        code = code or int(node.failed)
    rclpy.try_shutdown()
    if any_computing():
        # A frame of minutes: end without tearing the network down under it.
        sys.stdout.flush()
        os._exit(0)
    return code


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
