"""Publish a super-resolved image and its camera_info together, with the stamp of their source."""

from __future__ import annotations

import numpy as np
from rclpy.lifecycle import LifecycleNode, LifecyclePublisher
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, Image

from difiisr_models.image_encoding import encode
from difiisr_ros.camera_info import described_size, matches, scale_camera_info

DEPTH = 5  # a reliable subscriber may be this many results late


def topic_qos(depth: int, reliability: str) -> QoSProfile:
    """Return a volatile keep-last profile; make one per topic, since overrides change it."""
    return QoSProfile(depth=depth, reliability=ReliabilityPolicy[reliability.upper()])


def image_message(source: Image, pixels: np.ndarray) -> Image:
    """The `sensor_msgs/Image` of (H, W) or (H, W, 3) pixels.

    Header and encoding are those of `source`; rows are unpadded and little endian. The message
    shares the memory of `pixels`: it is for publishing.

    Raises ImageCodecError when dtype and shape are not those of the encoding.
    """
    rows = encode(pixels, source.encoding)
    message = Image(
        header=source.header,
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=source.encoding,
        is_bigendian=0,
        step=rows.shape[1],
    )
    # The property would copy every byte; rclpy's serialisation reads any buffer of bytes.
    message._data = rows.reshape(-1)
    return message


class ResultPublisher:
    """The lifecycle publishers `sr/image_raw` and `sr/camera_info` of a node."""

    def __init__(self, node: LifecycleNode, reliability: str, scale: int) -> None:
        """Create the publishers; their QoS can be overridden by the node's parameters.

        Raises what rclpy raises of a bad override; then there is none of the two.
        """
        self._node = node
        self._scale = scale
        self._mismatch: tuple = ()
        self._publishers: list[LifecyclePublisher] = []
        try:
            for message_type, topic in ((Image, "sr/image_raw"), (CameraInfo, "sr/camera_info")):
                publisher = node.create_lifecycle_publisher(
                    message_type,
                    topic,
                    topic_qos(DEPTH, reliability),
                    qos_overriding_options=QoSOverridingOptions.with_default_policies(),
                )
                self._publishers.append(publisher)
        except Exception:
            self.destroy()
            raise
        self._image, self._info = self._publishers
        self.topics = self._image.topic_name, self._info.topic_name

    @property
    def wanted(self) -> bool:
        """Whether anybody subscribes to the image."""
        return self._image.get_subscription_count() > 0

    def publish(self, source: Image, image: Image, info: CameraInfo | None) -> None:
        """Publish `image`, made of `source`, and, if `info` describes `source`, the scaled info.

        An `info` for images of another size is not used, and warned about once per pair of sizes.
        """
        if info is not None and not matches(info, source):
            self._warn_of_mismatch(described_size(info), (source.width, source.height))
            info = None
        scaled = None if info is None else scale_camera_info(info, self._scale)
        self._image.publish(image)
        if scaled is not None:
            scaled.header = source.header
            self._info.publish(scaled)

    def destroy(self) -> None:
        """Remove the publishers from the node."""
        for publisher in self._publishers:
            self._node.destroy_lifecycle_publisher(publisher)

    def _warn_of_mismatch(self, described: tuple[int, int], actual: tuple[int, int]) -> None:
        if (described, actual) != self._mismatch:
            self._mismatch = described, actual
            self._node.get_logger().warning(
                "camera_info is not used: it describes images of {}x{}, these are {}x{}".format(
                    *described, *actual
                )
            )
