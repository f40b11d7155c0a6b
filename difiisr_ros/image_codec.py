"""``sensor_msgs/Image`` and ``CompressedImage`` <-> numpy arrays, without rclpy.

Works on anything that has the fields of the message: rclpy messages (``data`` is ``array.array``)
and rosbags' dataclasses (``data`` is a numpy array). Values are never rescaled: counts stay counts.
What goes out in another encoding than it came in: see :func:`result_encoding`. Rare encodings need
cv_bridge. Compressed images are as image_transport's plugins have them: in come PNG of 8 and 16
bits, JPEG, and the PNG of 16UC1 that compressedDepth sends; out goes PNG.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image as Picture

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
_DEPTH_HEADER = 12  # bytes: kind of quantisation and its two parameters, which 16UC1 has no use for
_FASTEST = 1  # level of zlib; a higher one takes longer, and saves little of a noisy image


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


@dataclass(frozen=True)
class DecodedImage:
    """The fields of a ``sensor_msgs/Image``, of what was decompressed."""

    header: Any
    height: int
    width: int
    encoding: str
    step: int
    data: np.ndarray
    is_bigendian: int = 0


def decompress(message: Any, most_megapixels: float) -> DecodedImage:
    """Decode a ``sensor_msgs/CompressedImage``.

    The bytes say whether they are PNG or JPEG. Grey becomes mono8 or mono16, colours rgb8, or what
    the text before the semicolon in ``format`` says, where it has that dtype and those channels.

    Args:
        message: of rclpy or rosbags.
        most_megapixels: a larger image is refused before it is decoded.

    Raises:
        ImageTooLarge: by the size that it declares.
        ImageCodecError: it is neither PNG nor JPEG, is damaged, or is compressedDepth of floats.
    """
    declared, data = message.format.partition(";")[0].strip(), memoryview(message.data)
    if "compressedDepth" in message.format:
        if declared != "16UC1":
            raise ImageCodecError(f"{message.format!r}: of compressedDepth, 16UC1 is read alone")
        data = data[_DEPTH_HEADER:]
    try:
        with Picture.open(BytesIO(data), formats=("PNG", "JPEG")) as file:
            check_megapixels(*file.size, most_megapixels)
            is_deep, is_grey = file.mode.startswith("I"), file.mode in ("1", "L", "LA")
            picture = file if is_deep else file.convert("L" if is_grey else "RGB")
            pixels = np.asarray(picture).astype(np.uint16 if is_deep else np.uint8)
    except ImageCodecError:
        raise
    except Picture.DecompressionBombError as error:  # beyond what Pillow itself opens
        raise ImageTooLarge(str(error)) from None
    except Exception as error:  # damaged files raise whatever their decoder raises
        size = f"{len(message.data)} bytes of format {message.format!r}"
        raise ImageCodecError(f"{size} are no PNG and no JPEG: {error}") from error
    encoding = "mono16" if is_deep else "mono8" if is_grey else "rgb8"
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if ENCODINGS.get(declared) == (pixels.dtype, channels):
        encoding = declared
    if encoding == "bgr8":
        pixels = pixels[..., ::-1]
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(height, -1)
    step = rows.shape[1]
    return DecodedImage(message.header, height, width, encoding, step, rows.reshape(-1))


def compress(pixels: np.ndarray, encoding: str) -> tuple[str, bytes]:
    """``format`` and ``data`` of a ``sensor_msgs/CompressedImage``: a PNG, lossless.

    Args:
        pixels: ``(H, W)`` uint8 or uint16, or ``(H, W, 3)`` uint8.
        encoding: of the pixels.

    Raises:
        ImageCodecError: PNG has no such pixels (16SC1, 32FC1).
    """
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ImageCodecError(f"PNG holds 8 and 16 bits without sign, not {encoding}")
    is_colour, data = pixels.ndim == 3, BytesIO()
    ordered = np.ascontiguousarray(pixels[..., ::-1] if encoding == "bgr8" else pixels)
    Picture.fromarray(ordered).save(data, "PNG", compress_level=_FASTEST)
    return f"{encoding}; png compressed {'bgr8' if is_colour else ''}", data.getvalue()
