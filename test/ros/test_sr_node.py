"""sr_node as users meet it: a process of its own, real DDS, a camera and a recorder beside it."""

import signal
import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (pip extra ros, or a sourced distribution)")

from diagnostic_msgs.msg import DiagnosticStatus
from ros_peer import NodeProcess, Peer, wait_until
from sensor_msgs.msg import CameraInfo

from difiisr_ros.image_codec import ENCODINGS, image_to_array

REMAP = (
    "-r", "image_raw:=/thermal/image_raw", "-r", "camera_info:=/thermal/camera_info",
    "-r", "sr/image_raw:=/thermal/sr", "-r", "sr/camera_info:=/thermal/sr/camera_info",
)  # fmt: skip


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    process = NodeProcess(
        tmp_path_factory.mktemp("sr_node") / "log",
        *REMAP,
        *("-p", "model:=bicubic", "-p", "device:=cpu", "-p", "autostart:=true"),
        *("-p", "diagnostics_period:=0.1"),
    )
    yield process
    assert process.stop(signal.SIGINT) == 0
    assert "Traceback" not in process.log


@pytest.fixture(scope="module")
def connected(process):
    process.wait_for_log("active:")
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture
def peer(connected):
    """A peer that listens to an active node and has received nothing yet."""
    connected.listen()
    return connected


def scene(height=60, width=80, dtype=np.uint16):
    """A smooth scene in raw counts with a warm body, and its mean."""
    y, x = np.mgrid[:height, :width]
    warm = 900 * np.exp(-((x - width / 2) ** 2 + (y - height / 2) ** 2) / (2 * (height / 6) ** 2))
    return (7300 + 0.5 * x + warm).astype(dtype)


def block_means(pixels):
    height, width = (side // 4 for side in pixels.shape[:2])
    return pixels.reshape(height, 4, width, 4, *pixels.shape[2:]).mean(axis=(1, 3))


def camera_info(message, width, height):
    info = CameraInfo(header=message.header, width=width, height=height)
    info.k = [100.0, 0.0, width / 2 - 0.5, 0.0, 100.0, height / 2 - 0.5, 0.0, 0.0, 1.0]
    info.p = [100.0, 0.0, width / 2 - 0.5, -7.0, 0.0, 100.0, height / 2 - 0.5, 0.0,
              0.0, 0.0, 1.0, 0.0]  # fmt: skip
    info.d = [-0.3, 0.1, 0.0, 0.0, 0.0]
    return info


def test_every_frame_of_a_9_hz_stream_is_answered(peer):
    counts = scene()
    sent = []
    for frame in range(27):
        message = peer.image(counts + frame)
        peer.send_info(camera_info(message, 80, 60))
        sent.append(peer.send_message(message))
        time.sleep(1 / 9)
    for frame, message in enumerate(sent):
        answer, info = peer.answer_to(message), peer.info_for(message)
        assert answer.header == message.header
        assert info.header == message.header
        assert (answer.width, answer.height, answer.encoding) == (320, 240, "mono16")
        np.testing.assert_allclose(
            block_means(image_to_array(answer)), counts + frame, atol=0.05 * np.ptp(counts)
        )
        assert (info.width, info.height) == (320, 240)
        assert (info.k[0], info.k[2], info.p[3]) == (400.0, 159.5, -28.0)
        np.testing.assert_array_equal(info.d, [-0.3, 0.1, 0.0, 0.0, 0.0])
    assert len(peer.images) == len(sent)
    status, values = peer.status()
    assert status.level == DiagnosticStatus.OK, status.message
    assert float(values["latency p99 (ms)"]) >= float(values["latency p50 (ms)"]) > 0
    assert values["model"] == "bicubic"
    assert values["device"] == "cpu"
    assert values["backend"]
    assert float(values["memory (MB)"]) > 10


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_units_and_encoding_out_are_those_in(peer, encoding):
    dtype, channels = ENCODINGS[encoding]
    pixels = {"u1": scene() / 64, "u2": scene(), "f4": scene() / 25.0}[dtype.str[1:]].astype(dtype)
    if channels == 3:
        pixels = np.stack([pixels, pixels // 2, pixels // 3], axis=-1)
    answer = peer.answer_to(peer.send(pixels, encoding))
    assert answer.encoding == encoding
    upscaled = image_to_array(answer)
    assert upscaled.shape[:2] == (240, 320)
    np.testing.assert_allclose(
        block_means(upscaled.astype(np.float64)), pixels, atol=0.05 * np.ptp(pixels) + 1
    )


def test_grey_in_three_channels_comes_back_grey(peer):
    grey = (scene() / 64).astype(np.uint8)
    answer = image_to_array(peer.answer_to(peer.send(np.stack([grey] * 3, axis=-1), "rgb8")))
    assert (np.ptp(answer, axis=-1) == 0).all()


def test_padded_big_endian_rows_are_read_and_leave_as_little_endian(peer):
    counts = scene()
    message = peer.image(counts)
    rows = [row.astype(">u2").tobytes() + b"\xff" * 6 for row in counts]
    message.step, message.is_bigendian, message.data = len(rows[0]), 1, b"".join(rows)
    answer = peer.answer_to(peer.send_message(message))
    assert (answer.is_bigendian, answer.step) == (0, 640)
    np.testing.assert_allclose(
        block_means(image_to_array(answer)), counts, atol=0.05 * np.ptp(counts)
    )


def test_malformed_messages_are_dropped_counted_and_survived(peer, process):
    _, before = peer.status()
    forged = peer.image(scene())
    forged.width = 2**32 - 1
    empty = peer.image(scene())
    empty.data = b""
    strange = peer.image(scene())
    strange.encoding = "yuv422"
    for message in (forged, empty, strange):
        peer.send_message(message)
        time.sleep(0.1)  # the subscription keeps only the newest
    peer.answer_to(peer.send(scene()))
    status, values = peer.status()
    assert int(values["dropped malformed"]) == int(before["dropped malformed"]) + 3
    assert status.level == DiagnosticStatus.WARN
    assert "images refused" in status.message
    assert len(peer.images) == 1
    assert "image refused: step" in process.log


def test_a_frame_too_small_for_the_model_is_counted_and_survived(peer):
    _, before = peer.status()
    peer.send(np.zeros((4, 4), np.uint16))
    time.sleep(0.1)
    peer.answer_to(peer.send(scene()))
    _, values = peer.status()
    assert int(values["dropped failed"]) == int(before["dropped failed"]) + 1


def test_camera_info_of_another_size_is_not_used_and_warned_about_once(peer, process):
    for _ in range(3):
        message = peer.image(scene())
        peer.send_info(camera_info(message, 640, 512))
        time.sleep(0.1)
        peer.answer_to(peer.send_message(message))
    assert not peer.infos
    assert process.log.count("camera_info is not used: it describes images of 640x512") == 1
    # a fitting one is used again
    message = peer.image(scene())
    peer.send_info(camera_info(message, 80, 60))
    time.sleep(0.1)
    peer.send_message(message)
    assert peer.info_for(message).width == 320


def test_an_uncalibrated_camera_stays_uncalibrated(peer):
    message = peer.image(scene())
    peer.send_info(CameraInfo(header=message.header, width=80, height=60))
    time.sleep(0.1)
    peer.send_message(message)
    info = peer.info_for(message)
    assert (info.width, info.height) == (320, 240)
    assert not np.any(info.k)


def test_live_parameters_act_on_the_next_frame(peer):
    noisy = (7300 + np.random.default_rng(0).normal(0, 40, (60, 80))).astype(np.uint16)
    kept = image_to_array(peer.answer_to(peer.send(noisy)))
    assert peer.set(consistency=0.0).successful
    loose = image_to_array(peer.answer_to(peer.send(noisy)))
    assert peer.set(consistency=1.0).successful
    again = image_to_array(peer.answer_to(peer.send(noisy)))
    assert np.abs(kept.astype(int) - loose).max() > 1
    np.testing.assert_array_equal(kept, again)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fidelity": 3.0}, "fidelity"),
        ({"steps": 0}, "steps"),
        ({"overlap": 200}, "less than half the tile (256), got 200"),
        ({"model": "difiisr-rt-x4"}, "cleanup"),
        ({"autostart": False}, "read-only"),
        ({"fidelity": 1}, "write 1.0"),
    ],
)
def test_bad_values_are_refused_with_a_reason(peer, change, reason):
    result = peer.set(**change)
    assert not result.successful
    assert reason in result.reason


def test_deactivated_is_silent_and_activated_answers_again(peer):
    assert peer.transition("deactivate")
    assert peer.state() == "inactive"
    peer.send(scene())
    status, _ = peer.status()
    assert status.message == "inactive"
    assert not peer.images
    assert peer.transition("activate")
    peer.listen()
    peer.answer_to(peer.send(scene()))


def test_an_invalid_transition_is_refused_and_survived(peer):
    assert not peer.transition("configure")
    assert not peer.transition("activate")
    assert peer.state() == "active"
    peer.answer_to(peer.send(scene()))


def test_a_model_that_cannot_be_loaded_leaves_the_node_unconfigured_with_the_reason(peer, process):
    for transition in ("deactivate", "cleanup"):
        assert peer.transition(transition)
    assert peer.set(model="no-such-model").successful
    assert not peer.transition("configure")
    assert peer.state() == "unconfigured"
    status, _ = peer.status()
    assert status.level == DiagnosticStatus.ERROR
    assert "no-such-model" in status.message
    assert "no-such-model" in process.log
    assert peer.set(model="bicubic").successful
    for transition in ("configure", "activate"):
        assert peer.transition(transition)
    peer.listen()
    peer.answer_to(peer.send(scene()))


def test_no_work_while_nobody_listens(peer):
    peer.stop_listening()
    wait_until(lambda: peer.node.count_subscribers("/thermal/sr") == 0)
    time.sleep(0.3)
    _, before = peer.status()
    for _ in range(5):
        peer.send(scene())
        time.sleep(0.02)
    wait_until(lambda: int(peer.status()[1]["frames idle"]) > int(before["frames idle"]))
    assert peer.status()[1]["frames published"] == before["frames published"]


def test_services_answer_while_a_frame_is_processed(peer):
    answers_before_the_frame = 0
    for _ in range(20):
        sent = peer.send(scene(512, 640))
        peer.get_later("fidelity").wait()
        answers_before_the_frame += all(image.header != sent.header for image in peer.images)
    peer.answer_to(sent)
    assert answers_before_the_frame >= 3


def test_a_slow_model_skips_to_the_newest_frame_and_counts_the_skipped(peer):
    _, before = peer.status()
    counts = scene(512, 640)
    sent = []
    for _ in range(20):
        sent.append(peer.send(counts))
        time.sleep(1 / 60)
    peer.answer_to(sent[-1])
    peer_stamps = [image.header.stamp.sec for image in peer.images]
    assert peer_stamps == sorted(peer_stamps)
    assert len(peer_stamps) < len(sent)
    _, values = peer.status()
    seen = int(values["frames received"]) - int(before["frames received"])
    skipped = int(values["dropped stale"]) - int(before["dropped stale"])
    assert skipped == seen - len(peer_stamps) > 0


def test_a_frame_over_the_limit_is_dropped_and_counted(peer):
    assert peer.set(max_frame_megapixels=0.001).successful
    _, before = peer.status()
    peer.send(scene())
    wait_until(lambda: peer.status()[1]["dropped too_large"] != before["dropped too_large"])
    assert peer.set(max_frame_megapixels=2.0).successful
    assert not peer.images


def test_the_graph_keeps_what_ros_tools_expect(peer):
    topics = dict(peer.node.get_topic_names_and_types())
    assert topics["/thermal/sr"] == ["sensor_msgs/msg/Image"]
    (subscription,) = peer.node.get_subscriptions_info_by_topic("/thermal/image_raw")
    assert subscription.qos_profile.reliability.name == "BEST_EFFORT"
    (publisher,) = peer.node.get_publishers_info_by_topic("/thermal/sr")
    assert publisher.qos_profile.reliability.name == "RELIABLE"
    values = peer.get_later("qos_overrides./thermal/image_raw.subscription.depth").wait().values
    assert [value.integer_value for value in values] == [1]
