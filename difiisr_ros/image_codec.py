"""`sensor_msgs/Image` fields <-> numpy arrays, without rclpy and without cv_bridge.

Works on anything that has the fields of the message: rclpy messages (`data` is `array.array`) and
rosbags' dataclasses (`data` is a numpy array). Values are never rescaled: counts stay counts.
"""

from __future__ import annotations

import array
from typing import Any, NamedTuple

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
    """A message whose fields contradict each other, or an encoding outside `ENCODINGS`."""


class EncodedImage(NamedTuple):
    """All fields of `sensor_msgs/Image` but the header; rows unpadded, little endian."""

    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: array.array


def decode(
    encoding: str, height: int, width: int, step: int, is_bigendian: int, data: Any
) -> np.ndarray:
    """Return the pixels as (H, W) or (H, W, 3), C-contiguous, native byte order.

    `data` is any buffer of bytes; the result shares its memory where no conversion is needed, so
    treat it as read-only. Dtype: uint8 (mono8, 8UC1, rgb8, bgr8), uint16 (mono16, 16UC1), float32
    (32FC1). Channels keep the order of the encoding. Bytes after the last row are ignored.

    Raises ImageCodecError, with the numbers, for an unknown encoding, an empty image, a `step`
    shorter than a row, or fewer than height x step bytes.
    """
    if encoding not in ENCODINGS:
        raise ImageCodecError(f"encoding {encoding!r} is not one of {', '.join(ENCODINGS)}")
    dtype, channels = ENCODINGS[encoding]
    if height < 1 or width < 1:
        raise ImageCodecError(f"image is empty: width {width}, height {height}")
    row_bytes = width * channels * dtype.itemsize
    if step < row_bytes:
        raise ImageCodecError(
            f"step {step} is shorter than a row: {width} px of {encoding} are {row_bytes} bytes"
        )
    buffer = np.frombuffer(data, np.uint8) if len(data) else np.empty(0, np.uint8)
    if buffer.size < height * step:
        raise ImageCodecError(
            f"data holds {buffer.size} bytes, but height {height} x step {step} is {height * step}"
        )
    rows = buffer[: height * step].reshape(height, step)[:, :row_bytes]
    stored = dtype.newbyteorder(">" if is_bigendian else "<")
    pixels = np.require(np.ascontiguousarray(rows).view(stored), dtype, ["C", "ALIGNED"])
    return pixels.reshape(height, width, 3) if channels == 3 else pixels


def encode(pixels: np.ndarray, encoding: str) -> EncodedImage:
    """Return the message fields of (H, W) or (H, W, 3) pixels of the encoding's own dtype.

    Raises ImageCodecError when the encoding is unknown or dtype and shape are not the encoding's:
    nothing is ever converted silently.
    """
    if encoding not in ENCODINGS:
        raise ImageCodecError(f"encoding {encoding!r} is not one of {', '.join(ENCODINGS)}")
    dtype, channels = ENCODINGS[encoding]
    shape_fits = pixels.ndim == 2 if channels == 1 else pixels.ndim == 3 and pixels.shape[2] == 3
    if pixels.dtype != dtype or not shape_fits or not pixels.size:
        raise ImageCodecError(
            f"{encoding} holds {dtype} with {channels} channel(s), "
            f"got {pixels.dtype} of shape {pixels.shape}"
        )
    height, width = pixels.shape[:2]
    little_endian = np.ascontiguousarray(pixels, dtype.newbyteorder("<"))
    data = array.array("B")
    # The message class checks any other type than array('B') byte by byte in Python.
    data.frombytes(little_endian.view(np.uint8).data.cast("B"))
    return EncodedImage(height, width, encoding, 0, width * channels * dtype.itemsize, data)


def image_to_array(message: Any) -> np.ndarray:
    """`decode` for a whole `sensor_msgs/Image` of any ROS library."""
    return decode(
        message.encoding,
        message.height,
        message.width,
        message.step,
        message.is_bigendian,
        message.data,
    )
