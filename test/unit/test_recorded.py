"""A recording of a camera and its results, whole and doctored in known ways, is judged."""

import csv
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from thermal_bags import image_of, messages, storage_file

from difiisr_models import FrameSettings, load_upscaler
from difiisr_ros.bag_storage import Message
from difiisr_ros.bag_writing import write_bag
from difiisr_ros.bags import (
    CAMERA_INFO_TYPE,
    DIAGNOSTICS_TYPE,
    IMAGE_TYPE,
    STORE,
    image_bytes,
    open_bag,
    ros_topic,
)
from difiisr_ros.replay import replay
from difiisr_ros.scene import IMAGE_TOPIC, INFO_TOPIC, START, write_scene_bag

pytest.importorskip("jinja2", reason="the page needs the extra eval")
pytest.importorskip("matplotlib", reason="the page needs the extra eval")

from difiisr_ros.commands.recorded_frames import read_recording
from difiisr_ros.commands.recorded_measures import judge

FRAMES = 12
PERIOD = 10**9 / 9  # ns
SR, SR_INFO = "/thermal/sr", "/thermal/sr/camera_info"
MS = 10**6
MODEL = "bicubic-consistent"
PROJECTION = FrameSettings(consistency=1.0)


@pytest.fixture(scope="module")
def bicubic():
    return load_upscaler(MODEL, device="cpu", settings=PROJECTION)


def window(topic, number, raw):
    """Of the scene, 80 x 60 pixels, which grow warmer from frame to frame."""
    if topic == INFO_TOPIC:
        return edit(raw, CAMERA_INFO_TYPE, width=80, height=60)
    message, counts = image_of(raw)
    return image_bytes(message.header, counts[30:90, 40:120] + np.uint16(9 * number), "mono16")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, bicubic):
    """The scene of the demo with its results, as `difiisr replay` writes them."""
    folder = tmp_path_factory.mktemp("recorded")
    write_scene_bag(folder / "large", FRAMES)
    doctor(folder / "large", folder / "scene", window)
    replay(folder / "scene", folder / "both", bicubic)
    return folder / "both"


def doctor(source, target, change=lambda topic, number, raw: raw, late=lambda *_: 0, extra=()):
    """Copy a bag: ``change`` edits or drops (None) a message, ``late`` gives its delay in ns."""
    numbers, written = Counter(), [Message(ros_topic(*topic), *times) for topic, *times in extra]
    with open_bag(source) as bag:
        for message in bag.messages():
            at = message.topic.name, numbers[message.topic.name]
            raw, time = change(*at, message.data), message.time + round(late(*at))
            written += [] if raw is None else [message._replace(time=time, data=raw)]
            numbers[message.topic.name] += 1
    with write_bag(target) as writer:
        for message in sorted(written, key=lambda message: message.time):
            writer.write(message)
    return target


@pytest.fixture
def judged(tmp_path, whole):
    """Judges a recording doctored as told; gives values and frames."""

    def judge_it(model=MODEL, source=whole, camera_bag=None, topics=(None, None), **changes):
        bag = doctor(source, tmp_path / "bag", **changes)
        upscaler = model and load_upscaler(model, device="cpu", settings=PROJECTION)
        recording = read_recording(bag, camera_bag, topics, upscaler)
        return judge(recording), recording.frames

    return judge_it


def edit(raw, message_type=IMAGE_TYPE, **fields):
    message = STORE.deserialize_cdr(raw, message_type)
    for name, value in fields.items():
        setattr(message, name, value)
    return bytes(STORE.serialize_cdr(message, message_type))


def edit_header(raw, shift=0, **fields):
    header = STORE.deserialize_cdr(raw, IMAGE_TYPE).header
    at = header.stamp.sec * 10**9 + header.stamp.nanosec + shift
    stamp = STORE.types["builtin_interfaces/msg/Time"](*divmod(at, 10**9))
    return edit(raw, header=replace(header, stamp=stamp, **fields))


def diagnostics(**values):
    kinds = {kind.rsplit("/", 1)[-1]: make for kind, make in STORE.types.items()}
    pairs = [kinds["KeyValue"](key=k, value=v) for k, v in values.items()]
    status = kinds["DiagnosticStatus"](0, "sr_node: super-resolution", "", "", pairs)
    header = kinds["Header"](stamp=kinds["Time"](0, 0), frame_id="")
    array = STORE.types[DIAGNOSTICS_TYPE](header=header, status=[status])
    return bytes(STORE.serialize_cdr(array, DIAGNOSTICS_TYPE))


def has(found, **wanted):
    return {name: found[name] for name in wanted} == wanted


def test_an_offline_replay_is_bit_exact(judged):
    values, _ = judged()
    assert has(values["topics"], image=IMAGE_TOPIC, sr=SR)
    assert has(values["offline"], exact=FRAMES, frames=FRAMES, exact_share=1.0, difference_max=0.0)
    assert has(values["camera_info"], messages=FRAMES, right=FRAMES, wrong={})
    assert has(values, mismatches={}, fault="")
    assert values["drops"]["total"] == 0
    assert values["sr"]["rate"] == pytest.approx(9.0)
    # Rounding to whole counts is all that keeps the scaled-down result from being the input.
    assert values["consistency"]["max"] < 0.5
    assert "offline" in values["notes"][0]


def test_the_compact_model_is_bit_exact_with_itself(tmp_path, whole):
    upscaler = load_upscaler("difiisr-rt-x4", device="cpu", backend="torch", fidelity=0.5)
    replay(whole.parent / "scene", tmp_path / "bag", upscaler, frames=2)
    same = judge(read_recording(tmp_path / "bag", upscaler=upscaler))
    upscaler.change(fidelity=1.0)
    other = judge(read_recording(tmp_path / "bag", upscaler=upscaler))
    assert has(same["offline"], exact=2, weights_sha256=upscaler.weights_sha256)
    assert other["offline"]["exact"] == 0
    assert any("settings" in note for note in other["notes"])


def coloured(counts):
    """8-bit colours that differ from channel to channel."""
    grey = ((counts - counts.min()) >> 3).clip(0, 200).astype(np.uint8)
    return np.stack([grey, grey + 20, 255 - grey], axis=-1)


def with_holes(counts):
    """Kelvin with a pixel that is none."""
    kelvin = counts.astype(np.float32) * 0.01
    kelvin[10, 14] = np.nan
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
def test_every_encoding_is_compared(tmp_path, whole, bicubic, judged, encoding, convert):
    def change(topic, number, raw):
        message, counts = image_of(raw) if topic == IMAGE_TOPIC and number < 3 else (None, None)
        return message and image_bytes(message.header, convert(counts), encoding)

    camera = doctor(whole.parent / "scene", tmp_path / "camera", change)
    replay(camera, tmp_path / "both", bicubic)
    # One result is lost: the run must find out whether its frame was processed.
    lose = lambda *message: None if message[:2] == (SR, 1) else message[2]  # noqa: E731
    values, _ = judged(source=tmp_path / "both", change=lose)
    assert has(values["offline"], exact=2, frames=2)
    assert values["consistency"]["frames"] == 2
    assert values["mismatches"] == {}


def test_another_encoding_begins_a_new_stream_as_in_the_node(tmp_path, whole, bicubic, judged):
    def change(topic, number, raw):
        renamed = topic == IMAGE_TOPIC and number > 5
        return edit(raw, encoding="16UC1") if renamed else raw

    camera = doctor(whole.parent / "scene", tmp_path / "camera", change)
    replay(camera, tmp_path / "both", bicubic)
    assert has(judged(source=tmp_path / "both")[0]["offline"], exact=FRAMES, frames=FRAMES)


def test_latency_is_from_message_to_message(judged):
    late = lambda topic, number: 10 * (number + 1) * MS if topic.startswith(SR) else 0  # noqa: E731
    values, _ = judged(model=None, late=late)
    wanted = 10.0 * np.arange(1, FRAMES + 1)
    for times in (values["latency_ms"], values["stamp_latency_ms"]):
        assert times["count"] == FRAMES
        found = [times[name] for name in ("min", "p50", "p90", "p99", "max")]
        assert found == pytest.approx(np.percentile(wanted, (0, 50, 90, 99, 100)))
    assert values["clock_offset_ms"]["max"] == 0
    assert values["sr"]["interval_ms"]["p50"] == pytest.approx(PERIOD / 1e6 + 10)
    assert values["sr"]["rate"] == pytest.approx(1e9 / (PERIOD + 10 * MS))
    assert has(values, offline=None, notes=[])


def test_frames_without_result_are_counted_where_they_are(judged, whole):
    """And doubles, disorder and stamps of no frame."""

    def change(topic, number, raw):
        if topic == SR and number in (0, 1, 5, 6, 11):
            return None
        return edit_header(raw, shift=5) if (topic, number) == (SR, 3) else raw

    late = lambda *message: round(1.5 * PERIOD) if message == (SR, 8) else 0  # noqa: E731
    _, at, raw = messages(whole, SR)[4]
    again = [((SR, IMAGE_TYPE), at + MS, raw)]
    values, frames = judged(model=None, change=change, late=late, extra=again)
    drops = {"before_first": 2, "between": 3, "after_last": 1, "orphans": 1}
    assert values["drops"] == {"frames": FRAMES, "total": 6, **drops}
    assert has(values["sr"], duplicates=1, out_of_order=1)
    (gap,) = values["sr"]["gaps"]
    assert gap["missing"] == 2
    assert gap["seconds"] == pytest.approx(3 * PERIOD / 1e9)
    assert values["camera"]["gaps"] == []
    assert values["latency_ms"]["count"] == FRAMES - 6
    assert len(frames) == FRAMES + 1


@pytest.mark.parametrize(
    ("keep", "exact", "lost", "note"),
    [
        # The node processed every frame; the results of some did not reach the recorder.
        (lambda topic, n: topic != SR or n not in (4, 7, 8), 9, 3, "3 frames without a result"),
        # The node saw frames that nobody recorded.
        (lambda topic, n: n >= 5, 0, 0, "frames from before the recording began"),
    ],
)
def test_differences_and_losses_are_explained(judged, keep, exact, lost, note):
    values, _ = judged(change=lambda *message: message[2] if keep(*message[:2]) else None)
    offline = values["offline"]
    assert (offline["lost_results"], values["drops"]["between"]) == (lost, lost)
    assert (offline["exact"] == offline["frames"]) == bool(lost)
    assert offline["exact"] >= exact
    assert offline["difference_max"] <= 2  # ranges differ by little
    assert any(note in text for text in values["notes"])


def test_results_of_a_node_that_dropped_frames_are_bit_exact(tmp_path, whole, bicubic, judged):
    """The node never saw the dropped frames: the offline run must not see them either."""
    seen, scene = (0, 1, 4, 5, 6, 9), whole.parent / "scene"
    camera = doctor(scene, tmp_path / "seen", lambda _, n, raw: raw if n in seen else None)
    replay(camera, tmp_path / "answers", bicubic, only_sr=True)
    values, _ = judged(source=tmp_path / "answers", camera_bag=scene)
    assert has(values["offline"], exact=len(seen), frames=len(seen), lost_results=0)
    assert values["drops"]["total"] == FRAMES - len(seen)
    assert values["latency_ms"] is None
    assert "two recordings" in values["notes"][0]


def test_a_changed_pixel_and_wrong_fields_are_found(judged):
    def change(topic, number, raw):
        if (topic, number) == (SR_INFO, 5):
            k = STORE.deserialize_cdr(raw, CAMERA_INFO_TYPE).k.copy()
            k[2] -= 1.5  # image_proc's principal point
            return edit(raw, CAMERA_INFO_TYPE, k=k)
        if (topic, number) == (SR, 5):
            pixels = image_of(raw)[1].copy()
            pixels[50, 70] += 40
            return edit(raw, data=pixels.view(np.uint8).ravel())
        edits = {
            (SR, 0): lambda: edit_header(raw, frame_id="elsewhere"),
            (SR, 1): lambda: edit(raw, encoding="16UC1"),
            (SR, 2): lambda: edit(raw, height=120),
            (SR, 3): lambda: edit(raw, height=0),
        }
        return edits.get((topic, number), lambda: raw)()

    values, frames = judged(change=change)
    due = {"frame_id": 1, "encoding": 1, "size": 1, "unreadable": 1}
    assert values["mismatches"] == due
    assert has(values["camera_info"], right=FRAMES - 1, wrong={"k": 1})
    # A result that cannot be compared was made all the same: those after it stay exact.
    exact = frames.exact[:6].astype(object)
    assert exact.where(exact.notna(), None).tolist() == [True, None, None, None, True, False]
    assert has(values["offline"], exact=FRAMES - 4, frames=FRAMES - 3, difference_max=40)
    before, changed = frames.iloc[4], frames.iloc[5]
    assert changed.difference_mean == pytest.approx(40 / (240 * 320))
    assert changed.consistency_max > 1 > before.consistency_max


def test_stamps_of_another_clock_give_no_latency(judged):
    values, _ = judged(model=None, late=lambda *_: 86_400 * 10**9)
    assert values["stamp_latency_ms"] is None
    assert values["latency_ms"]["max"] == 0
    assert any("86400.0 s" in note for note in values["notes"])


def test_the_nodes_own_words_explain_a_difference(judged):
    said = {"model": "ours", "weights sha256": "ab" * 32, "backend": "torch", "device": "cuda"}

    def darker(topic, _, raw):
        data = STORE.deserialize_cdr(raw, IMAGE_TYPE).data & 0xFE if topic == SR else None
        return raw if data is None else edit(raw, data=data)

    topic = ("/diagnostics", DIAGNOSTICS_TYPE)
    values, _ = judged(change=darker, extra=[(topic, START, diagnostics(**said))])
    assert values["node"] == said
    assert values["offline"]["exact"] == 0
    assert any("other weights: abababababab (ours)" in note for note in values["notes"])
    assert any("torch on cuda" in note for note in values["notes"])


def test_the_three_files(tmp_path, whole, difiisr, json_of):
    late = lambda topic, number: (30 + number % 3) * MS * topic.startswith(SR)  # noqa: E731
    bag = doctor(whole, tmp_path / "bag", late=late)
    command = ["recorded", bag, f"--model={MODEL}", "--consistency=1", "--device=cpu", "--out"]
    said = difiisr(*command, tmp_path / "a").out
    assert f"{FRAMES} of {FRAMES} frames bit-exact" in said
    written = json.loads((tmp_path / "a" / "recorded.json").read_text())
    assert written["offline"]["exact_share"] == 1.0
    assert written["latency_ms"]["p50"] == pytest.approx(31)
    rows = list(csv.DictReader((tmp_path / "a" / "recorded_per_frame.csv").open()))
    assert len(rows) == FRAMES
    assert {row["exact"] for row in rows} == {"True"}
    assert int(rows[0]["stamp"]) == int(rows[0]["camera_logged"]) == START
    page = (tmp_path / "a" / "recorded.html").read_text()
    assert page.count("<svg") == 1
    assert "src=" not in page  # opens offline, alone
    assert "<link" not in page
    assert json_of(*command, tmp_path / "b") == written
    for name in ("recorded.json", "recorded.html", "recorded_per_frame.csv"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


def test_topics_are_asked_for_when_they_are_not_clear(tmp_path, whole, bicubic):
    replay(whole.parent / "scene", tmp_path / "results", bicubic, only_sr=True, frames=1)
    for bag, topics, said in (
        (whole.parent / "scene", (None, None), rf"--sr-topic.*{IMAGE_TOPIC}.*difiisr replay"),
        (tmp_path / "results", (None, None), rf"{SR}; --camera-bag"),
        (whole, ("/x", None), "no topic '/x' for --topic"),
        (whole, (SR, SR), "cannot be the camera's topic"),
    ):
        with pytest.raises(ValueError, match=said):
            read_recording(bag, topics=topics)
    with pytest.raises(FileNotFoundError):
        read_recording(tmp_path / "nothing")


@pytest.mark.parametrize("left", [8, 12, 60])
def test_damaged_messages_are_noted_and_cost_only_themselves(tmp_path, whole, left, difiisr):
    lost = int(left < 12)  # of that many bytes not even a stamp is left
    damaged = {(SR_INFO, 2), (INFO_TOPIC, 7), *[(SR, 3)][:lost]}
    said = diagnostics(model="damaged")[:left], diagnostics(model="ours")
    topic = ("/diagnostics", DIAGNOSTICS_TYPE)
    bag = doctor(
        whole,
        tmp_path / "bag",
        lambda topic, number, raw: raw[:left] if (topic, number) in damaged else raw,
        extra=[(topic, START + i, raw) for i, raw in enumerate(said)],
    )
    command = ["evaluate", bag, "--recorded", "--out", tmp_path, "--model", "none"]
    assert "the recording is damaged" in difiisr(*command, code=2).err
    written = json.loads((tmp_path / "recorded.json").read_text())
    assert written["node"] == {"model": "ours"}
    assert (written["sr"]["messages"], written["drops"]["total"]) == (FRAMES - lost, lost)
    assert has(written["camera_info"], messages=FRAMES - 1, right=FRAMES - 1)
    reason = "8 bytes are too few" if lost else "its bytes are no "
    for topic, number in {("/diagnostics", 0), *damaged}:
        assert f"message {number} of {topic}: {reason}" in written["fault"]


def test_a_recording_without_its_end_is_judged_as_far_as_it_goes(tmp_path, whole, difiisr):
    file = storage_file(doctor(whole, tmp_path / "bag"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    command = ["recorded", file.parent, "--out", tmp_path, "--device", "cpu"]
    difiisr(*command, "--model", MODEL, "--consistency", "1", code=2)
    written = json.loads((tmp_path / "recorded.json").read_text())
    assert file.name in written["fault"]
    assert 0 < written["offline"]["exact"] == written["offline"]["frames"] < FRAMES
