"""Pixels of `sensor_msgs/Image` <-> numpy arrays: encoding, row step and byte order, no messages.

Values are never rescaled: counts stay counts.
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
    """Fields that contradict each other, or an encoding outside `ENCODINGS`."""


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
    dtype, channels = _layout(encoding)
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


def encode(pixels: np.ndarray, encoding: str) -> np.ndarray:
    """Return the bytes of (H, W) or (H, W, 3) pixels as (H, step) uint8: unpadded, little endian.

    Raises ImageCodecError when the encoding is unknown or dtype and shape are not the encoding's:
    nothing is ever converted silently.
    """
    dtype, channels = _layout(encoding)
    shape_fits = pixels.ndim == 2 if channels == 1 else pixels.ndim == 3 and pixels.shape[2] == 3
    if pixels.dtype != dtype or not shape_fits or not pixels.size:
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
