"""What is made of a result: its message; PNG, temperatures, deviations, preview over real DDS."""

import time
from array import array

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (pip extra ros, or a sourced distribution)")

from rclpy.serialization import deserialize_message, serialize_message
from ros_peer import Peer, wait_until
from sensor_msgs.msg import CompressedImage, Image
from test_sr_node import REMAP, scene

from difiisr_ros.compressed_image import compress, decompress
from difiisr_ros.derived_outputs import image_message
from difiisr_ros.image_codec import ENCODINGS, encode_rows, image_to_array
from difiisr_ros.node_process import NodeProcess

TOPICS = {
    "/thermal/sr": Image,
    "/thermal/sr/compressed": CompressedImage,
    "/thermal/sr/temperature": Image,
    "/thermal/sr/preview": Image,
    "/sr/uncertainty": Image,
}
MORE = (
    *("-r", "sr/temperature:=/thermal/sr/temperature", "-r", "sr/preview:=/thermal/sr/preview"),
    *("-p", "device:=cpu", "-p", "autostart:=true", "-p", "uncertainty:=true", "-p", "no_data:=7"),
    *("-p", "transport:=compressed", "-p", "unit:=kelvin", "-p", "scale:=0.01"),
    *("-p", "preview:=inferno", "-p", "telemetry_rows:=2", "-p", "diagnostics_period:=0.1"),
)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("frame_id", ["", "wärme"])
def test_a_result_serialises_as_a_message_with_its_own_copy(encoding, frame_id):
    dtype, channels = ENCODINGS[encoding]
    shape = (5, 7) if channels == 1 else (5, 7, channels)
    pixels = np.random.default_rng(0).uniform(0, 250, shape).astype(dtype)
    camera = Image(encoding=encoding, height=2, width=2, is_bigendian=1, step=99)  # not its layout
    camera.header.frame_id, camera.header.stamp.nanosec = frame_id, 123_456_789
    rows = encode_rows(pixels, encoding)
    whole = Image(header=camera.header, height=5, width=7, encoding=encoding, step=rows.shape[1])
    whole.data = array("B", rows.tobytes())
    result = image_message(camera, pixels)
    assert np.shares_memory(np.asarray(result.data), pixels)
    ours, theirs = serialize_message(result), serialize_message(whole)
    assert len(ours) == len(theirs)  # what lies between aligned fields is anybody's
    assert deserialize_message(ours, Image) == whole


def test_a_compressed_camera_is_answered_on_all_topics(tmp_path):
    counts = scene() + np.uint16(22000)
    counts[:2] = 9
    counts[12, 30] = 7
    with NodeProcess(tmp_path / "log", *REMAP, *MORE) as process:
        process.wait_for_log("active:")
        peer = Peer()
        try:
            camera = peer.node.create_publisher(CompressedImage, "/thermal/image_raw/compressed", 5)
            found = {topic: [] for topic in TOPICS}
            for topic, kind in TOPICS.items():
                peer.node.create_subscription(kind, topic, found[topic].append, 5)
            raw = peer.image(counts)

            def send(form, data):
                camera.publish(CompressedImage(header=raw.header, format=form, data=data))
                time.sleep(0.1)

            wait_until(lambda: send(*compress(counts, "mono16")) or all(found.values()))
            wait_until(lambda: send("png", b"broken") or peer.counts()["dropped malformed"])
            result, packed, kelvin, preview, deviations = (found[topic][-1] for topic in TOPICS)
            assert all(found[topic][-1].header == raw.header for topic in TOPICS)
            assert (result.height, result.width, result.encoding) == (232, 320, "mono16")
            pixels = image_to_array(result)
            np.testing.assert_array_equal(image_to_array(decompress(packed, 1.0)), pixels)
            assert kelvin.encoding == "32FC1"
            celsius = pixels * np.float32(0.01) - np.float32(273.15)
            celsius[40:44, 120:124] = np.nan  # 12 less 2 of telemetry, 30
            np.testing.assert_allclose(image_to_array(kelvin), celsius, atol=1e-3)
            expected = image_to_array(deviations)
            np.testing.assert_array_equal(np.isnan(expected), np.isnan(celsius))
            assert np.nanmin(expected) > 0
            assert peer.set(temperature_unit="kelvin").successful
            temperature = found["/thermal/sr/temperature"]
            warmer = counts + (counts != 7)
            again = compress(warmer.astype(np.uint16), "mono16")
            wait_until(lambda: send(*again) or np.nanmin(image_to_array(temperature[-1])) > 200)
            assert peer.set(max_rate=0.01).successful
            count = len(found["/thermal/sr"])
            for number in range(9):
                send(*compress(counts + np.uint16(number), "mono16"))
            wait_until(lambda: peer.counts()["dropped over_rate"] >= 5)
            assert len(found["/thermal/sr"]) - count <= 2
            assert (preview.encoding, preview.width) == ("rgb8", 320)
            assert np.ptp(image_to_array(preview)) > 100
            wait_until(lambda: not peer.set(preview="grey").successful)  # read at configure
        finally:
            peer.close()
