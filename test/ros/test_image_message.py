"""A result's message is what ROS would have made; deviations are published to who listens."""

from array import array

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2")

from rclpy.serialization import deserialize_message, serialize_message  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402

from difiisr_models import Stream  # noqa: E402
from difiisr_ros.derived_outputs import DerivedOutputs, image_message  # noqa: E402
from difiisr_ros.image_codec import ENCODINGS, encode_rows, image_to_array  # noqa: E402
from difiisr_ros.parameters import Parameters  # noqa: E402


def source(encoding, frame_id):
    """A camera's image; its own layout is not the result's."""
    image = Image(encoding=encoding, height=2, width=2, is_bigendian=1, step=99)
    image.header.frame_id = frame_id
    image.header.stamp.sec, image.header.stamp.nanosec = 1_700_000_000, 123_456_789
    return image


def pixels_of(encoding, size=(12, 20)):
    dtype, channels = ENCODINGS[encoding]
    shape = size if channels == 1 else (*size, channels)
    return np.random.default_rng(0).uniform(0, 250, shape).astype(dtype)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("frame_id", ["", "wärme"])
def test_it_serialises_as_a_message_with_its_own_copy(encoding, frame_id):
    pixels, camera = pixels_of(encoding, (5, 7)), source(encoding, frame_id)
    rows = encode_rows(pixels, encoding)
    whole = Image(header=camera.header, height=5, width=7, encoding=encoding, step=rows.shape[1])
    whole.data = array("B", rows.tobytes())
    ours, theirs = (serialize_message(m) for m in (image_message(camera, pixels), whole))
    assert len(ours) == len(theirs)  # what lies between aligned fields is anybody's
    assert deserialize_message(ours, Image) == whole


def test_the_pixels_are_not_copied():
    pixels = pixels_of("mono16")
    assert np.shares_memory(np.asarray(image_message(source("mono16", "t"), pixels).data), pixels)


class Publisher:
    """What a node's publisher is to those who only publish."""

    def __init__(self, topic):
        self.topic_name, self.subscribers, self.published = topic, 0, []

    def get_subscription_count(self):
        return self.subscribers

    def publish(self, message):
        self.published.append(message)


class Node:
    def create_lifecycle_publisher(self, kind, topic, *_, **__):
        return Publisher(topic)


def test_deviations_are_published_while_somebody_subscribes_to_them():
    settings = Parameters(uncertainty=True)
    outputs = DerivedOutputs(Node(), "/sr", settings, lambda: None, pytest.fail)
    publisher, stream = outputs.publishers["uncertainty"], Stream()
    counts = np.random.default_rng(0).integers(7000, 9000, (30, 40)).astype(np.float32)
    counts[3, 4] = np.nan
    stream.begin_frame(counts, None)
    stream.see(counts)
    result = np.nan_to_num(counts.repeat(4, 0).repeat(4, 1), nan=8000.0)
    outputs.publish(source("32FC1", ""), result, stream, settings)
    publisher.subscribers = 1
    outputs.publish(source("32FC1", "tower"), result, stream, settings)
    (message,) = publisher.published
    assert (message.encoding, message.height, message.width) == ("32FC1", 120, 160)
    assert message.header.frame_id == "tower"
    deviations = image_to_array(message)
    assert np.isnan(deviations[12:16, 16:20]).all()
    assert np.isnan(deviations).sum() == 16
    assert np.nanmin(deviations) > 0
    with pytest.raises(ValueError, match="no calibrated deviations"):
        DerivedOutputs(Node(), "/sr", Parameters(uncertainty=True, model="bicubic"), None, None)
