"""sr_node as users meet it: a process of its own, real DDS, a camera and a recorder beside it."""

import itertools
import signal
import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (pip extra ros, or a sourced distribution)")

import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterValue
from rcl_interfaces.srv import SetParameters, SetParametersAtomically
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import deserialize_message
from ros_peer import Peer, of, wait_until
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import UInt8
from std_srvs.srv import Trigger

from difiisr_models.camera_files import Calibration
from difiisr_ros.bags import CAMERA_INFO_TYPE, IMAGE_TYPE, STORE
from difiisr_ros.commands.hostile_messages import hostile_image, hostile_info, hostile_requests
from difiisr_ros.image_codec import ENCODINGS, image_to_array
from difiisr_ros.node_process import NodeProcess
from difiisr_ros.parameters import DEFAULTS, LIVE

REMAP = (
    "-r", "image_raw:=/thermal/image_raw", "-r", "camera_info:=/thermal/camera_info",
    "-r", "sr/image_raw:=/thermal/sr", "-r", "sr/camera_info:=/thermal/sr/camera_info",
)  # fmt: skip
MODEL = "bicubic-consistent"
LIVE_DEFAULTS = {name: getattr(DEFAULTS, name) for name in LIVE}


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sr_node")
    process = NodeProcess(
        folder / "log",
        *REMAP,
        *("-p", f"calibration:={folder / 'camera.npz'}"),
        *("-p", f"model:={MODEL}", "-p", "device:=cpu", "-p", "autostart:=true"),
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
    """A peer that listens to an active node."""
    connected.listen()
    return connected


def scene(height=60, width=80):
    """A smooth scene in raw counts with a warm body, uint16."""
    y, x = np.mgrid[:height, :width]
    warm = 900 * np.exp(-((x - width / 2) ** 2 + (y - height / 2) ** 2) / (2 * (height / 6) ** 2))
    return (7300 + 0.5 * x + warm).astype(np.uint16)


def assert_same_counts(answer, counts, offset=0.0):
    """Each block of 4x4 pixels has the mean that its pixel in the input had."""
    pixels = image_to_array(answer).astype(np.float64)
    height, width = counts.shape[:2]
    means = pixels.reshape(height, 4, width, 4, *pixels.shape[2:]).mean(axis=(1, 3))
    np.testing.assert_allclose(means, counts, atol=0.05 * np.ptp(counts) + offset)


def rclpy_message(fields, kind):
    """The message of these fields, whatever rclpy would say of them."""
    for name in ("data", "d"):
        if hasattr(fields, name):
            values = getattr(fields, name)
            setattr(
                fields, name, np.frombuffer(values, np.uint8) if kind is Image else np.array(values)
            )
    ros_type = IMAGE_TYPE if kind is Image else CAMERA_INFO_TYPE
    return deserialize_message(bytes(STORE.serialize_cdr(fields, ros_type)), kind)


def camera_info(width, height):
    info = CameraInfo(width=width, height=height)
    info.k = [100.0, 0.0, width / 2 - 0.5, 0.0, 100.0, height / 2 - 0.5, 0.0, 0.0, 1.0]
    info.p = [100.0, 0.0, width / 2 - 0.5, -7.0, 0.0, 100.0, height / 2 - 0.5, 0.0,
              0.0, 0.0, 1.0, 0.0]  # fmt: skip
    info.d = [-0.3, 0.1, 0.0, 0.0, 0.0]
    return info


def test_every_frame_of_a_stream_is_answered(peer):
    counts = scene()
    peer.ask_with(camera_info(80, 60), counts)
    for frame in range(18):
        sent = peer.send(counts + frame)
        answer = peer.answer_to(sent)
        info = wait_until(lambda sent=sent: of(peer.infos, sent))
        assert answer.header == info.header == sent.header
        assert (answer.width, answer.height, answer.encoding) == (320, 240, "mono16")
        assert_same_counts(answer, counts + frame)
        assert (info.width, info.height) == (320, 240)
        assert (info.k[0], info.k[2], info.p[3]) == (400.0, 159.5, -28.0)
        np.testing.assert_array_equal(info.d, [-0.3, 0.1, 0.0, 0.0, 0.0])
        time.sleep(1 / 30)
    # What was skipped before is forgotten after some seconds.
    wait_until(
        lambda: peer.ask(counts) and peer.status()[0].level == DiagnosticStatus.OK,
        lambda: peer.status()[0].message,
    )
    _, values = peer.status()
    assert float(values["latency p99 (ms)"]) >= float(values["latency p50 (ms)"]) > 0
    assert (values["model"], values["device"]) == (MODEL, "cpu")
    assert values["backend"]
    assert float(values["memory (MB)"]) > 10


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_units_and_encoding_out_are_those_in(peer, encoding):
    dtype, channels = ENCODINGS[encoding]
    pixels = {1: scene() / 64, 2: scene(), 4: scene() / 25.0}[dtype.itemsize].astype(dtype)
    if channels == 3:
        pixels = np.stack([pixels, pixels // 2, pixels // 3], axis=-1)
    _, answer = peer.ask(pixels, encoding)
    assert (answer.encoding, answer.height, answer.width) == (encoding, 240, 320)
    assert_same_counts(answer, pixels, offset=1)


@pytest.mark.parametrize(
    ("field", "value"), [("width", 2**32 - 1), ("data", b""), ("encoding", "nv99")]
)
def test_a_malformed_message_is_dropped_counted_and_survived(peer, process, field, value):
    before = peer.counts()["dropped malformed"]
    message = peer.image(scene())
    setattr(message, field, value)
    peer.send_message(message)
    wait_until(lambda: peer.counts()["dropped malformed"] > before)
    status, _ = peer.status()
    assert status.level == DiagnosticStatus.WARN
    assert "images refused" in status.message
    peer.ask(scene())
    assert of(peer.images, message) is None
    assert peer.counts()["dropped malformed"] == before + 1
    assert "1 images refused in 10 s: step" in process.log


@pytest.mark.parametrize(
    ("pixels", "limit", "reason"),
    [(np.zeros((4, 4), np.uint16), 2.0, "failed"), (scene(), 0.001, "too_large")],
)
def test_a_frame_that_the_model_cannot_take_is_counted_and_survived(peer, pixels, limit, reason):
    before = peer.counts()[f"dropped {reason}"]
    assert peer.set(max_frame_megapixels=limit).successful
    sent = peer.send(pixels)
    wait_until(lambda: peer.counts()[f"dropped {reason}"] > before)
    assert peer.set(max_frame_megapixels=2.0).successful
    peer.ask(scene())
    assert of(peer.images, sent) is None


def test_live_parameters_act_on_the_next_frame(peer):
    noisy = (7300 + np.random.default_rng(0).normal(0, 40, (60, 80))).astype(np.uint16)
    results = []
    for consistency in (1.0, 0.0, 1.0):
        assert peer.set(consistency=consistency).successful
        results.append(image_to_array(peer.ask(noisy)[1]))
    kept, loose, again = results
    assert np.abs(kept.astype(int) - loose).max() > 1
    np.testing.assert_array_equal(kept, again)
    assert "less than half the tile (256), got 200" in peer.set(overlap=200).reason
    assert "read-only" in peer.set(autostart=False).reason


@pytest.mark.parametrize("service", [SetParameters, SetParametersAtomically])
def test_a_forged_type_number_is_refused_and_the_node_goes_on(peer, process, service):
    good = Parameter("fidelity", value=1.0).to_parameter_msg()
    forged = ParameterMessage(name="fidelity", value=ParameterValue(type=200))
    name = {SetParameters: "set_parameters"}.get(service, "set_parameters_atomically")
    answer = peer.call(service, name, service.Request(parameters=[good, forged]))
    results = answer.results if service is SetParameters else [answer.result]
    assert not results[-1].successful
    assert "200" in results[-1].reason
    assert service is SetParametersAtomically or results[0].successful
    process.check()
    peer.ask(scene())


def test_hostile_requests_and_messages_are_answered_and_accounted_for(peer, process):
    rng = np.random.default_rng(5)
    for _ in range(10):
        for kind, name, request in hostile_requests(rng):
            assert peer.call(kind, name, request) is not None
    assert peer.set(**LIVE_DEFAULTS, use_sim_time=False).successful
    for _ in range(60):
        for hostile, kind, publish in (
            (hostile_image(rng), Image, peer.send_message),
            (hostile_info(rng), CameraInfo, peer.send_info),
        ):
            publish(rclpy_message(hostile, kind))
            time.sleep(0.005)
    peer.ask(scene())
    _, answer = peer.ask(scene())
    assert_same_counts(answer, scene())
    assert peer.counts()["frames received"] > 0  # and each has met a fate
    assert "left by a callback" not in process.log


def test_a_camera_that_starts_again_is_answered_and_lost_nothing(peer):
    before = peer.counts()["frames lost before"]
    for _ in range(6):
        peer.ask(scene())
    peer.restart_camera()
    peer.ask(scene())
    assert peer.counts()["frames lost before"] == before


def test_a_silent_camera_and_a_second_node_of_the_name_are_told_until_they_are_over(peer):
    twin = rclpy.create_node("sr_node", context=peer.node.context)
    silent, named = "no image on /thermal/image_raw", "another node is named /sr_node"
    for text in (silent, named):
        wait_until(lambda text=text: text in peer.status()[0].message)
    assert peer.status()[0].level == DiagnosticStatus.ERROR
    twin.destroy_node()
    peer.ask(scene())
    for text in (silent, named):
        wait_until(lambda text=text: peer.ask(scene()) and text not in peer.status()[0].message)


def test_deactivated_is_silent_and_activated_answers_again(peer):
    assert peer.transition("deactivate")
    assert peer.state() == "inactive"
    sent = peer.send(scene())
    status, _ = peer.status()
    assert peer.counts()["frames received"] > 0  # what was under way is accounted for
    assert status.message == "inactive"
    assert of(peer.images, sent) is None
    assert not peer.transition("configure")  # it is already
    assert peer.transition("activate")
    peer.listen()


def test_a_missing_camera_info_is_told_once_and_shown(peer, process):
    text = "no camera_info on /thermal/camera_info"
    peer.transition("deactivate")
    before = process.log.count(text)
    peer.transition("activate")
    peer.listen()
    wait_until(lambda: peer.ask(scene()) and text in peer.status()[1]["camera_info"])
    wait_until(lambda: peer.ask(scene()) and text in peer.status()[0].message)
    assert peer.status()[0].level == DiagnosticStatus.WARN
    assert process.log.count(text) == before + 1
    peer.ask_with(camera_info(80, 60), scene())
    assert peer.status()[1]["camera_info"] == "used"


def test_the_hottest_measured_value_and_invalid_pixels_are_shown(peer):
    frame = scene()
    frame[5, 6], frame[40, 41] = 7, 9000
    peer.ask(frame)
    assert peer.status()[1]["coldest measured (counts)"] == "7"
    assert "'0;7'" in peer.set(no_data="0;7").reason
    assert peer.set(no_data=7).successful
    _, answer = peer.ask(frame)
    _, values = peer.status()
    assert (values["invalid pixels"], values["hottest measured (counts)"]) == ("1", "9000")
    assert float(values["coldest measured (counts)"]) == frame[frame > 7].min()
    assert (image_to_array(answer)[20:24, 24:28] == 7).all()
    assert peer.set(no_data="", crop="2, 0, 0, 16").successful
    info = peer.ask_with(camera_info(80, 60), frame)
    _, answer = peer.ask(frame)
    assert (answer.width, answer.height) == (info.width, info.height) == (4 * 64, 4 * 58)
    assert (info.k[2], info.k[5]) == (159.5, 4 * (29.5 - 2) + 1.5)
    assert peer.set(crop="").successful


def test_shutter_events_are_told_on_a_latched_topic(peer):
    frame, states = scene(), []
    peer.ask(frame)
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    listener = peer.node.create_subscription(
        DiagnosticStatus, "/sr/stream_state", states.append, latched
    )
    wait_until(lambda: states)  # from before it listened
    sent, answer = peer.ask(frame)
    assert answer.header == sent.header
    wait_until(lambda: states[-1].message == "repeat")
    assert states[-1].hardware_id.startswith("thermal_optical_")
    peer.ask(frame + 400)
    wait_until(lambda: states[-1].message == "offset")
    values = {value.key: value.value for value in states[-1].values}
    assert float(values["last event offset (counts)"]) == pytest.approx(400, abs=1)
    assert int(peer.status()[1]["events offset"]) >= 1
    assert peer.set(on_repeat="drop").successful
    before = peer.counts()["dropped repeated"]
    peer.send(frame + 400)
    wait_until(lambda: peer.counts()["dropped repeated"] > before)
    assert peer.set(on_repeat="publish").successful
    peer.node.destroy_subscription(listener)


def test_a_shutter_flag_of_any_type_is_heard(peer):
    flag = peer.node.create_publisher(UInt8, "/shutter_flag", 1)
    wait_until(flag.get_subscription_count)
    flag.publish(UInt8(data=3))  # closing
    shown = (scene() + shift for shift in itertools.count())
    wait_until(lambda: peer.ask(next(shown)) and peer.status()[1]["event"] == "flat")
    flag.publish(UInt8(data=0))
    wait_until(lambda: peer.ask(next(shown)) and peer.status()[1]["event"] != "flat")
    peer.node.destroy_publisher(flag)


def test_the_telemetry_of_a_lepton_is_heard(peer):
    assert peer.set(telemetry="lepton", telemetry_rows=2).successful
    telemetry = np.zeros((2, scene().shape[1]), np.uint16)
    frames = (np.concatenate((telemetry, scene() + np.uint16(n))) for n in itertools.count())

    def is_flat():
        return peer.ask(next(frames)) and peer.status()[1]["event"] == "flat"

    for state, flat in ((3, False), (2, True), (3, False)):
        telemetry[0, 3] = state << 4
        wait_until(lambda flat=flat: is_flat() == flat)
    assert peer.set(telemetry="none", telemetry_rows=0).successful


def test_calibrate_saves_and_reset_forgets(peer, process):
    for n in range(3):
        peer.ask(scene() + n)
    answer = peer.call(Trigger, "calibrate", Trigger.Request())
    assert answer.success, answer.message
    path, _, found = answer.message.partition(": ")
    assert found.startswith("0 stuck pixels, noise ")
    assert Calibration.load(path).bad.shape == (60, 80)
    assert peer.call(Trigger, "reset", Trigger.Request()).success
    wait_until(lambda: peer.status()[1].get("event", "none") == "none")
    peer.ask(scene(64, 80))
    wait_until(lambda: "is of frames of 80x60" in process.log)


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
    assert peer.set(model=MODEL).successful
    for transition in ("configure", "activate"):
        assert peer.transition(transition)
    peer.listen()


def test_no_work_while_nobody_listens(peer):
    peer.stop_listening()

    def passed_by(since):
        peer.send(scene())
        return peer.counts()["frames idle"] > since["frames idle"] and peer.counts()

    left = wait_until(lambda: passed_by({"frames idle": 0}))  # the node knows that nobody listens
    later = wait_until(lambda: passed_by({"frames idle": left["frames idle"] + 2}))
    assert later["frames published"] == left["frames published"]


def test_a_camera_of_640x512_loses_nothing(peer):
    """By the Fast DDS profile that is shipped; the stock one loses images of this size."""
    peer.stop_listening()
    for _ in range(3):  # a machine that is busy elsewhere loses a frame now and then
        before = peer.counts()["frames received"]
        for _ in range(60):
            peer.send(scene(512, 640))
            time.sleep(1 / 30)
        received = peer.counts()["frames received"] - before
        if received == 60:
            return
    pytest.fail(f"{received} of 60 received")


def test_services_answer_while_a_frame_is_processed(peer):
    large, before_the_frame = scene(512, 640), 0

    def answered_three_times():
        nonlocal before_the_frame
        sent = peer.send(large)
        peer.get("fidelity")
        before_the_frame += of(peer.images, sent) is None
        return before_the_frame >= 3

    wait_until(answered_three_times)
    peer.ask(large)


def test_a_slow_model_skips_to_the_newest_frame_and_counts_the_skipped(peer):
    before = peer.counts()
    counts = scene(512, 640)
    for _ in range(20):
        peer.send(counts)
        time.sleep(1 / 60)
    last, _ = peer.ask(counts)
    answered = [image.header.stamp.sec for image in peer.images if image.width == 2560]
    assert answered == sorted(answered)
    assert answered[-1] == last.header.stamp.sec
    after = peer.counts()
    change = {fate: after[fate] - before[fate] for fate in after}
    assert change["dropped stale"] == change["frames received"] - change["frames published"] > 0


def test_the_graph_keeps_what_ros_tools_expect(peer):
    topics = dict(peer.node.get_topic_names_and_types())
    assert topics["/thermal/sr"] == ["sensor_msgs/msg/Image"]
    (subscription,) = peer.node.get_subscriptions_info_by_topic("/thermal/image_raw")
    assert subscription.qos_profile.reliability.name == "BEST_EFFORT"
    (publisher,) = peer.node.get_publishers_info_by_topic("/thermal/sr")
    assert publisher.qos_profile.reliability.name == "RELIABLE"
    values = peer.get("qos_overrides./thermal/image_raw.subscription.depth")
    assert [value.integer_value for value in values] == [1]
