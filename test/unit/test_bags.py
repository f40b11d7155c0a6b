"""Recordings are read whole or as far as they go; what is written is read by others."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import zstandard
from mcap.reader import make_reader
from mcap.writer import CompressionType
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from thermal_bags import (
    IMAGE,
    INFO,
    STRING,
    WORDS,
    header,
    kill_the_recorder,
    mcap_file,
    messages,
    pixels,
    record,
    storage_file,
    word,
)

from difiisr_ros import bags
from difiisr_ros.bag_writing import write_bag


@pytest.fixture(params=["mcap", "sqlite3"])
def storage(request):
    return request.param


def test_whole_recording_reads_as_others_read_it_its_file_alone_too(tmp_path, storage):
    folder = record(tmp_path / "bag", storage)
    with AnyReader([folder]) as reference:
        wanted = [(c.topic, c.msgtype, at, bytes(raw)) for c, at, raw in reference.messages()]
        definitions = [connection.msgdef.data for connection in reference.connections]
    for path in (folder, storage_file(folder), folder):  # the last time without metadata.yaml
        with bags.open_bag(path) as bag:
            assert bag.fault == ""
            assert [topic.name for topic in bag.topics] == [INFO, IMAGE, WORDS]
            assert [topic.definition.decode() for topic in bag.topics] == definitions
            assert [bag.count(topic.name) for topic in bag.topics] == [5, 5, 5]
            found = [(m.topic.name, m.topic.type, m.time, m.data) for m in bag.messages()]
            assert found == wanted
        if path != folder:
            (folder / "metadata.yaml").unlink()


@pytest.mark.parametrize("compression", list(CompressionType))
def test_cut_chunk_gives_its_beginning(tmp_path, compression):
    file = tmp_path / "a.mcap"
    payloads = [np.random.default_rng(n).bytes(200_000) for n in range(8)]
    with mcap_file(file, compression=compression) as writer:
        channel = writer.register_channel("/bytes", "json", 0)
        for at, payload in enumerate(payloads):
            writer.add_message(channel, at, payload, at)
    file.write_bytes(file.read_bytes()[: int(0.4 * file.stat().st_size)])
    with bags.open_bag(file) as bag:
        left = [message.data for message in bag.messages()]
        assert bag.count("/bytes") == len(left)
        assert "cut off" in bag.fault
    assert left == payloads[: len(left)]
    assert len(left) >= 2


@pytest.mark.parametrize(
    "options", [{"chunk_size": 150}, {"use_chunking": False}, {"use_statistics": False}]
)
def test_messages_come_by_time_whatever_chunk_they_lie_in_and_whatever_is_indexed(
    tmp_path, options
):
    times = [5, 1, 9, 3, 3, 8, 2, 7]
    with mcap_file(tmp_path / "a.mcap", **options) as writer:
        channel = writer.register_channel("/bytes", "json", 0)
        for number, at in enumerate(times):
            writer.add_message(channel, at, bytes([number] * 100), at)
    with bags.open_bag(tmp_path / "a.mcap") as bag:
        found = [(m.time, m.data[0]) for m in bag.messages()]
        assert found == sorted((at, number) for number, at in enumerate(times))
        assert (bag.count("/bytes"), bag.fault) == (8, "")


def test_several_files_are_read_in_numerical_order(tmp_path):
    bag, expected = tmp_path / "bag", []
    bag.mkdir()
    for number in (0, 2, 10):
        part = record(tmp_path / f"part_{number}", frames=1 + number)
        expected += messages(part)
        storage_file(part).rename(bag / f"bag_{number}.mcap")
    assert messages(bag) == expected
    with bags.open_bag(bag) as reader:
        assert (reader.count(IMAGE), len(reader.topics)) == (15, 3)


@pytest.mark.parametrize("left_in_the_log", [6, 15])
def test_write_ahead_log_of_a_killed_recorder_is_read(tmp_path, left_in_the_log):
    record(tmp_path / "bag", "sqlite3")
    expected = messages(tmp_path / "bag")
    kill_the_recorder(tmp_path / "bag", left_in_the_log)
    left = {file.name: file.read_bytes() for file in (tmp_path / "bag").iterdir()}
    for path in (tmp_path / "bag", tmp_path / "bag" / "bag.db3"):
        assert messages(path) == expected
        with bags.open_bag(path) as bag:
            assert "killed" in bag.fault
    assert {file.name: file.read_bytes() for file in (tmp_path / "bag").iterdir()} == left


def test_split_recording_with_a_damaged_file_gives_all_the_rest(tmp_path, storage):
    """Three files, as `ros2 bag record --max-bag-size` makes them."""
    bag = record(tmp_path / "bag", storage, frames=1)
    suffix = storage_file(bag).suffix
    storage_file(bag).unlink()
    for number in range(3):
        part = record(tmp_path / f"part_{number}", storage, frames=100)
        storage_file(part).rename(bag / f"bag_{number}{suffix}")
    names = "".join(f"  - bag_{number}{suffix}\n" for number in range(3))
    metadata = (bag / "metadata.yaml").read_text()
    assert f"  - bag{suffix}\n" in metadata
    (bag / "metadata.yaml").write_text(metadata.replace(f"  - bag{suffix}\n", names, 1))
    assert len(messages(bag, IMAGE)) == 300
    file = bag / f"bag_0{suffix}"
    middle = file.stat().st_size // 2
    with file.open("r+b") as damaged:
        damaged.seek(middle)
        damaged.write(b"\xff" * 8192)
    left = messages(bag, IMAGE)
    assert 210 < len(left) < 300  # something of the damaged file too
    assert left[-200:] == messages(bag / f"bag_1{suffix}", IMAGE) * 2
    assert left[:-200] == messages(file, IMAGE)
    with bags.open_bag(bag) as reader:
        list(reader.messages())
        assert file.name in reader.fault
        assert "bag_1" not in reader.fault
    file.write_bytes(b"nothing")
    assert messages(bag, IMAGE) == left[-200:]
    # What merely lies beside the files of the recording is none of it.
    shutil.copy(bag / f"bag_1{suffix}", bag / f"recovered{suffix}")
    assert messages(bag, IMAGE) == left[-200:]


def test_a_recorder_killed_while_it_compressed_left_one_recording(tmp_path):
    bag = record(tmp_path / "bag")
    expected = messages(bag)
    (bag / "metadata.yaml").unlink()
    content = zstandard.compress((bag / "bag.mcap").read_bytes())
    for share in (0.5, 1.0):
        (bag / "bag.mcap.zstd").write_bytes(content[: int(share * len(content))])
        assert messages(bag) == expected


@pytest.mark.parametrize("mode", [CompressionMode.FILE, CompressionMode.MESSAGE])
def test_compressed_recording_needs_no_metadata(tmp_path, storage, mode):
    writer = Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin[storage.upper()])
    writer.set_compression(mode, CompressionFormat.ZSTD)
    sent = [("/words", at, bytes([0, 1, 0, 0]) + bytes([at]) * 100) for at in range(9)]
    with writer:
        topic = writer.add_connection("/words", STRING, typestore=bags.STORE)
        for _, at, raw in sent:
            writer.write(topic, at, raw)
    assert messages(tmp_path / "bag") == sent
    (tmp_path / "bag" / "metadata.yaml").unlink()
    (file,) = (tmp_path / "bag").iterdir()
    for path in (tmp_path / "bag", file):
        assert messages(path) == sent
        with bags.open_bag(path) as bag:
            assert bag.fault == ""


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bag.mcap.zstd", b"nothing"),
        ("bag.mcap", b""),
        ("bag.mcap", b"no mcap at all"),
        ("bag.db3", b"no sqlite at all" * 100),
        ("notes.txt", b"hello"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(bags.BagError, match=str(tmp_path)):
        bags.open_bag(tmp_path)


def test_topics_are_chosen_or_asked_for(tmp_path):
    record(tmp_path / "bag")
    with bags.open_bag(tmp_path / "bag") as bag:
        assert bags.choose_image_topic(bag) == IMAGE
        assert bags.choose_info_topic(bag, IMAGE) == INFO
        assert bags.choose_info_topic(bag, "/other/image_raw") is None
        with pytest.raises(bags.TopicError, match=IMAGE):
            bags.choose_image_topic(bag, WORDS)
        with pytest.raises(bags.TopicError, match=INFO):
            bags.choose_info_topic(bag, IMAGE, WORDS)
        bag.topics.append(bags.ros_topic("/second", bags.IMAGE_TYPE))
        with pytest.raises(bags.TopicError, match=r"say which topic.*/cam/image_raw, /second"):
            bags.choose_image_topic(bag)


@pytest.mark.parametrize("big_endian", [False, True])
def test_stamp_of_serialized_message(big_endian):
    stamped = header(0)
    stamped.stamp.sec = -1
    message = bags.STORE.types[bags.COMPRESSED_TYPE](stamped, "png", np.zeros(3, np.uint8))
    raw = bags.STORE.serialize_cdr(message, bags.COMPRESSED_TYPE, little_endian=not big_endian)
    assert bags.stamp_of(bytes(raw)) == -1_000_000_000
    with pytest.raises(ValueError, match="3 bytes"):
        bags.stamp_of(raw[:3])


def test_what_is_written_is_read_by_others(tmp_path):
    image = bags.image_bytes(header(0), pixels(0), "mono16")
    with write_bag(tmp_path / "bag") as writer:
        topic = writer.add(bags.ros_topic(IMAGE, bags.IMAGE_TYPE))
        writer.write(bags.Message(topic, 5, image))
        writer.write(bags.Message(bags.ros_topic(WORDS, STRING), 6, word("hello")))
        writer.add(bags.ros_topic("/silent", STRING))
    with AnyReader([tmp_path / "bag"]) as reader:
        found = [(c.topic, at, bytes(raw)) for c, at, raw in reader.messages()]
        assert found == [(IMAGE, 5, image), (WORDS, 6, word("hello"))]
        counted = {c.topic: (c.msgcount, c.digest) for c in reader.connections}
    images, words = map(bags.STORE.hash_rihs01, (bags.IMAGE_TYPE, STRING))
    assert counted == {IMAGE: (1, images), WORDS: (1, words), "/silent": (0, words)}


def test_a_type_of_ones_own_keeps_its_definition(tmp_path, storage):
    own = get_typestore(Stores.ROS2_KILTED)
    own.register(get_types_from_msg("std_msgs/Header header\nfloat64 pascal\n", "our/msg/Pressure"))
    plugin = StoragePlugin[storage.upper()]
    with Writer(tmp_path / "bag", version=9, storage_plugin=plugin) as writer:
        connection = writer.add_connection("/pressure", "our/msg/Pressure", typestore=own)
        writer.write(connection, 1, b"\x00\x01\x00\x00own")
    with bags.open_bag(tmp_path / "bag") as bag, write_bag(tmp_path / "copy") as writer:
        for message in bag.messages():
            writer.write(message)
    with AnyReader([tmp_path / "copy"]) as reader:
        (copied,) = reader.connections
        assert copied.msgdef.data == connection.msgdef.data
        assert "our/msg/Pressure" in reader.typestore.types


def test_foreign_channels_attachments_and_send_times_are_copied(tmp_path):
    with mcap_file(tmp_path / "a.mcap", compression=CompressionType.ZSTD) as source:
        schema = source.register_schema("some.Thing", "protobuf", b"\n\0")
        channels = [
            source.register_channel("/proto", "protobuf", schema, {"key": "value"}),
            source.register_channel("/json", "json", 0),
        ]
        for channel in channels:
            source.add_message(channel, 9, b"{}", publish_time=4, sequence=7)
        source.add_attachment(1, 2, "calibration.yaml", "text/yaml", b"emissivity: 0.95\n")
        source.add_metadata("thermal", {"camera": "x"})
    with bags.open_bag(tmp_path / "a.mcap") as bag, write_bag(tmp_path / "copy") as writer:
        for message in bag.messages():
            writer.write(message)
        for extra in bag.extras():
            writer.write_extra(extra)
        assert bag.fault == ""

    def content(path):
        with path.open("rb") as file:
            reader = make_reader(file)
            for schema, channel, message in reader.iter_messages():
                yield schema and (schema.name, schema.encoding, schema.data)
                yield channel.topic, channel.message_encoding, channel.metadata, vars(message)
            yield from reader.iter_attachments()
            yield from (record for record in reader.iter_metadata() if record.name != "rosbag2")

    copied, given = (list(content(tmp_path / name)) for name in ("copy/copy.mcap", "a.mcap"))
    assert copied == given


def image(counts, encoding="mono16"):
    return bags.image_bytes(header(0), counts, encoding)


def write(path, topics):
    """``topics``: name -> messages."""
    with write_bag(path) as writer:
        for name, contents in topics.items():
            for at, data in enumerate(contents):
                writer.write(bags.Message(bags.ros_topic(name, bags.IMAGE_TYPE), at, data))
    return path


def test_frames_of_a_topic_and_of_some_messages(tmp_path):
    contents = [image(pixels(i)) for i in range(10)]
    write(tmp_path / "bag", {"/a": contents[:1], "/b": contents})
    every_fourth = bags.frames_of(tmp_path / "bag", "/b", 4)
    assert [name for name, _ in every_fourth] == ["000000", "000004", "000008"]
    last = bags.frames_of(tmp_path / "bag", "/b", choose=lambda count: [3, count - 1])
    assert [name for name, _ in last] == ["000003", "000009"]


def test_recordings_are_found_as_folders_and_as_files(tmp_path):
    for name in ("whole", "other"):
        write(tmp_path / name, {"/t": [image(pixels(0))]})
    loose = storage_file(tmp_path / "other").rename(tmp_path / "loose.mcap")
    assert bags.find_recordings(tmp_path) == [loose, tmp_path / "whole"]
    assert bags.find_recordings(loose) == [loose]


def test_damaged_messages_are_skipped_and_named(tmp_path):
    good, grey = image(pixels(0)), pixels(0).astype(np.uint8)
    colours = image(np.dstack([grey, grey // 2, grey]), "rgb8")
    nan = image(np.full((20, 20), np.nan, np.float32), "32FC1")
    odd = [good[:-1], colours, good[:40], nan, b"\x00\x01\x00\x00" + b"\xff" * 60]
    write(tmp_path / "bag", {"/t": [good, *odd, good]})
    skipped = []
    found = list(bags.frames_of(tmp_path / "bag", skipped=skipped.append))
    assert [name for name, _ in found] == ["000000", "000006"]
    assert [text.split()[2] for text in skipped] == ["1", "2", "3", "4", "5"]
    assert "'rgb8'" in skipped[1]
    assert "400 pixels are NaN" in skipped[3]


def test_an_output_that_came_into_being_meanwhile_is_left_alone(tmp_path):
    target = tmp_path / "out"
    for force in (False, True):  # it is no recording
        with pytest.raises(FileExistsError, match="out exists"), write_bag(target, force):
            target.mkdir()
        target.rmdir()  # and is empty


def test_an_interrupted_replacement_leaves_the_old_recording(tmp_path, monkeypatch):
    target = record(tmp_path / "out")
    before = (target / "metadata.yaml").read_bytes()
    rename = Path.rename

    def interrupted(path, other):
        if Path(other) == target and path.name == target.name:  # and not what was moved aside
            monkeypatch.setattr(Path, "rename", rename)
            raise KeyboardInterrupt
        return rename(path, other)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), write_bag(target, force=True):
        pass
    assert (target / "metadata.yaml").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
