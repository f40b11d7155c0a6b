"""What the node publishes of a result, and what is made of it for those who subscribe.

Nothing is computed for a topic without a subscriber.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.lifecycle import LifecycleNode, LifecyclePublisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from difiisr_models import Stream
from difiisr_models.radiometry import temperatures
from difiisr_models.tone_mapping import coloured
from difiisr_models.uncertainty import DeviationTable, standard_deviations, table_of_model
from difiisr_ros.image_codec import (
    ImageCodecError,
    compress,
    encode_rows,
    is_colour,
    result_encoding,
)
from difiisr_ros.parameters import Parameters
from difiisr_ros.refusals import described

DEPTH = 5  # a reliable subscriber may be this many results late


def overridable(depth: int, reliability: str) -> dict[str, Any]:
    """Arguments of a topic's end: keep-last QoS, one for each topic, since overrides change it."""
    profile = QoSProfile(depth=depth, reliability=ReliabilityPolicy[reliability.upper()])
    options = QoSOverridingOptions.with_default_policies()
    return {"qos_profile": profile, "qos_overriding_options": options}


def image_message(source: Any, pixels: np.ndarray, encoding: str | None = None) -> Image:
    """The ``sensor_msgs/Image`` of ``(H, W)`` or ``(H, W, 3)`` pixels.

    The header is that of ``source``, the encoding, unless it is given, what
    :func:`.result_encoding` makes of its own; rows are unpadded and little endian. The message
    shares the memory of ``pixels``: it is for publishing.

    Raises:
        ImageCodecError: dtype and shape are not those of the encoding.
    """
    encoding = encoding or result_encoding(source.encoding, pixels)
    rows = encode_rows(pixels, encoding)
    message = Image(
        header=source.header,
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=rows.shape[1],
    )
    # The property would copy every byte; rclpy's serialisation reads any buffer of bytes.
    message._data = rows.reshape(-1)
    return message


class Outputs:
    """The publishers of a node, of which there are none before :meth:`create`."""

    def __init__(self, node: LifecycleNode, warn_once: Callable[[str], None]) -> None:
        self._node, self._warn_once = node, warn_once
        self._publishers: dict[str, LifecyclePublisher] = {}

    def create(self, settings: Parameters) -> None:
        """Make those that are asked for; ``compressed`` lies below the topic of the result."""

        def create(name: str, kind: type, topic: str) -> None:
            how = overridable(DEPTH, settings.output_reliability)
            self._publishers[name] = self._node.create_lifecycle_publisher(kind, topic, **how)

        create("image", Image, "sr/image_raw")
        create("info", CameraInfo, "sr/camera_info")
        create("compressed", CompressedImage, f"{self.topic}/compressed")
        if settings.unit != "counts":
            create("temperature", Image, "sr/temperature")
        if settings.uncertainty:
            self._table = table_of_model(settings.model)
            create("uncertainty", Image, "sr/uncertainty")
        if settings.preview != "none":
            create("preview", Image, "sr/preview")
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._publishers["state"] = self._node.create_lifecycle_publisher(
            DiagnosticStatus, "sr/stream_state", latched
        )

    @property
    def topic(self) -> str:
        """Of the result, its full name."""
        return self._publishers["image"].topic_name

    @property
    def topics(self) -> str:
        """All of them, in words."""
        return ", ".join(publisher.topic_name for publisher in self._publishers.values())

    def is_wanted(self) -> bool:
        """Whether somebody subscribes to a result, or what is made of one."""
        images = self._publishers.keys() - {"info", "state"}
        return any(self._publishers[name].get_subscription_count() for name in images)

    def publish_state(self, state: DiagnosticStatus) -> None:
        """Publish the state of the stream, also to who subscribes later."""
        self._publishers["state"].publish(state)

    def publish(
        self,
        source: Any,
        pixels: np.ndarray,
        info: CameraInfo | None,
        stream: Stream,
        settings: Parameters,
    ) -> None:
        """Publish the result ``pixels`` of the image ``source``, with its camera_info if known."""
        self._publishers["image"].publish(image_message(source, pixels))
        if info is not None:
            self._publishers["info"].publish(info)
        make = {
            "compressed": lambda: _compressed(source, pixels),
            "temperature": lambda: _temperature(source, pixels, stream, settings),
            "uncertainty": lambda: _uncertainty(source, pixels, stream, self._table),
            "preview": lambda: _preview(source, pixels, stream, settings),
        }
        for name, publisher in self._publishers.items():
            if name not in make or not publisher.get_subscription_count():
                continue
            try:
                publisher.publish(make[name]())
            except Exception as error:  # the result itself is published
                self._warn_once(f"nothing on {publisher.topic_name}: {described(error)}")

    def destroy(self) -> None:
        """Leave no topic behind."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers.clear()


def _compressed(source: Any, pixels: np.ndarray) -> CompressedImage:
    form, data = compress(pixels, result_encoding(source.encoding, pixels))
    message = CompressedImage(header=source.header, format=form)
    message._data = data
    return message


def _temperature(source: Any, pixels: np.ndarray, stream: Stream, settings: Parameters) -> Image:
    if is_colour(source.encoding):
        raise ImageCodecError(f"encoding {source.encoding} holds colours: they are no temperatures")
    values = temperatures(pixels, settings, settings.temperature_unit)
    return image_message(source, _without_invalid(values, stream), "32FC1")


def _uncertainty(source: Any, pixels: np.ndarray, stream: Stream, table: DeviationTable) -> Image:
    if (seen := stream.seen) is None:
        raise ImageCodecError("the pipeline published knows no range and no noise")
    values = standard_deviations(pixels, seen.range, seen.noise, table)
    return image_message(source, _without_invalid(values, stream), "32FC1")


def _without_invalid(values: np.ndarray, stream: Stream) -> np.ndarray:
    """``values`` of a result, NaN where its frame had no measurement."""
    if stream.seen is not None and (invalid := stream.seen.invalid) is not None:
        scale = len(values) // len(invalid)
        values[invalid.repeat(scale, 0).repeat(scale, 1)] = np.nan
    return values


def _preview(source: Any, pixels: np.ndarray, stream: Stream, settings: Parameters) -> Image:
    if pixels.ndim == 3:  # a display's values already
        return image_message(source, pixels)
    stream.tone.update(pixels if stream.seen is None else stream.seen.counts)
    assert settings.preview != "none", "none has no publisher"
    picture = coloured(stream.tone.grey(pixels), settings.preview)
    return image_message(source, picture, "mono8" if picture.ndim == 2 else "rgb8")
