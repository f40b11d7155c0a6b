"""What is made of a result for those who subscribe: PNG, temperatures, deviations, a picture.

Nothing is computed for a topic without a subscriber.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.lifecycle import LifecyclePublisher
from sensor_msgs.msg import CompressedImage, Image

from difiisr_models import Stream
from difiisr_models.radiometry import temperatures
from difiisr_models.tone_mapping import coloured
from difiisr_models.uncertainty import DeviationTable, standard_deviations, table_of_model
from difiisr_ros.compressed_image import compress
from difiisr_ros.image_codec import ImageCodecError, encode_rows, is_colour, result_encoding
from difiisr_ros.parameters import Parameters


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


class DerivedOutputs:
    """Publishers beside that of the result: ``compressed`` below its topic, and what is asked for.

    Attributes:
        publishers: by what they publish: compressed, temperature, uncertainty, preview.
    """

    def __init__(
        self,
        create: Callable[[type, str], LifecyclePublisher],
        result_topic: str,
        settings: Parameters,
        warn_once: Callable[[str], None],
    ) -> None:
        """Let ``create`` make publishers (type, topic); ``result_topic`` is the resolved name."""
        self._warn_once = warn_once
        topics = {"compressed": (CompressedImage, f"{result_topic}/compressed")}
        if settings.unit != "counts":
            topics["temperature"] = (Image, "sr/temperature")
        if settings.uncertainty:
            self._table = table_of_model(settings.model)
            topics["uncertainty"] = (Image, "sr/uncertainty")
        if settings.preview != "none":
            topics["preview"] = (Image, "sr/preview")
        self.publishers = {name: create(*topic) for name, topic in topics.items()}

    def publish(
        self, source: Any, pixels: np.ndarray, stream: Stream, settings: Parameters
    ) -> None:
        """Publish what somebody subscribes to, of the result ``pixels`` of the image ``source``."""
        make = {
            "compressed": lambda: _compressed(source, pixels),
            "temperature": lambda: _temperature(source, pixels, stream, settings),
            "uncertainty": lambda: _uncertainty(source, pixels, stream, self._table),
            "preview": lambda: _preview(source, pixels, stream, settings),
        }
        for name, publisher in self.publishers.items():
            if not publisher.get_subscription_count():
                continue
            try:
                publisher.publish(make[name]())
            except ImageCodecError as error:
                self._warn_once(f"nothing on {publisher.topic_name}: {error}")


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
