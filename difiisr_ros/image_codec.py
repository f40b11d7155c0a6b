"""`sensor_msgs/Image` fields <-> numpy arrays, without rclpy and without cv_bridge.

Works on anything that has the fields of the message: rclpy messages (`data` is `array.array`) and
rosbags' dataclasses (`data` is a numpy array). What the bytes mean says `image_encoding` of the
models.
"""

from __future__ import annotations

import array
from typing import NamedTuple

import numpy as np

from difiisr_models import image_encoding
from difiisr_models.image_encoding import ENCODINGS, ImageCodecError, decode, image_to_array

__all__ = ["ENCODINGS", "EncodedImage", "ImageCodecError", "decode", "encode", "image_to_array"]


class EncodedImage(NamedTuple):
    """All fields of `sensor_msgs/Image` but the header; rows unpadded, little endian."""

    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: array.array


def encode(pixels: np.ndarray, encoding: str) -> EncodedImage:
    """Return the message fields of (H, W) or (H, W, 3) pixels of the encoding's own dtype.

    Raises ImageCodecError when the encoding is unknown or dtype and shape are not the encoding's.
    """
    rows = image_encoding.encode(pixels, encoding)
    data = array.array("B")
    # The message class checks any other type than array('B') byte by byte in Python.
    data.frombytes(rows.data.cast("B"))
    height, width = pixels.shape[:2]
    return EncodedImage(height, width, encoding, 0, rows.shape[1], data)
