"""Find objects in super-resolved images: an ONNX detector behind the node.

python examples/detector_node.py --ros-args -p detector:=detector.onnx -r image:=/thermal/sr

The file is an export of ``difiisr train-detector``, FastestDet for COCO, or a YOLO export with its
own suppression (``yolo export format=onnx nms=True``). Publishes ``~/overlay`` (rgb8), and
``~/detections`` where vision_msgs is installed. Logs once in ten seconds how long the whole chain
takes, from the camera's stamp to the boxes.
"""

import contextlib
import sys
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from PIL import Image as Picture
from PIL import ImageDraw
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.time import Time
from sensor_msgs.msg import Image

from difiisr_ros.image_codec import image_to_array
from difiisr_ros.outputs import image_message
from difiisr_training.data.images import as_picture
from difiisr_training.evaluation.readers import Detections, OnnxDetector

try:
    from vision_msgs.msg import Detection2D, Detection2DArray, ObjectHypothesisWithPose
except ImportError:
    Detection2DArray = None


class DetectorNode(Node):
    """``image`` in; overlay and detections out; the newest image wins."""

    def __init__(self, **node_arguments: Any) -> None:
        super().__init__("detector", **node_arguments)
        self._detect = OnnxDetector(Path(self.declare_parameter("detector", "").value))
        self._least: Any = self.declare_parameter("score", 0.4).value
        self._overlay = self.create_publisher(Image, "~/overlay", 1)
        self._boxes = Detection2DArray and self.create_publisher(
            Detection2DArray, "~/detections", 10
        )
        if self._boxes is None:
            self.get_logger().info("no vision_msgs here: boxes are drawn and logged only")
        self.chain: deque[float] = deque(maxlen=100)  # seconds from the camera's stamp to the boxes
        self.create_subscription(Image, "image", self._on_image, qos_profile_sensor_data)

    def _on_image(self, message: Image) -> None:
        counts = image_to_array(message)
        counts = counts if counts.ndim == 2 else counts.mean(axis=-1).astype(counts.dtype)
        found = self._detect(counts)
        stamp = Time.from_msg(message.header.stamp, clock_type=self.get_clock().clock_type)
        self.chain.append((self.get_clock().now() - stamp).nanoseconds / 1e9)
        boxes = [n for n, score in enumerate(found.scores) if score >= self._least]
        if self._overlay.get_subscription_count():
            self._overlay.publish(self._drawn(message, counts, found, boxes))
        if self._boxes is not None:
            self._boxes.publish(self._message(message, found, boxes))
        self.get_logger().info(
            f"{len(boxes)} objects; camera to boxes {1e3 * np.median(self.chain):.0f} ms (median)",
            throttle_duration_sec=10.0,
        )

    def _drawn(self, source: Image, counts: np.ndarray, found: Detections, boxes: list) -> Image:
        grey = (255 * as_picture(counts)).astype(np.uint8)
        picture = Picture.fromarray(grey).convert("RGB")
        pen = ImageDraw.Draw(picture)
        for n in boxes:
            x, y, w, h = found.xywh[n]
            pen.rectangle((x, y, x + w, y + h), outline="cyan", width=2)
            text = f"{self._detect.classes[found.classes[n]]} {found.scores[n]:.2f}"
            pen.text((x + 2, y + 2), text, fill="cyan")
        return image_message(source, np.asarray(picture), "rgb8")

    def _message(self, source: Image, found: Detections, boxes: list) -> Any:
        result = Detection2DArray(header=source.header)
        for n in boxes:
            x, y, w, h = map(float, found.xywh[n])
            one = Detection2D(header=source.header)
            one.bbox.center.position.x, one.bbox.center.position.y = x + w / 2, y + h / 2
            one.bbox.size_x, one.bbox.size_y = w, h
            what = ObjectHypothesisWithPose()
            what.hypothesis.class_id = self._detect.classes[found.classes[n]]
            what.hypothesis.score = float(found.scores[n])
            one.results.append(what)
            result.detections.append(one)
        return result


def main() -> None:
    """Run the node until Ctrl-C."""
    rclpy.init()
    with contextlib.suppress(KeyboardInterrupt, rclpy.executors.ExternalShutdownException):
        try:
            node = DetectorNode()
        except (OSError, ValueError) as error:
            sys.exit(f"-p detector:=FILE.onnx is needed: {error}")
        rclpy.spin(node)


if __name__ == "__main__":
    main()
