"""``sensor_msgs/Image`` fields <-> numpy arrays, without rclpy and without cv_bridge.

Works on anything that has the fields of the message: rclpy messages (``data`` is ``array.array``)
and rosbags' dataclasses (``data`` is a numpy array). Values are never rescaled: counts stay counts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# encoding -> (dtype, channels); sensor_msgs/image_encodings.hpp
ENCODINGS: dict[str, tuple[np.dtype, int]] = {
    "mono8": (np.dtype(np.uint8), 1),
    "8UC1": (np.dtype(np.uint8), 1),
    "mono16": (np.dtype(np.uint16), 1),
    "16UC1": (np.dtype(np.uint16), 1),
    "32FC1": (np.dtype(np.float32), 1),
    "rgb8": (np.dtype(np.uint8), 3),
    "bgr8": (np.dtype(np.uint8), 3),
}


class ImageCodecError(ValueError):
    """Fields that contradict each other, or an encoding outside :data:`ENCODINGS`."""


def image_to_array(image: Any) -> np.ndarray:
    """Return the pixels of a ``sensor_msgs/Image`` as (H, W) or (H, W, 3), of :data:`ENCODINGS`.

    ``image.data`` is any buffer of bytes; the result shares its memory where no conversion is
    needed, so treat it as read-only. It is C-contiguous, aligned and of native byte order.
    Channels keep the order of the encoding. Bytes after the last row are ignored.

    Raises:
        ImageCodecError: an unknown encoding, an empty image, a ``step`` shorter than a row, or
            fewer than height x step bytes; the text has the numbers.
    """
    encoding, height, width, step = image.encoding, image.height, image.width, image.step
    dtype, channels = _layout(encoding)
    if height < 1 or width < 1:
        raise ImageCodecError(f"image is empty: width {width}, height {height}")
    row_bytes = width * channels * dtype.itemsize
    if step < row_bytes:
        raise ImageCodecError(
            f"step {step} is shorter than a row: {width} px of {encoding} are {row_bytes} bytes"
        )
    buffer = np.frombuffer(image.data, np.uint8) if len(image.data) else np.empty(0, np.uint8)
    if buffer.size < height * step:
        raise ImageCodecError(
            f"data holds {buffer.size} bytes, but height {height} x step {step} is {height * step}"
        )
    rows = buffer[: height * step].reshape(height, step)[:, :row_bytes]
    stored = dtype.newbyteorder(">" if image.is_bigendian else "<")
    pixels = np.require(np.ascontiguousarray(rows).view(stored), dtype, ["C", "ALIGNED"])
    return pixels.reshape(height, width, 3) if channels == 3 else pixels


def encode_rows(pixels: np.ndarray, encoding: str) -> np.ndarray:
    """Return the bytes of the message's rows, (H, step) uint8, of (H, W) or (H, W, 3) pixels.

    Rows are unpadded and little endian, and share the memory of ``pixels``.

    Raises:
        ImageCodecError: the encoding is unknown, or dtype and shape are not the encoding's:
            nothing is ever converted silently.
    """
    dtype, channels = _layout(encoding)
    shape = pixels.shape[:2] if channels == 1 else (*pixels.shape[:2], channels)
    if pixels.dtype != dtype or pixels.shape != shape or not pixels.size:
        raise ImageCodecError(
            f"{encoding} holds {dtype} with {channels} channel(s), "
            f"got {pixels.dtype} of shape {pixels.shape}"
        )
    little_endian = np.ascontiguousarray(pixels, dtype.newbyteorder("<"))
    return little_endian.view(np.uint8).reshape(len(pixels), -1)


def _layout(encoding: str) -> tuple[np.dtype, int]:
    if encoding not in ENCODINGS:
        raise ImageCodecError(f"encoding {encoding!r} is not one of {', '.join(ENCODINGS)}")
    return ENCODINGS[encoding]
