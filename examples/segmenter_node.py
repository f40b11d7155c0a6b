"""Cut out what lies at points of super-resolved images: segment-anything behind the node.

python examples/segmenter_node.py --ros-args -p checkpoint:=sam_vit_b_01ec64.pth -p kind:=vit_b \\
    -p points:="[0.5, 0.5]" -r image:=/thermal/sr

``points`` are x, y, x, y, ... as parts of width and height. Publishes ``~/labels`` (mono8: the
number of the point whose object it is, 0 for none) and ``~/overlay`` (rgb8).
"""

import contextlib
import sys
from typing import Any

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from segment_anything import SamPredictor, sam_model_registry
from sensor_msgs.msg import Image

from difiisr_ros.image_codec import image_to_array
from difiisr_ros.outputs import image_message
from difiisr_training.data.images import as_picture

COLOURS = np.array([(0, 0, 0), (255, 80, 80), (80, 200, 255), (120, 255, 120), (255, 220, 80)])


class SegmenterNode(Node):
    """``image`` in; labels and overlay out; the newest image wins."""

    def __init__(self, **node_arguments: Any) -> None:
        super().__init__("segmenter", **node_arguments)
        kind: Any = self.declare_parameter("kind", "vit_b").value
        checkpoint: Any = self.declare_parameter("checkpoint", "").value
        device: Any = self.declare_parameter("device", "cpu").value
        points: Any = self.declare_parameter("points", [0.5, 0.5]).value
        self._points = np.reshape(points, (-1, 2))
        self._sam = SamPredictor(sam_model_registry[kind](checkpoint=checkpoint).to(device).eval())
        self._labels = self.create_publisher(Image, "~/labels", 1)
        self._overlay = self.create_publisher(Image, "~/overlay", 1)
        self.create_subscription(Image, "image", self._on_image, qos_profile_sensor_data)

    def _on_image(self, message: Image) -> None:
        counts = image_to_array(message)
        counts = counts if counts.ndim == 2 else counts.mean(axis=-1).astype(counts.dtype)
        grey = (255 * as_picture(counts)).astype(np.uint8)
        colours = np.repeat(grey[..., None], 3, axis=-1)
        self._sam.set_image(colours)
        labels = np.zeros(grey.shape, np.uint8)
        for number, point in enumerate(self._points * grey.shape[::-1], 1):
            masks, _, _ = self._sam.predict(point[None], np.ones(1), multimask_output=False)
            labels[masks[0]] = number
        blended = colours // 2 + (COLOURS[labels % len(COLOURS)] // 2).astype(np.uint8)
        self._labels.publish(image_message(message, labels, "mono8"))
        self._overlay.publish(image_message(message, blended, "rgb8"))


def main() -> None:
    """Run the node until Ctrl-C."""
    rclpy.init()
    with contextlib.suppress(KeyboardInterrupt, rclpy.executors.ExternalShutdownException):
        try:
            node = SegmenterNode()
        except (OSError, ValueError) as error:
            sys.exit(f"-p checkpoint:=FILE.pth is needed: {error}")
        rclpy.spin(node)


if __name__ == "__main__":
    main()
