"""``sensor_msgs/Image`` fields <-> numpy arrays, without rclpy; rare encodings need cv_bridge.

Works on anything that has the fields of the message: rclpy messages (``data`` is ``array.array``)
and rosbags' dataclasses (``data`` is a numpy array). Values are never rescaled: counts stay counts.
What goes out in another encoding than it came in: see :func:`result_encoding`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# encoding -> (dtype, channels), of what goes out as it comes in; sensor_msgs/image_encodings.hpp
ENCODINGS: dict[str, tuple[np.dtype, int]] = {
    "mono8": (np.dtype(np.uint8), 1),
    "8UC1": (np.dtype(np.uint8), 1),
    "mono16": (np.dtype(np.uint16), 1),
    "16UC1": (np.dtype(np.uint16), 1),
    "16SC1": (np.dtype(np.int16), 1),
    "32FC1": (np.dtype(np.float32), 1),
    "rgb8": (np.dtype(np.uint8), 3),
    "bgr8": (np.dtype(np.uint8), 3),
}
_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114  # ITU-R BT.601, as in cv_bridge
# encoding of 8 bits a channel -> weight of each in the luminance; 8UCn have OpenCV's order
_LUMINANCE: dict[str, tuple[float, ...]] = {
    "rgba8": (_RED, _GREEN, _BLUE, 0.0),
    "bgra8": (_BLUE, _GREEN, _RED, 0.0),
    "8UC3": (_BLUE, _GREEN, _RED),
    "8UC4": (_BLUE, _GREEN, _RED, 0.0),
    **dict.fromkeys(("yuv422", "uyvy"), (0.0, 1.0)),
    **dict.fromkeys(("yuv422_yuy2", "yuyv"), (1.0, 0.0)),
}
_STORED = {
    **ENCODINGS,
    "64FC1": (np.dtype(np.float64), 1),
    **{name: (np.dtype(np.uint8), len(weights)) for name, weights in _LUMINANCE.items()},
}
_MONOCHROME = {np.uint8: "mono8", np.uint16: "mono16", np.float32: "32FC1"}
FALSE_COLOUR = "{} is false colour: its values are a display's, no counts and no temperatures"
_NO_CHROMA = 128
_GREY_LEVELS = 8  # by which the channels of grey may differ: JPEG, chroma of bad converters


class ImageCodecError(ValueError):
    """Fields that contradict each other, or an encoding that cannot be read."""


class ImageTooLarge(ImageCodecError):
    """More pixels than the user allows."""


def check_megapixels(width: int, height: int, most: float) -> None:
    """Raise :class:`ImageTooLarge` for more than ``most`` million pixels."""
    megapixels = width * height / 1e6
    if megapixels > most:
        size = f"{width}x{height} is {megapixels:.4g} megapixels"
        raise ImageTooLarge(f"{size}, more than max_frame_megapixels {most:g}")


def image_to_array(image: Any) -> np.ndarray:
    """Return the pixels of a ``sensor_msgs/Image`` as (H, W) or (H, W, 3).

    ``image.data`` is any buffer of bytes; the result shares its memory where no conversion is
    needed, so treat it as read-only. It is C-contiguous, aligned and of native byte order.
    Channels keep the order of the encoding. Bytes after the last row are ignored. The dtype is
    that of :data:`ENCODINGS`; other colours become their luminance, uint8 (uint16 of deep ones);
    64FC1 becomes float32. Encodings that are not listed here are read by cv_bridge where it is
    installed.

    Raises:
        ImageCodecError: an unknown encoding, an empty image, a ``step`` shorter than a row, or
            fewer than height x step bytes; the text has the numbers.
    """
    encoding = image.encoding
    if encoding not in _STORED:
        return _through_cv_bridge(image)
    pixels = _stored_pixels(image)
    if encoding in _LUMINANCE:
        weights = np.array(_LUMINANCE[encoding], np.float32)
        return (pixels @ weights + np.float32(0.5)).astype(np.uint8)
    if encoding == "64FC1":
        with np.errstate(over="ignore"):  # a mark for no data becomes infinity
            return pixels.astype(np.float32)
    return pixels


def result_encoding(encoding: str, pixels: np.ndarray) -> str:
    """The encoding that a result goes out in, of an image that came in ``encoding``.

    It is the same for :data:`ENCODINGS`, else mono8, mono16 or 32FC1 by the dtype of ``pixels``,
    which are of :func:`image_to_array`.
    """
    return encoding if encoding in ENCODINGS else _MONOCHROME[pixels.dtype.type]


def is_colour(encoding: str) -> bool:
    """Whether the encoding has several channels: its values are no counts, but a display's."""
    if encoding in _STORED:
        return _STORED[encoding][1] > 1
    return not encoding.endswith("C1")


def is_false_colour(image: Any) -> bool:
    """Whether a colour image that :func:`image_to_array` reads differs between its channels."""
    encoding = image.encoding
    if not is_colour(encoding) or encoding not in _STORED:
        return is_colour(encoding)
    pixels = _stored_pixels(image)
    if pixels.shape[2] == 2:
        chroma = pixels[..., _LUMINANCE[encoding].index(0.0)].astype(np.int16)
        return bool((np.abs(chroma - _NO_CHROMA) > _GREY_LEVELS).any())
    colours = pixels[..., :3]
    return bool((colours.max(axis=2) - colours.min(axis=2) > _GREY_LEVELS).any())


def _stored_pixels(image: Any) -> np.ndarray:
    """The pixels as they are stored, (H, W) or (H, W, channels), native byte order."""
    encoding, height, width, step = image.encoding, image.height, image.width, image.step
    dtype, channels = _STORED[encoding]
    _check_size(image)
    row_bytes = width * channels * dtype.itemsize
    if step < row_bytes:
        raise ImageCodecError(
            f"step {step} is shorter than a row: {width} px of {encoding} are {row_bytes} bytes"
        )
    buffer = np.frombuffer(image.data, np.uint8)
    rows = buffer[: height * step].reshape(height, step)[:, :row_bytes]
    stored = dtype.newbyteorder(">" if image.is_bigendian else "<")
    pixels = np.require(np.ascontiguousarray(rows).view(stored), dtype, ["C", "ALIGNED"])
    return pixels if channels == 1 else pixels.reshape(height, width, channels)


def _check_size(image: Any) -> None:
    height, width, step, size = image.height, image.width, image.step, len(image.data)
    if height < 1 or width < 1:
        raise ImageCodecError(f"image is empty: width {width}, height {height}")
    if size < max(height * step, 1):
        raise ImageCodecError(
            f"data holds {size} bytes, but height {height} x step {step} is {height * step}"
        )


def _through_cv_bridge(image: Any) -> np.ndarray:
    """Pixels (H, W) of an encoding that cv_bridge alone knows."""
    encoding = image.encoding
    try:
        from cv_bridge import CvBridge
    except ImportError:
        known = ", ".join(_STORED)
        raise ImageCodecError(
            f"encoding {encoding!r} is not one of {known}; cv_bridge, which knows more, is not "
            "installed"
        ) from None
    _check_size(image)
    is_plain = encoding.endswith("C1")
    wanted = "passthrough" if is_plain else "mono16" if "16" in encoding else "mono8"
    try:
        pixels = CvBridge().imgmsg_to_cv2(image, wanted)
    except Exception as error:  # it raises whatever OpenCV, numpy and its own code raise
        raise ImageCodecError(f"encoding {encoding!r}: cv_bridge says: {error}") from error
    if pixels.shape != (image.height, image.width):  # old ones do not know of padded rows
        size = f"{image.height}x{image.width}"
        raise ImageCodecError(f"encoding {encoding!r}: cv_bridge gives {pixels.shape}, not {size}")
    return np.ascontiguousarray(pixels, np.float32 if is_plain else None)


def encode_rows(pixels: np.ndarray, encoding: str) -> np.ndarray:
    """Return the bytes of the message's rows, (H, step) uint8, of (H, W) or (H, W, 3) pixels.

    Rows are unpadded and little endian, and share the memory of ``pixels``.

    Raises:
        ImageCodecError: the encoding is unknown, or dtype and shape are not the encoding's:
            nothing is ever converted silently.
    """
    if encoding not in ENCODINGS:
        raise ImageCodecError(f"encoding {encoding!r} is not one of {', '.join(ENCODINGS)}")
    dtype, channels = ENCODINGS[encoding]
    shape = pixels.shape[:2] if channels == 1 else (*pixels.shape[:2], channels)
    if pixels.dtype != dtype or pixels.shape != shape or not pixels.size:
        raise ImageCodecError(
            f"{encoding} holds {dtype} with {channels} channel(s), "
            f"got {pixels.dtype} of shape {pixels.shape}"
        )
    little_endian = np.ascontiguousarray(pixels, dtype.newbyteorder("<"))
    return little_endian.view(np.uint8).reshape(len(pixels), -1)
