import os
import sqlite3

import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_typestore
from scipy.ndimage import gaussian_filter
from thermal_bags import (
    IMAGE,
    INFO,
    WORDS,
    camera_info,
    cut,
    header,
    image_of,
    info_of,
    messages,
    pixels,
    record,
)

from difiisr_models import Camera, Stream, load_upscaler
from difiisr_ros import bags
from difiisr_ros.bag_writing import write_bag
from difiisr_ros.replay import replay

SR, SR_INFO = "/cam/sr", "/cam/sr/camera_info"


@pytest.fixture(scope="module")
def bicubic():
    return load_upscaler("bicubic", device="cpu")


@pytest.fixture(params=["mcap", "sqlite3"])
def storage(request):
    return request.param


def test_every_frame_is_answered_at_its_time(tmp_path, storage, bicubic):
    source = record(tmp_path / "in", storage)
    report = replay(source, tmp_path / "out", bicubic)
    assert (report.frames_in, report.frames_out, report.malformed) == (5, 5, [])
    assert report.faults == []
    frames, results = messages(source, IMAGE), messages(tmp_path / "out", SR)
    assert [at for _, at, _ in results] == [at for _, at, _ in frames]
    infos = messages(tmp_path / "out", SR_INFO)
    assert [at for _, at, _ in infos] == [at for _, at, _ in frames]
    for (_, _, before), (_, _, after), (_, _, raw) in zip(frames, results, infos, strict=True):
        info, (camera, counts), (image, result) = info_of(raw), image_of(before), image_of(after)
        assert (info.width, info.height, info.k[0]) == (96, 72, 4 * 152.0)
        assert image.header == info.header == camera.header
        assert (image.encoding, result.shape) == ("mono16", (72, 96))
        shrunk = result.reshape(18, 4, 24, 4).mean(axis=(1, 3))
        assert np.abs(shrunk - counts).mean() < 0.1 * np.ptp(counts)


def unstamped(data: bytes) -> bytes:
    return data[:4] + bytes(8) + data[12:]  # seconds and nanoseconds of the header


def test_infos_and_images_without_a_stamp_go_together_by_their_times(tmp_path, bicubic):
    infos = {n: unstamped(camera_info(n, 18, 24 if n < 3 else 640)) for n in range(5)}
    images = {n: unstamped(bags.image_bytes(header(n), pixels(n), "mono16")) for n in range(5)}
    source = record(tmp_path / "in", images=images, infos=infos)
    report = replay(source, tmp_path / "out", bicubic)
    assert len(messages(tmp_path / "out", SR_INFO)) == 3
    (warning,) = report.warnings  # of another size: said once
    assert "images of 640x18, these are 24x18" in warning


def test_a_recording_without_camera_info_is_told(tmp_path, bicubic):
    source = record(tmp_path / "in")
    replay(source, tmp_path / "all", bicubic, only_sr=True, sr_topic="/cam/new/image")
    report = replay(
        tmp_path / "all", tmp_path / "out", bicubic, image_topic="/cam/new/image", sr_topic="/x"
    )
    assert report.warnings == ["there is no /cam/new/camera_info: the results have no camera_info"]
    assert not messages(tmp_path / "out", "/x/camera_info")


def test_what_is_cut_off_is_not_in_the_result(tmp_path, bicubic):
    source = record(tmp_path / "in", frames=1)
    replay(source, tmp_path / "out", bicubic, camera=Camera(crop="2, 0, 0, 1"))
    ((_, _, image), (_, _, info)) = messages(tmp_path / "out", SR, SR_INFO)
    info, (_, result) = info_of(info), image_of(image)
    assert (info.height, info.width) == result.shape == (4 * 16, 4 * 23)
    np.testing.assert_array_equal(result, bicubic(pixels(0)[2:, :-1], Stream()))


def test_pixels_without_a_measurement_come_back_as_they_were(tmp_path, bicubic):
    broken = pixels(0)
    broken[5, 6] = 7
    source = record(tmp_path / "in", images=[broken])
    replay(source, tmp_path / "out", bicubic, camera=Camera(no_data="7, 65535"))
    ((_, _, data),) = messages(tmp_path / "out", SR)
    _, result = image_of(data)
    assert (result < 28_000).sum() == 16
    assert (result[20:24, 24:28] == 7).all()


def test_all_other_topics_are_copied_byte_for_byte(tmp_path, storage, bicubic):
    source = record(tmp_path / "in", storage)
    replay(source, tmp_path / "out", bicubic)
    copied = messages(tmp_path / "out", IMAGE, INFO, WORDS)
    assert copied == messages(source)
    # The result is readable by type.
    with AnyReader([tmp_path / "out"]) as reader:
        assert {c.topic for c in reader.connections} == {IMAGE, INFO, WORDS, SR, SR_INFO}
    replay(source, tmp_path / "out", bicubic, only_sr=True, force=True)
    assert {topic for topic, _, _ in messages(tmp_path / "out")} == {SR, SR_INFO}


def test_cut_recording_yields_what_is_readable(tmp_path, bicubic):
    source = record(tmp_path / "in", frames=60)
    frames = messages(source, IMAGE)
    cut(source, 0.7)
    report = replay(source, tmp_path / "out", bicubic)
    assert report.faults
    assert 10 < report.frames_out < 60
    copied = messages(tmp_path / "out", IMAGE)
    assert copied == frames[: len(copied)]
    assert len(messages(tmp_path / "out", SR)) == report.frames_out
    cut_before_the_first_frame = record(tmp_path / "short")
    cut(cut_before_the_first_frame, 0.02)
    with pytest.raises(bags.BagError):
        replay(cut_before_the_first_frame, tmp_path / "none", bicubic)
    assert sorted(os.listdir(tmp_path)) == ["in", "out", "short"]


def test_existing_output_is_safe(tmp_path, bicubic):
    source = record(tmp_path / "in")
    target = record(tmp_path / "out", frames=1)
    before = messages(target)
    with pytest.raises(FileExistsError, match="--force"):
        replay(source, target, bicubic)
    assert messages(target) == before
    replay(source, target, bicubic, force=True)
    assert len(messages(target, SR)) == 5
    (target / "metadata.yaml").rename(target / "thesis.txt")  # now it is no recording
    with pytest.raises(FileExistsError, match="holds no metadata"):
        replay(source, target, bicubic, force=True)
    assert (target / "thesis.txt").exists()


def test_output_may_not_touch_the_input(tmp_path, bicubic):
    source = record(tmp_path / "in")
    before = messages(source)
    for target in (source, tmp_path, source / "deeper"):
        with pytest.raises(FileExistsError):
            replay(source, target, bicubic, force=True)
    assert messages(source) == before


def test_malformed_frames_are_counted_and_named(tmp_path, bicubic):
    good = bags.image_bytes(header(1), pixels(1), "mono16")
    # height and width follow the header: 4 + 8 bytes, a string of 5, padding
    size = (18).to_bytes(4, "little") + (24).to_bytes(4, "little")
    forged = good.replace(size, (40_000).to_bytes(4, "little") + size[4:])
    damaged = {1: forged, 2: good[:30], 3: pixels(3, 8, 8)}
    source = record(tmp_path / "in", images=damaged)
    report = replay(source, tmp_path / "out", bicubic)
    assert (report.frames_in, report.frames_out) == (5, 2)
    first, *_, last = report.malformed
    assert first.startswith("frame 1 at 1100000007 ns: ")
    assert "40000" in first
    assert last.startswith("frame 3 at 1300000007 ns: ")
    assert len(messages(tmp_path / "out", IMAGE)) == 5


def test_info_with_other_stamps_is_found_by_time(tmp_path, bicubic):
    # As if the driver sent its camera_info once, before the first image.
    late = {index: camera_info(50) for index in range(5)}
    replay(record(tmp_path / "in", infos=late), tmp_path / "out", bicubic)
    infos = [raw for _, _, raw in messages(tmp_path / "out", SR_INFO)]
    stamps = [info_of(raw).header.stamp.nanosec for raw in infos]
    assert stamps == [0, 100_000_000, 200_000_000, 300_000_000, 400_000_000]


def test_result_topic_may_not_exist_yet(tmp_path, bicubic):
    replay(record(tmp_path / "in"), tmp_path / "out", bicubic)
    with pytest.raises(ValueError, match=SR):
        replay(tmp_path / "out", tmp_path / "twice", bicubic, image_topic=IMAGE)
    replay(tmp_path / "out", tmp_path / "twice", bicubic, image_topic=IMAGE, sr_topic="/sr2")
    assert len(messages(tmp_path / "twice", "/sr2")) == 5
    assert len(messages(tmp_path / "twice", "/sr2/camera_info")) == 5


def test_old_sqlite_recording_with_a_type_nobody_knows(tmp_path, bicubic):
    """Before rosbag2 stored definitions, a recording could not say what its types are."""
    source, data = record(tmp_path / "in", "sqlite3", frames=1), b"\x00\x01\x00\x00ours"
    with sqlite3.connect(source / "in.db3") as database:
        database.execute("DELETE FROM message_definitions")
        described = "name = '/x', type = 'our_msgs/msg/X', type_description_hash = ''"
        database.execute(f"UPDATE topics SET {described} WHERE id = 3")
        database.execute("UPDATE messages SET data = ?, timestamp = 2 WHERE topic_id = 3", [data])
    replay(source, tmp_path / "out", bicubic)
    assert messages(tmp_path / "out", "/x") == [("/x", 2, data)]
    usual = get_typestore(Stores.ROS2_KILTED)
    with AnyReader([tmp_path / "out"], default_typestore=usual) as reader:
        assert {c.topic for c in reader.connections} == {IMAGE, INFO, "/x", SR, SR_INFO}


def test_results_keep_the_send_times_and_qos_of_their_frames(tmp_path, bicubic):
    never = "{sec: 2147483647, nsec: 4294967295}"
    fields = {"history": 1, "depth": 5, "reliability": 2, "durability": 2, "liveliness": 1}
    fields |= dict.fromkeys(("deadline", "lifespan", "liveliness_lease_duration"), never)
    qos = "\n  ".join(f"{name}: {value}" for name, value in fields.items())
    qos = f"- {qos}\n  avoid_ros_namespace_conventions: false\n"
    camera = bags.Topic(IMAGE, bags.IMAGE_TYPE, metadata=(("offered_qos_profiles", qos),))
    with write_bag(tmp_path / "in") as writer:
        image = bags.image_bytes(header(0), pixels(0), "mono16")
        writer.write(bags.Message(camera, 9, image, published=4, sequence=7))
    replay(tmp_path / "in", tmp_path / "out", bicubic)
    with bags.open_bag(tmp_path / "out") as bag:
        frame, result = bag.messages()
        assert frame.data == image
        assert frame[3:] == result[3:] == (4, 7)
    with AnyReader([tmp_path / "out"]) as reader:
        offered = {c.topic: c.ext.offered_qos_profiles for c in reader.connections}
        assert offered[IMAGE] == offered[SR] == offered[SR_INFO]
        assert offered[IMAGE][0].reliability.name == "BEST_EFFORT"


def panning(path, frames):
    """A recording of a scene that moves, with noise, an offset in each row, and a broken frame."""
    rng = np.random.default_rng(0)
    scene = gaussian_filter(rng.normal(30_000, 1_500, (48, 40 + 2 * frames)), 3)
    rows = rng.normal(0, 4, (48, 1))

    def view(n):
        seen = scene[:, 2 * n : 2 * n + 40] + rows + rng.normal(0, 3, (48, 40))
        return seen.round().astype(np.uint16)

    return record(path, images=[b"broken" if n == frames // 3 else view(n) for n in range(frames)])


def test_slices_put_together_are_the_whole_to_the_bit(tmp_path):
    consistent = load_upscaler("bicubic-consistent", device="cpu")
    source = panning(tmp_path / "in", frames=30)
    whole = replay(source, tmp_path / "whole", consistent)
    found, refused = [], []
    for first, frames in ((0, 5), (5, 17), (22, None)):
        report = replay(source, tmp_path / f"{first}", consistent, first=first, frames=frames)
        found += messages(tmp_path / f"{first}")
        refused += report.malformed
    assert found == messages(tmp_path / "whole")
    assert refused == whole.malformed
    assert len(refused) == 1


def test_a_short_warm_up_is_near_the_whole(tmp_path):
    consistent = load_upscaler("bicubic-consistent", device="cpu")
    source = panning(tmp_path / "in", frames=60)
    last = {}
    for name, warm_up in (("whole", None), ("short", 20), ("none", 0)):
        replay(source, tmp_path / name, consistent, first=58, warm_up=warm_up)
        results = messages(tmp_path / name, SR)
        last[name] = [image_of(data)[1].astype(float) for _, _, data in results]
    span = np.ptp(last["whole"])
    short, none = (np.abs(np.subtract(last[k], last["whole"])).max() for k in ("short", "none"))
    assert len(last["short"]) == 2
    assert 0 < short <= 0.03 * span
    assert none > short


def test_repeated_frames_and_jumps_are_told_and_repeats_may_be_dropped(tmp_path, bicubic):
    shown = [pixels(0), pixels(0), pixels(0) + 900, pixels(0) + 900]
    source = record(tmp_path / "in", images=shown)
    report = replay(source, tmp_path / "all", bicubic)
    assert (report.frames_out, report.events) == (4, "2 repeat, 1 offset")
    camera = Camera(on_repeat="drop")
    report = replay(source, tmp_path / "fewer", bicubic, camera=camera)
    assert (report.frames_in, report.frames_out, report.repeated) == (4, 2, 2)
    every, kept = (messages(tmp_path / name, SR) for name in ("all", "fewer"))
    assert kept == every[::2]


def test_another_encoding_of_the_same_pixels_begins_a_new_stream(tmp_path, bicubic):
    encodings = ("mono16", "mono16", "16UC1")
    images = [bags.image_bytes(header(n), pixels(0), name) for n, name in enumerate(encodings)]
    source = record(tmp_path / "in", images=images)
    assert replay(source, tmp_path / "two", bicubic, frames=2).events == "1 repeat"
    assert replay(source, tmp_path / "all", bicubic).events == "none"
    assert replay(source, tmp_path / "last", bicubic, first=2).events == "none"
