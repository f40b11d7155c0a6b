"""Recorded mode: a bag of a camera and its results, whole and doctored in known ways."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from difiisr_models import load_upscaler
from difiisr_models.image_encoding import encode
from difiisr_ros.bag_reader import CAMERA_INFO_TYPE, IMAGE_TYPE, BagReader
from difiisr_ros.bag_writer import STORE, copy_connections, image_bytes, write_bag
from difiisr_ros.cli import main as difiisr
from difiisr_ros.demo.scene_bag import IMAGE_TOPIC, INFO_TOPIC, START, write_scene_bag
from difiisr_ros.replay import replay
from difiisr_training.evaluation.recorded.bag import RecordedMessage, match_frames
from difiisr_training.evaluation.recorded.timing import find_drops, find_gaps, stream_timing

pytest.importorskip("jinja2", reason="the page needs the extra eval")
pytest.importorskip("matplotlib", reason="the page needs the extra eval")

from difiisr_training.evaluation.recorded.cli import evaluate_recorded, main

FRAMES = 12
PERIOD = 10**9 / 9  # ns
SR, SR_INFO = "/thermal/sr", "/thermal/sr/camera_info"
MS = 10**6
DIAGNOSTICS = "diagnostic_msgs/msg/DiagnosticArray"


@pytest.fixture(scope="module")
def bicubic():
    return load_upscaler("bicubic", device="cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, bicubic):
    """The scene of the demo with its results, as `difiisr replay` writes them."""
    folder = tmp_path_factory.mktemp("recorded")
    write_scene_bag(folder / "scene", FRAMES)
    replay(folder / "scene", folder / "both", bicubic)
    return folder / "both"


def doctor(source, target, change, extra=()):
    """Copy a bag; ``change(topic, number, at, raw)`` gives the messages to write instead."""
    counts, messages = {}, []
    with BagReader(source) as bag, write_bag(target) as writer:
        copies = copy_connections(bag.connections, writer)
        for connection, at, raw in bag.messages():
            number = counts[connection.topic] = counts.get(connection.topic, -1) + 1
            for item in change(connection.topic, number, at, bytes(raw)):
                messages.append((copies[connection.topic, connection.msgtype], *item))
        for topic, message_type, at, raw in extra:
            key = (topic, message_type)
            if key not in copies:
                copies[key] = writer.add_connection(topic, message_type, typestore=STORE)
            messages.append((copies[key], at, raw))
        for connection, at, raw in sorted(messages, key=lambda message: message[1]):
            writer.write(connection, at, raw)
    return target


def late(by):
    """Results that are recorded later than their frames: ``by(number)`` ms."""

    def change(topic, number, at, raw):
        yield at + (round(by(number) * MS) if topic.startswith(SR) else 0), raw

    return change


def edit(raw, message_type=IMAGE_TYPE, **fields):
    message = STORE.deserialize_cdr(raw, message_type)
    for name, value in fields.items():
        setattr(message, name, value)
    return bytes(STORE.serialize_cdr(message, message_type))


def restamped(raw, shift):
    message = STORE.deserialize_cdr(raw, IMAGE_TYPE)
    stamp = message.header.stamp
    at = stamp.sec * 10**9 + stamp.nanosec + shift
    time = STORE.types["builtin_interfaces/msg/Time"](*divmod(at, 10**9))
    message.header = replace(message.header, stamp=time)
    return bytes(STORE.serialize_cdr(message, IMAGE_TYPE))


def diagnostics(**values):
    pair = STORE.types["diagnostic_msgs/msg/KeyValue"]
    status = STORE.types["diagnostic_msgs/msg/DiagnosticStatus"](
        level=0, name="sr_node: super-resolution", message="", hardware_id="",
        values=[pair(key=k, value=v) for k, v in values.items()],
    )  # fmt: skip
    time = STORE.types["builtin_interfaces/msg/Time"](0, 0)
    header = STORE.types["std_msgs/msg/Header"](stamp=time, frame_id="")
    array = STORE.types[DIAGNOSTICS](header=header, status=[status])
    return bytes(STORE.serialize_cdr(array, DIAGNOSTICS))


def evaluate(bag, out, **options):
    return evaluate_recorded(bag, out, **{"model": "bicubic", "device": "cpu", **options})


def test_an_offline_replay_is_bit_exact(tmp_path, whole):
    report = evaluate(whole, tmp_path)
    assert (report.topics.image, report.topics.sr) == (IMAGE_TOPIC, SR)
    assert (report.offline.exact, report.offline.frames) == (FRAMES, FRAMES)
    assert (report.offline.exact_share, report.offline.difference_max) == (1.0, 0.0)
    assert report.drops.total == 0
    assert report.mismatches == {}
    assert report.fault == ""
    assert (report.camera_info.right, report.camera_info.messages) == (FRAMES, FRAMES)
    assert report.sr.rate == pytest.approx(9.0)
    # Rounding to whole counts is all that keeps the scaled-down result from being the input.
    assert report.consistency.max < 0.5
    assert "offline" in report.notes[0]


def test_the_compact_model_is_bit_exact_with_itself(tmp_path, whole):
    upscaler = load_upscaler("difiisr-rt-x4", device="cpu", backend="torch", fidelity=0.5)
    replay(whole.parent / "scene", tmp_path / "bag", upscaler, frames=4)
    ours = {"model": "difiisr-rt-x4", "backend": "torch"}
    same = evaluate(tmp_path / "bag", tmp_path / "a", **ours, fidelity=0.5)
    assert same.offline.exact == 4
    assert same.offline.weights_sha256 == upscaler.weights_sha256
    other = evaluate(tmp_path / "bag", tmp_path / "b", **ours, fidelity=1.0)
    assert other.offline.exact == 0
    assert any("settings" in note for note in other.notes)


def coloured(counts):
    """8-bit colours that differ from channel to channel."""
    grey = ((counts - counts.min()) >> 3).clip(0, 200).astype(np.uint8)
    return np.stack([grey, grey + 20, 255 - grey], axis=-1)


def with_holes(counts):
    """Kelvin with a pixel that is none."""
    kelvin = counts.astype(np.float32) * 0.01
    kelvin[30, 40] = np.nan
    return kelvin


@pytest.mark.parametrize(
    ("encoding", "convert"),
    [
        ("rgb8", coloured),
        ("rgb8", lambda counts: np.repeat(coloured(counts)[..., :1], 3, axis=-1)),
        ("32FC1", with_holes),
        ("mono8", lambda counts: coloured(counts)[..., 0]),
    ],
)
def test_every_encoding_is_compared(tmp_path, whole, bicubic, encoding, convert):
    def change(topic, number, at, raw):
        if topic == IMAGE_TOPIC and number < 3:
            message = STORE.deserialize_cdr(raw, IMAGE_TYPE)
            counts = message.data.view("<u2").reshape(message.height, message.width)
            yield at, image_bytes(message.header, convert(counts), encoding)

    camera = doctor(whole.parent / "scene", tmp_path / "camera", change)
    replay(camera, tmp_path / "both", bicubic)
    report = evaluate(tmp_path / "both", tmp_path / "out")
    assert (report.offline.exact, report.offline.frames) == (3, 3)
    assert report.consistency.frames == 3
    assert report.mismatches == {}


def test_latency_is_from_message_to_message(tmp_path, whole):
    bag = doctor(whole, tmp_path / "bag", late(lambda number: 10 * (number + 1)))
    report = evaluate(bag, tmp_path)
    wanted = 10.0 * np.arange(1, FRAMES + 1)
    for times in (report.latency_ms, report.stamp_latency_ms):
        assert times.count == FRAMES
        assert times.p50 == pytest.approx(np.percentile(wanted, 50))
        assert times.p99 == pytest.approx(np.percentile(wanted, 99))
        assert (times.min, times.max) == (pytest.approx(10), pytest.approx(120))
    assert report.clock_offset_ms.max == 0
    assert report.sr.interval_ms.p50 == pytest.approx(PERIOD / 1e6 + 10)
    assert report.sr.rate == pytest.approx(1e9 / (PERIOD + 10 * MS))
    assert report.notes == ()


def test_frames_without_result_are_counted_where_they_are(tmp_path, whole):
    def change(topic, number, at, raw):
        if topic != SR or number not in (0, 1, 5, 6, 11):
            yield at, raw

    report = evaluate(doctor(whole, tmp_path / "bag", change), tmp_path, model=None)
    drops = report.drops
    assert (drops.frames, drops.total) == (FRAMES, 5)
    assert (drops.before_first, drops.between, drops.after_last) == (2, 2, 1)
    (gap,) = report.sr.gaps
    assert gap.missing == 2
    assert gap.seconds == pytest.approx(3 * PERIOD / 1e9)
    assert report.camera.gaps == ()
    assert report.offline is None


def test_lost_results_are_told_from_dropped_frames(tmp_path, whole):
    """The node processed every frame; the results of some did not reach the recorder."""
    lost = (4, 7, 8)
    keep = lambda topic, number, at, raw: [] if topic == SR and number in lost else [(at, raw)]  # noqa: E731
    report = evaluate(doctor(whole, tmp_path / "bag", keep), tmp_path)
    assert report.drops.between == report.offline.lost_results == len(lost)
    assert report.offline.exact == report.offline.frames == FRAMES - len(lost)
    assert any(note.startswith("3 frames without a result were processed") for note in report.notes)


def test_a_range_from_before_the_recording_is_explained(tmp_path, whole):
    first = 5  # the node saw four frames that nobody recorded
    keep = lambda topic, number, at, raw: [(at, raw)] if number >= first else []  # noqa: E731
    report = evaluate(doctor(whole, tmp_path / "bag", keep), tmp_path)
    assert report.offline.exact < report.offline.frames == FRAMES - first
    assert 0 < report.offline.difference_max <= 2  # the ranges differ by little
    assert any("before the recording began" in note for note in report.notes)


def test_results_of_a_node_that_dropped_frames_are_bit_exact(tmp_path, whole, bicubic):
    """The node never saw the dropped frames: the offline run must not see them either."""
    kept = (0, 1, 4, 5, 6, 9)
    only = lambda topic, number, at, raw: [(at, raw)] if number in kept else []  # noqa: E731
    seen = doctor(whole.parent / "scene", tmp_path / "seen", only)
    replay(seen, tmp_path / "answers", bicubic, only_sr=True)
    report = evaluate(tmp_path / "answers", tmp_path, camera_bag=whole.parent / "scene")
    assert (report.offline.exact, report.offline.frames) == (len(kept), len(kept))
    assert report.drops.total == FRAMES - len(kept)
    assert report.offline.lost_results == 0
    assert report.latency_ms is None
    assert "two recordings" in report.notes[0]


def test_one_changed_pixel_is_found(tmp_path, whole):
    def change(topic, number, at, raw):
        if (topic, number) == (SR, 3):
            message = STORE.deserialize_cdr(raw, IMAGE_TYPE)
            pixels = message.data.view("<u2").reshape(message.height, message.width).copy()
            pixels[100, 200] += 40
            raw = edit(raw, data=encode(pixels, "mono16").ravel())
        yield at, raw

    report = evaluate(doctor(whole, tmp_path / "bag", change), tmp_path)
    assert report.offline.exact == FRAMES - 1
    assert report.offline.difference_max == 40
    changed = report.frames[3]
    assert not changed.exact
    assert changed.difference_mean == pytest.approx(40 / (480 * 640))
    assert changed.consistency_max > 1 > report.frames[2].consistency_max


def test_wrong_fields_are_named(tmp_path, whole):
    def change(topic, number, at, raw):
        if (topic, number) == (SR, 0):
            message = STORE.deserialize_cdr(raw, IMAGE_TYPE)
            raw = edit(raw, header=replace(message.header, frame_id="elsewhere"))
        elif (topic, number) == (SR, 1):
            raw = edit(raw, encoding="16UC1")
        elif (topic, number) == (SR, 2):
            raw = edit(raw, height=240)
        elif (topic, number) == (SR, 3):
            raw = edit(raw, height=0)
        elif (topic, number) == (SR_INFO, 5):
            info = STORE.deserialize_cdr(raw, CAMERA_INFO_TYPE)
            k = info.k.copy()
            k[2] -= 1.5  # image_proc's principal point
            raw = edit(raw, CAMERA_INFO_TYPE, k=k)
        yield at, raw

    report = evaluate(doctor(whole, tmp_path / "bag", change), tmp_path)
    assert report.mismatches == {"frame_id": 1, "encoding": 1, "size": 1, "unreadable": 1}
    assert (report.camera_info.right, report.camera_info.wrong) == (FRAMES - 1, {"k": 1})
    # A result that cannot be compared was made all the same: those after it stay exact.
    assert [frame.exact for frame in report.frames[:5]] == [True, None, None, None, True]


def test_stamps_of_no_frame_doubles_and_disorder(tmp_path, whole):
    def change(topic, number, at, raw):
        if topic != SR:
            yield at, raw
        elif number == 2:
            yield at, restamped(raw, 5)
        elif number == 4:
            yield at, raw
            yield at + MS, raw
        elif number == 7:
            yield at + round(1.5 * PERIOD), raw
        else:
            yield at, raw

    report = evaluate(doctor(whole, tmp_path / "bag", change), tmp_path, model=None)
    assert (report.sr.duplicates, report.sr.out_of_order) == (1, 1)
    assert (report.drops.total, report.drops.orphans) == (1, 1)
    assert len(report.frames) == FRAMES + 1
    assert report.latency_ms.count == FRAMES - 1


def test_stamps_of_another_clock_give_no_latency(tmp_path, whole):
    day = 86_400 * 10**9
    bag = doctor(whole, tmp_path / "bag", lambda topic, number, at, raw: [(at + day, raw)])
    report = evaluate(bag, tmp_path, model=None)
    assert report.stamp_latency_ms is None
    assert report.latency_ms.max == 0
    assert any("86400.0 s" in note for note in report.notes)


def test_detections_are_matched_by_stamp(tmp_path, whole):
    """Any message with a header will do: its stamp is all that is read."""
    with BagReader(whole) as bag:
        infos = [(at, bytes(raw)) for _, at, raw in bag.messages({INFO_TOPIC})]
    found = [("/boxes", CAMERA_INFO_TYPE, at + 50 * MS, raw) for at, raw in infos[:-2]]
    bag = doctor(whole, tmp_path / "bag", late(lambda number: 20), found)
    report = evaluate(bag, tmp_path, model=None, detections_topic="/boxes")
    assert report.detections.missing == 2
    assert report.detections.after_sr_ms.p50 == pytest.approx(30)
    assert report.detections.after_camera_ms.p50 == pytest.approx(50)
    assert report.frames[0].detections_logged == infos[0][0] + 50 * MS


def test_the_nodes_own_words_explain_a_difference(tmp_path, whole):
    values = {"model": "ours", "weights sha256": "ab" * 32, "backend": "torch", "device": "cuda"}
    said = [("/diagnostics", DIAGNOSTICS, START, diagnostics(**values))]

    def darker(topic, number, at, raw):
        if topic == SR:
            raw = edit(raw, data=STORE.deserialize_cdr(raw, IMAGE_TYPE).data & 0xFE)
        yield at, raw

    report = evaluate(doctor(whole, tmp_path / "bag", darker, said), tmp_path)
    assert report.node == values
    assert report.offline.exact == 0
    assert any("other weights: abababababab (ours)" in note for note in report.notes)
    assert any("torch on cuda" in note for note in report.notes)


def test_the_three_files(tmp_path, whole, capsys):
    bag = doctor(whole, tmp_path / "bag", late(lambda number: 30 + number % 3))
    arguments = [str(bag), "--recorded", "--model", "bicubic", "--device", "cpu", "--out"]
    assert main([*arguments, str(tmp_path / "a")]) == 0
    assert f"{FRAMES} of {FRAMES} frames bit-exact" in capsys.readouterr().out
    written = json.loads((tmp_path / "a" / "recorded.json").read_text())
    assert written["offline"]["exact_share"] == 1.0
    assert written["latency_ms"]["p50"] == pytest.approx(31)
    rows = list(csv.DictReader((tmp_path / "a" / "recorded_per_frame.csv").open()))
    assert len(rows) == FRAMES
    assert {row["exact"] for row in rows} == {"True"}
    assert [int(row["stamp"]) for row in rows][:1] == [START]
    page = (tmp_path / "a" / "recorded.html").read_text()
    assert page.count("<svg") == 3
    assert "src=" not in page  # opens offline, alone
    assert "<link" not in page
    main([*arguments, str(tmp_path / "b")])
    for name in ("recorded.json", "recorded.html", "recorded_per_frame.csv"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


def test_topics_are_asked_for_when_they_are_not_clear(tmp_path, whole):
    scene = whole.parent / "scene"
    with pytest.raises(ValueError, match=rf"image topics: {IMAGE_TOPIC}.*difiisr replay"):
        evaluate(scene, tmp_path, model=None)
    replay(scene, tmp_path / "results", load_upscaler("bicubic"), only_sr=True)
    with pytest.raises(ValueError, match=rf"only {SR}: .*--camera-bag"):
        evaluate(tmp_path / "results", tmp_path, model=None)
    with pytest.raises(ValueError, match="no topic '/x' for --topic"):
        evaluate(whole, tmp_path, model=None, image_topic="/x")
    with pytest.raises(FileNotFoundError):
        evaluate(tmp_path / "nothing", tmp_path, model=None)


def test_damaged_messages_cost_only_themselves(tmp_path, whole, capsys):
    def change(topic, number, at, raw):
        yield at, raw[:8] if (topic, number) == (SR, 3) else raw

    bag = doctor(whole, tmp_path / "bag", change)
    command = ["evaluate", str(bag), "--recorded", "--out", str(tmp_path / "out")]
    assert difiisr([*command, "--model", "none"]) == 2
    assert f"message 3 of {SR}: 8 bytes" in capsys.readouterr().err
    written = json.loads((tmp_path / "out" / "recorded.json").read_text())
    assert (written["sr"]["messages"], written["drops"]["total"]) == (FRAMES - 1, 1)


@pytest.mark.parametrize("left", [12, 30, 60])
def test_damaged_diagnostics_and_infos_are_noted_and_cost_only_themselves(tmp_path, whole, left):
    def change(topic, number, at, raw):
        cut = (topic, number) in ((SR_INFO, 2), (INFO_TOPIC, 7))
        yield at, raw[:left] if cut else raw

    good, bad = diagnostics(model="ours"), diagnostics(model="damaged")[:left]
    said = [("/diagnostics", DIAGNOSTICS, START + i, raw) for i, raw in enumerate((bad, good))]
    bag = doctor(whole, tmp_path / "bag", change, said)
    command = ["evaluate", str(bag), "--recorded", "--out", str(tmp_path / "out")]
    assert difiisr([*command, "--model", "none"]) == 2
    written = json.loads((tmp_path / "out" / "recorded.json").read_text())
    assert written["node"] == {"model": "ours"}
    assert (written["sr"]["messages"], written["drops"]["total"]) == (FRAMES, 0)
    info = written["camera_info"]
    assert (info["messages"], info["right"]) == (FRAMES - 1, FRAMES - 1)
    for place, kind in (
        ("message 0 of /diagnostics", DIAGNOSTICS),
        (f"message 2 of {SR_INFO}", CAMERA_INFO_TYPE),
        (f"message 7 of {INFO_TOPIC}", CAMERA_INFO_TYPE),
    ):
        assert f"{place}: its bytes are no {kind} (" in written["fault"]


def test_a_recording_without_its_end_asks_for_repair(tmp_path, whole):
    bag = doctor(whole, tmp_path / "bag", lambda topic, number, at, raw: [(at, raw)])
    (file,) = bag.glob("*.mcap")
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(ValueError, match="mcap recover"):
        evaluate(bag, tmp_path, model=None)


def test_frames_wait_for_late_results_and_no_longer():
    def messages(*stamps):
        return [RecordedMessage(stamp, 0, b"") for stamp in stamps]

    frames, results = messages(1, 2, 3, 4, 5), messages(2, 1, 9, 4, 4, 5)
    stamps = [np.array([m.stamp for m in some]) for some in (frames, results)]
    pairs = [(f and f.stamp, r and r.stamp) for f, r in match_frames(frames, results, *stamps)]
    assert pairs == [(2, 2), (1, 1), (None, 9), (3, None), (4, 4), (4, 4), (5, 5)]


def test_timing_of_few_messages():
    none = np.array([], np.int64)
    empty = stream_timing(none, none)
    assert (empty.messages, empty.rate, empty.interval_ms, empty.gaps) == (0, None, None, ())
    one = stream_timing(np.array([5]), np.array([7]))
    assert (one.messages, one.rate, one.duplicates) == (1, None, 0)
    assert find_drops(np.array([1, 2, 3]), none).total == 3
    assert find_gaps(np.array([0, 10, 20, 50, 60]))[0].missing == 2
