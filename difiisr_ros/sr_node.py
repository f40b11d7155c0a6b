"""Lifecycle node: `image_raw`, `camera_info` in; `sr/image_raw`, `sr/camera_info` out, x4.

Run it with `python -m difiisr_ros.sr_node --ros-args -p autostart:=true` or launch/sr.launch.py.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import wraps
from typing import NamedTuple

import numpy as np
import rclpy
import torch
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.signals import uninstall_signal_handlers
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, Image

from difiisr_models import load_upscaler
from difiisr_ros.diagnostics import (
    FAILED,
    MALFORMED,
    STALE,
    TOO_LARGE,
    assess,
    diagnostic_array,
    model_values,
    stream_values,
)
from difiisr_ros.frame_worker import FrameWorker, any_computing
from difiisr_ros.freed_memory import keep_freed_memory, return_freed_memory
from difiisr_ros.image_codec import ImageCodecError, image_to_array
from difiisr_ros.image_stream import ImageStream
from difiisr_ros.parameters import ParameterError, Parameters, changed, declare, undeclared
from difiisr_ros.result_publisher import ResultPublisher, image_message, topic_qos
from difiisr_ros.stream_statistics import StreamStatistics

LOG_PERIOD = 5.0  # seconds between two log lines of the same kind
STOP_TIMEOUT = 2.0  # seconds that a transition waits for the frame being computed
DEFAULT_THREADS = torch.get_num_threads()


class Frame(NamedTuple):
    """An image on its way to the worker."""

    message: Image
    pixels: np.ndarray
    arrived: float  # monotonic seconds


class Result(NamedTuple):
    """An upscaled image on its way out."""

    frame: Frame
    image: Image
    upscaling: float  # seconds


Transition = Callable[["SrNode", LifecycleState], TransitionCallbackReturn]


def _with_reason(transition: Transition) -> Transition:
    """Keep the reason of an exception for `on_error`; rclpy alone would lose it."""

    @wraps(transition)
    def guarded(node: SrNode, state: LifecycleState) -> TransitionCallbackReturn:
        node._fault = ""
        try:
            return transition(node, state)
        except Exception as error:
            node._fault = f"{transition.__name__[3:]} failed: {type(error).__name__}: {error}"
            return TransitionCallbackReturn.ERROR

    return guarded


class SrNode(LifecycleNode):
    """Super-resolves a thermal image stream.

    The executor's thread only receives, checks and hands over; a `FrameWorker` upscales and
    publishes. Parameters and topics: README.
    """

    def __init__(self, **node_arguments: object) -> None:
        """Declare parameters and start diagnostics; raises ParameterError on a bad parameter."""
        super().__init__("sr_node", **node_arguments)
        self._settings = declare(self)
        if unknown := undeclared(self):
            self.get_logger().warning(f"there are no parameters {', '.join(unknown)}: ignored")
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._upscaler = None
        self._worker: FrameWorker[Frame, Result] | None = None
        self._info: CameraInfo | None = None
        self._inputs: list[Subscription] = []
        self._results: ResultPublisher | None = None
        self._fault = ""
        self.failed = False  # what build_only was started for
        self._statistics = StreamStatistics()
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
        settings = self._settings
        torch.set_num_threads(settings.threads or DEFAULT_THREADS)
        self._upscaler = load_upscaler(settings.model, **settings.load_arguments())
        self._upscaler.warm_up()
        self._results = ResultPublisher(self, settings.output_reliability, self._upscaler.scale)
        # What is loaded stays: looking through it for garbage would stop frames for 80 ms.
        gc.collect()
        gc.freeze()
        passed_over = [f"; not {name}: {why}" for name, why in self._upscaler.passed_over]
        self.get_logger().info(
            f"configured {self._upscaler.name} ({self._upscaler.backend} on "
            f"{self._upscaler.device}{''.join(passed_over)}) in {time.monotonic() - started:.1f} s"
        )
        if settings.build_only:
            if self._upscaler.backend != "tensorrt":
                why = "; ".join(f"{name}: {reason}" for name, reason in self._upscaler.passed_over)
                raise ValueError(f"build_only: no engine was built for {settings.model}: {why}")
            self.get_logger().info(f"build_only: {settings.engine} is ready, the node ends")
            self.create_timer(0.0, self.context.try_shutdown, clock=self._steady)
        return super().on_configure(state)

    @_with_reason
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin a new stream: subscribe, forget the range and the numbers of the last one."""
        self._statistics = StreamStatistics()
        self._stream = ImageStream()
        self._info = None
        self._worker = FrameWorker(self._compute, self._deliver, self._on_frame_failed)
        for message_type, topic, callback in (
            (Image, "image_raw", self._on_image),
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
        inputs = [subscription.topic_name for subscription in self._inputs]
        self.get_logger().info(f"active: {', '.join(inputs)} -> {', '.join(self._results.topics)}")
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
        worker, self._worker = self._worker, None
        worker.stop(STOP_TIMEOUT)

    def _release(self) -> None:
        self.stop_stream()
        if self._upscaler is None:
            return
        device = self._upscaler.device
        self._upscaler = None
        if self._results is not None:
            self._results.destroy()
            self._results = None
        gc.unfreeze()
        gc.collect()
        return_freed_memory()
        if device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _start(self) -> None:
        self._autostart.cancel()
        configured = self.trigger_configure() == TransitionCallbackReturn.SUCCESS
        if configured and not self._settings.build_only:
            self.trigger_activate()
        elif self._settings.build_only and not configured:
            self.failed = True
            self.context.try_shutdown()

    # Parameters

    def _on_set_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        names = Parameters.__dataclass_fields__
        changes = {p.name: p.value for p in parameters if p.name in names}
        try:
            updated = changed(self._settings, self._upscaler is not None, changes)
            if self._upscaler is not None:
                self._upscaler = self._upscaler.with_settings(**updated.frame_settings())
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self._settings = updated
        return SetParametersResult(successful=True)

    # The executor's thread

    def _on_camera_info(self, info: CameraInfo) -> None:
        self._info = info

    def _on_image(self, message: Image) -> None:
        arrived = time.monotonic()
        stamp = message.header.stamp
        self._statistics.received(stamp.sec * 1_000_000_000 + stamp.nanosec)
        try:
            pixels = image_to_array(message)
        except ImageCodecError as error:
            self._drop(MALFORMED, str(error))
            return
        megapixels = message.width * message.height / 1e6
        if megapixels > self._settings.max_frame_megapixels:
            self._drop(
                TOO_LARGE,
                f"{message.width}x{message.height} is {megapixels:.2f} megapixels, more than "
                f"max_frame_megapixels {self._settings.max_frame_megapixels}",
            )
        elif self._settings.lazy and not self._results.wanted:
            self._statistics.idle()
        elif self._worker.submit(Frame(message, pixels, arrived)):
            self._statistics.dropped(STALE)

    def _drop(self, reason: str, text: str) -> None:
        self._statistics.dropped(reason, text)
        self.get_logger().warning(f"image refused: {text}", throttle_duration_sec=LOG_PERIOD)

    def _publish_diagnostics(self) -> None:
        summary, upscaler = self._statistics.summary(), self._upscaler
        values = stream_values(summary)
        if upscaler is not None:
            values |= model_values(upscaler)
        if self._fault:
            level, text = DiagnosticStatus.ERROR, self._fault
        elif self._worker is None:
            level, text = DiagnosticStatus.OK, "inactive" if upscaler else "unconfigured"
        else:
            level, text = assess(summary, self._inputs[0].topic_name)
        name = f"{self.get_fully_qualified_name().lstrip('/')}: super-resolution"
        stamp: Time = self.get_clock().now().to_msg()
        self._diagnostics.publish(
            diagnostic_array(stamp, name, self._settings.model, level, text, values)
        )

    # The worker's thread

    def _compute(self, frame: Frame) -> Result:
        started = time.monotonic()
        pixels = self._stream.upscale(self._upscaler, frame.pixels)
        upscaling = time.monotonic() - started
        return Result(frame, image_message(frame.message, pixels), upscaling)

    def _deliver(self, result: Result) -> None:
        self._results.publish(result.frame.message, result.image, self._info)
        self._statistics.published(time.monotonic() - result.frame.arrived, result.upscaling)

    def _on_frame_failed(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        self._statistics.dropped(FAILED, text)
        if self.context.ok():
            self.get_logger().error(f"frame failed: {text}", throttle_duration_sec=LOG_PERIOD)


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM.

    Returns 0, or 1 when a start parameter is not allowed or build_only did not build.
    """
    keep_freed_memory()
    rclpy.init(args=args)
    try:
        node = SrNode()
    except ParameterError as error:
        rclpy.logging.get_logger("sr_node").fatal(str(error))
        rclpy.try_shutdown()
        return 1
    except Exception:
        if rclpy.ok():
            raise
        return 0  # SIGINT or SIGTERM came while it was being made
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        while rclpy.ok():
            try:
                executor.spin()
            except rclpy_implementation.RCLError as error:
                # Jazzy throws an invalid transition request out of spin().
                node.get_logger().error(str(error))
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    # Without a terminal, launch hands on a SIGINT that came to this process already.
    uninstall_signal_handlers()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    node.stop_stream()
    node.destroy_node()
    rclpy.try_shutdown()
    if any_computing():
        # A frame of minutes: end without tearing the network down under it.
        sys.stdout.flush()
        os._exit(0)
    return int(node.failed)


if __name__ == "__main__":
    sys.exit(main())
