"""What is made of a result: PNG, temperatures, deviations, preview over real DDS."""

import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (pip extra ros, or a sourced distribution)")

from ros_peer import Peer, wait_until
from sensor_msgs.msg import CompressedImage, Image
from test_sr_node import REMAP, scene

from difiisr_ros.image_codec import compress, decompress, image_to_array
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
    *("-p", "backend:=torch"),  # no other is tried and measured first
    *("-p", "preview:=inferno", "-p", "telemetry_rows:=2", "-p", "diagnostics_period:=0.1"),
)


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
