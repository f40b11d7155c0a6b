"""The examples, as a user starts them, with tiny models."""

import importlib.util
import sys
import time
from array import array
from pathlib import Path

import numpy as np
import onnx
import pytest
import tifffile
from onnx import helper, numpy_helper

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_file_is_read_super_resolved_and_written(tmp_path, capsys):
    pages = np.full((2, 20, 24), 3000, np.uint16) + np.arange(24, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tiff", pages)
    example("upscale_file").main(tmp_path / "a.tiff", tmp_path / "b.tiff")
    assert tifffile.imread(tmp_path / "b.tiff").shape == (2, 80, 96)
    assert "2 images" in capsys.readouterr().out


def test_foxglove_is_sent_image_and_result(tmp_path):
    pytest.importorskip("foxglove", reason="needs foxglove-sdk")
    from foxglove import open_mcap
    from mcap.reader import make_reader

    np.save(tmp_path / "a.npy", np.full((3, 20, 24), 3000, np.uint16))
    with open_mcap(tmp_path / "sent.mcap"):
        example("foxglove_live").main(tmp_path / "a.npy", model="bicubic", rate=99.0, port=0)
    with (tmp_path / "sent.mcap").open("rb") as file:
        topics = [channel.topic for _, channel, _ in make_reader(file).iter_messages()]
    assert (topics.count("/thermal/image_raw"), topics.count("/thermal/sr")) == (3, 3)


def yolo_file(path):
    """A YOLO export that finds one box, left, top, right, bottom, score, class, in each image."""
    row = np.array([[[8, 4, 24, 20, 0.9, 1]]], np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
            helper.make_node("Sub", ["mean", "mean"], ["zero"]),
            helper.make_node("Add", ["box", "zero"], ["output0"]),
        ],
        "yolo",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("output0", onnx.TensorProto.FLOAT, [1, 1, 6])],
        [numpy_helper.from_array(row, "box")],
    )
    opset = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    helper.set_model_props(model, {"names": "{0: 'person', 1: 'car'}"})
    onnx.save(model, path)


@pytest.fixture
def answers():
    """Start a node of an example; returns what it publishes for an image of a camera."""
    pytest.importorskip("rclpy", reason="needs ROS 2 (pip extra ros, or a sourced distribution)")
    import rclpy
    from ros_peer import DOMAIN, spin_in_thread, wait_until
    from sensor_msgs.msg import Image

    context = rclpy.Context()
    rclpy.init(context=context, domain_id=DOMAIN)
    ends = []

    def start(kind, topics, /, **parameters):
        overrides = [rclpy.Parameter(name, value=value) for name, value in parameters.items()]
        node = kind(context=context, parameter_overrides=overrides)
        peer = rclpy.create_node("example_peer", context=context)
        got = {topic: [] for topic in topics}
        for topic, messages in got.items():
            name = f"{node.get_fully_qualified_name()}/{topic}"
            peer.create_subscription(Image, name, messages.append, 1)
        camera = peer.create_publisher(Image, "image", 1)
        ends.extend(map(spin_in_thread, (node, peer)))
        pixels = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint16) + 3000
        message = Image(height=48, width=64, encoding="mono16", step=128)
        message.data = array("B", pixels.tobytes())

        def answered():
            message.header.stamp = node.get_clock().now().to_msg()
            camera.publish(message)
            time.sleep(0.2)
            return all(got.values())

        wait_until(answered)
        newest = {topic: np.frombuffer(m[-1].data, np.uint8) for topic, m in got.items()}
        return node, {topic: data.reshape(48, 64, -1) for topic, data in newest.items()}

    yield start
    for end in ends:
        end()
    rclpy.shutdown(context=context)


def test_detector_draws_boxes_and_knows_the_latency_of_the_chain(answers, tmp_path):
    yolo_file(tmp_path / "yolo.onnx")
    kind = example("detector_node").DetectorNode
    node, got = answers(kind, ["overlay"], detector=str(tmp_path / "yolo.onnx"))
    assert node._detect.classes == ("person", "car")
    cyan = (got["overlay"] == (0, 255, 255)).all(axis=-1)
    assert cyan[6, 20:44].all()  # 8, 4, 24, 20 of 32x32 in 64x48
    assert cyan[10:28, 48].all()
    assert 0 < np.median(node.chain) < 10


def test_segmenter_labels_what_lies_at_its_points(answers, monkeypatch):
    pytest.importorskip("segment_anything", reason="the SAM package is not installed")
    import segment_anything

    sys.path.insert(0, str(EXAMPLES.parent / "test" / "unit"))
    from test_sam_loss import tiny_sam

    monkeypatch.setitem(segment_anything.sam_model_registry, "tiny", lambda checkpoint: tiny_sam())
    kind = example("segmenter_node").SegmenterNode
    _, got = answers(kind, ["labels", "overlay"], kind="tiny", points=[0.5, 0.5, 0.1, 0.1])
    assert set(np.unique(got["labels"])) <= {0, 1, 2}
    assert got["overlay"].shape == (48, 64, 3)
