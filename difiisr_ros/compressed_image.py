"""``sensor_msgs/CompressedImage`` <-> images, as image_transport's plugins have them, without them.

In: PNG of 8 and 16 bits, JPEG, and the PNG of 16UC1 that compressedDepth sends. Out: PNG.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image as Picture

from difiisr_ros.image_codec import ENCODINGS, ImageCodecError, ImageTooLarge, check_megapixels

_DEPTH_HEADER = 12  # bytes: kind of quantisation and its two parameters, which 16UC1 has no use for
_MOST_SCANS = 100  # of a JPEG; progressive ones have ten, and each costs as much as the picture
_FASTEST = 1  # level of zlib; a higher one takes longer, and saves little of a noisy image


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
        ImageCodecError: it is neither PNG nor JPEG, is damaged, or is compressedDepth of floats; or
            it would take minutes.
    """
    declared, data = message.format.partition(";")[0].strip(), memoryview(message.data)
    if "compressedDepth" in message.format:
        if declared != "16UC1":
            raise ImageCodecError(f"{message.format!r}: of compressedDepth, 16UC1 is read alone")
        data = data[_DEPTH_HEADER:]
    try:
        with Picture.open(BytesIO(data), formats=("PNG", "JPEG")) as file:
            check_megapixels(*file.size, most_megapixels)
            scans = 0 if file.format == "PNG" else bytes(data).count(b"\xff\xda")
            if scans > _MOST_SCANS:
                raise ImageCodecError(f"a JPEG of {scans} scans, {_MOST_SCANS} may be")
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
