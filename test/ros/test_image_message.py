"""A result's message is what ROS would have made."""

from array import array

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2")

from rclpy.serialization import deserialize_message, serialize_message  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402

from difiisr_ros.derived_outputs import image_message  # noqa: E402
from difiisr_ros.image_codec import ENCODINGS, encode_rows  # noqa: E402


def source(encoding, frame_id):
    """A camera's image; its own layout is not the result's."""
    image = Image(encoding=encoding, height=2, width=2, is_bigendian=1, step=99)
    image.header.frame_id = frame_id
    image.header.stamp.sec, image.header.stamp.nanosec = 1_700_000_000, 123_456_789
    return image


def pixels_of(encoding):
    dtype, channels = ENCODINGS[encoding]
    shape = (5, 7) if channels == 1 else (5, 7, channels)
    return np.random.default_rng(0).uniform(0, 250, shape).astype(dtype)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("frame_id", ["", "wärme"])
def test_it_serialises_as_a_message_with_its_own_copy(encoding, frame_id):
    pixels, camera = pixels_of(encoding), source(encoding, frame_id)
    rows = encode_rows(pixels, encoding)
    whole = Image(header=camera.header, height=5, width=7, encoding=encoding, step=rows.shape[1])
    whole.data = array("B", rows.tobytes())
    ours, theirs = (serialize_message(m) for m in (image_message(camera, pixels), whole))
    assert len(ours) == len(theirs)  # what lies between aligned fields is anybody's
    assert deserialize_message(ours, Image) == whole


def test_the_pixels_are_not_copied():
    pixels = pixels_of("mono16")
    assert np.shares_memory(np.asarray(image_message(source("mono16", "t"), pixels).data), pixels)
