import shutil

import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import CompressionFormat, CompressionMode, ReaderError, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from thermal_bags import (
    CUSTOM_DEFINITION,
    CUSTOM_TYPE,
    IMAGE,
    INFO,
    cut,
    kill_the_recorder,
    messages,
    record,
)

from difiisr_ros.bag_reader import (
    UNKNOWN_DIGEST,
    BagReader,
    choose_image_topic,
    choose_info_topic,
    definition_of,
    stamp_of,
)
from difiisr_ros.bag_remains import McapRemains, SqliteRemains, zstd
from difiisr_ros.bag_writer import STORE

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
STORAGES = [StoragePlugin.MCAP, StoragePlugin.SQLITE3]


@pytest.fixture(params=STORAGES, ids=["mcap", "sqlite3"])
def storage(request):
    return request.param


def test_whole_recording_has_no_fault(tmp_path, storage):
    record(tmp_path / "bag", storage)
    with BagReader(tmp_path / "bag") as bag:
        assert bag.storage is storage
        assert len(list(bag.messages())) == 15
        assert bag.fault == ""


def test_storage_file_alone_reads_like_its_folder(tmp_path, storage):
    record(tmp_path / "bag", storage)
    (file,) = (p for p in (tmp_path / "bag").iterdir() if p.suffix != ".yaml")
    assert messages(file) == messages(tmp_path / "bag")


def test_missing_metadata_alone_is_no_fault(tmp_path, storage):
    record(tmp_path / "bag", storage)
    expected = messages(tmp_path / "bag")
    (tmp_path / "bag" / "metadata.yaml").unlink()
    assert messages(tmp_path / "bag") == expected
    with BagReader(tmp_path / "bag") as bag:
        assert bag.fault == ""


@pytest.mark.parametrize("fraction", [0.35, 0.6, 0.9])
def test_cut_recording_gives_its_beginning(tmp_path, storage, fraction):
    # 120 frames: several SQLite pages and, for MCAP, records cut in the middle.
    record(tmp_path / "bag", storage, frames=120)
    whole = messages(tmp_path / "bag")
    cut(tmp_path / "bag", fraction)
    with BagReader(tmp_path / "bag") as bag:
        left = [(c.topic, at, bytes(raw)) for c, at, raw in bag.messages()]
        assert sum(c.msgcount for c in bag.connections) == len(left)
        assert bag.fault
    assert left == whole[: len(left)]
    assert len(left) > (fraction - 0.3) * len(whole)


def record_compressed_chunks(bag, count):
    """An MCAP of chunks that hold five or so of these payloads each."""
    writer = Writer(bag, version=9, storage_plugin=StoragePlugin.MCAP)
    writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
    payloads = [np.random.default_rng(at).bytes(200_000) for at in range(count)]
    with writer:
        topic = writer.add_connection("/bytes", "std_msgs/msg/String", typestore=STORE)
        for at, payload in enumerate(payloads):
            writer.write(topic, at, payload)
    return payloads


def test_cut_compressed_chunk_gives_its_beginning(tmp_path):
    payloads = record_compressed_chunks(tmp_path / "bag", 8)
    cut(tmp_path / "bag", 0.4)
    left = messages(tmp_path / "bag")
    assert [raw for _, _, raw in left] == payloads[: len(left)]
    assert len(left) >= 2


def test_several_files_are_read_in_numerical_order(tmp_path):
    bag = tmp_path / "bag"
    bag.mkdir()
    for number in (0, 2, 10):
        record(tmp_path / f"part_{number}", frames=1 + number)
        (tmp_path / f"part_{number}" / f"part_{number}.mcap").rename(bag / f"bag_{number}.mcap")
    with BagReader(bag) as reader:
        assert [c.msgcount for c in reader.connections if c.topic == IMAGE] == [1, 3, 11]


def test_damaged_byte_in_a_sqlite_recording_stops_there(tmp_path):
    record(tmp_path / "bag", StoragePlugin.SQLITE3, frames=200)
    file = tmp_path / "bag" / "bag.db3"
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8192] = b"\xff" * 8192
    file.write_bytes(content)
    with BagReader(tmp_path / "bag") as bag:
        assert 0 < len(list(bag.messages({IMAGE}))) < 200
        assert bag.fault


@pytest.mark.parametrize("left_in_the_log", [6, 15])
def test_write_ahead_log_of_a_killed_recorder_is_read(tmp_path, left_in_the_log):
    record(tmp_path / "bag", StoragePlugin.SQLITE3)
    expected = messages(tmp_path / "bag")
    kill_the_recorder(tmp_path / "bag", left_in_the_log)
    left = {file.name: file.read_bytes() for file in (tmp_path / "bag").iterdir()}
    for path in (tmp_path / "bag", tmp_path / "bag" / "bag.db3"):
        assert messages(path) == expected
        with BagReader(path) as bag:
            assert "killed" in bag.fault
    assert {file.name: file.read_bytes() for file in (tmp_path / "bag").iterdir()} == left


def split_recording(tmp_path, storage, frames=100):
    """One recording in three files, as `ros2 bag record --max-bag-size` makes them."""
    bag, suffix = tmp_path / "bag", {StoragePlugin.MCAP: "mcap", StoragePlugin.SQLITE3: "db3"}
    suffix = suffix[storage]
    record(bag, storage, frames=1)
    (bag / f"bag.{suffix}").unlink()
    for number in range(3):
        part = record(tmp_path / f"part_{number}", storage, frames=frames)
        (part / f"part_{number}.{suffix}").rename(bag / f"bag_{number}.{suffix}")
    names = "".join(f"  - bag_{number}.{suffix}\n" for number in range(3))
    metadata = (bag / "metadata.yaml").read_text()
    assert f"  - bag.{suffix}\n" in metadata
    (bag / "metadata.yaml").write_text(metadata.replace(f"  - bag.{suffix}\n", names, 1))
    return bag


def test_split_recording_with_a_damaged_file_gives_all_the_rest(tmp_path, storage):
    bag = split_recording(tmp_path, storage)
    assert len(messages(bag, IMAGE)) == 300
    file = next(bag.glob("bag_0.*"))
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8192] = b"\xff" * 8192
    file.write_bytes(content)
    left = messages(bag, IMAGE)
    assert 210 < len(left) < 300  # something of the damaged file too
    assert left[-200:] == messages(bag / f"bag_1{file.suffix}", IMAGE) * 2
    assert left[:-200] == messages(file, IMAGE)
    with BagReader(bag) as reader:
        list(reader.messages())
        assert file.name in reader.fault
        assert "closing index" not in reader.fault
    # What merely lies beside the files of the recording is none of it.
    record(tmp_path / "other", storage)
    (tmp_path / "other" / f"other{file.suffix}").rename(bag / f"other{file.suffix}")
    shutil.copy(bag / f"bag_1{file.suffix}", bag / f"recovered{file.suffix}")
    assert messages(bag, IMAGE) == left


def test_a_file_that_shrinks_while_it_is_read_ends_the_reading(tmp_path, storage):
    bag = record(tmp_path / "bag", storage, frames=100)
    (file,) = (p for p in bag.iterdir() if p.suffix != ".yaml")
    with BagReader(bag) as reader:
        stream = reader.messages({IMAGE})
        first = next(stream)
        file.write_bytes(b"")
        left = [first, *stream]
        assert 1 <= len(left) <= 100
        assert len({at for _, at, _ in left}) == len(left)


def test_damaged_chunk_costs_its_own_messages_only(tmp_path):
    payloads = record_compressed_chunks(tmp_path / "bag", 40)
    file = tmp_path / "bag" / "bag.mcap"
    content = bytearray(file.read_bytes())
    at = bytes(content).rindex(ZSTD_MAGIC, 0, bytes(content).index(payloads[20][:64]))
    content[at : at + 4] = bytes(4)
    content = content[: int(0.9 * len(content))]  # no index
    file.write_bytes(content)
    (tmp_path / "bag" / "metadata.yaml").unlink()
    left = {raw for _, _, raw in messages(tmp_path / "bag")}
    assert {0, 30} <= {at for at, payload in enumerate(payloads) if payload in left}
    assert payloads[20] not in left
    with BagReader(tmp_path / "bag") as bag:
        assert "chunk" in bag.fault


def test_a_recorder_killed_while_it_compressed_left_one_recording(tmp_path):
    bag = record(tmp_path / "bag")
    expected = messages(bag)
    (bag / "metadata.yaml").unlink()
    content = zstd.compress((bag / "bag.mcap").read_bytes())
    for share in (0.5, 1.0):
        (bag / "bag.mcap.zstd").write_bytes(content[: int(share * len(content))])
        assert messages(bag) == expected


@pytest.mark.parametrize("mode", [CompressionMode.FILE, CompressionMode.MESSAGE])
def test_compressed_recording_needs_no_metadata(tmp_path, storage, mode):
    writer = Writer(tmp_path / "bag", version=9, storage_plugin=storage)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        topic = writer.add_connection("/words", "std_msgs/msg/String", typestore=STORE)
        for at in range(9):
            writer.write(topic, at, bytes([0, 1, 0, 0]) + bytes([at]) * 100)
    expected = messages(tmp_path / "bag")
    assert len(expected) == 9
    (tmp_path / "bag" / "metadata.yaml").unlink()
    (file,) = (tmp_path / "bag").iterdir()
    for path in (tmp_path / "bag", file):
        assert messages(path) == expected
        with BagReader(path) as bag:
            assert bag.fault == ""
            assert bag.storage is storage


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("bag.mcap.zstd", b"nothing", ReaderError),
        ("bag.mcap", b"", ReaderError),
        ("bag.mcap", b"no mcap at all", ReaderError),
        ("bag.db3", b"no sqlite at all" * 100, ReaderError),
        ("notes.txt", b"hello", ReaderError),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path, name, content, error):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=str(tmp_path)):
        BagReader(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        BagReader(tmp_path / "nowhere")


def test_remains_agree_with_the_indexed_reader(tmp_path, storage):
    record(tmp_path / "bag", storage)
    kind, suffix = {
        StoragePlugin.MCAP: (McapRemains, "mcap"),
        StoragePlugin.SQLITE3: (SqliteRemains, "db3"),
    }[storage]
    remains = kind(tmp_path / "bag" / f"bag.{suffix}")
    scanned = [(c.topic, at, bytes(raw)) for c, at, raw in remains.messages(remains.connections)]
    assert scanned == messages(tmp_path / "bag")
    with BagReader(tmp_path / "bag") as bag:
        for found, expected in zip(remains.connections, bag.connections, strict=True):
            assert found.topic == expected.topic
            assert found.msgcount == expected.msgcount
            assert found.msgdef == expected.msgdef
            assert found.ext == expected.ext


def test_topics_are_chosen_or_asked_for(tmp_path):
    record(tmp_path / "bag")
    with BagReader(tmp_path / "bag") as bag:
        assert choose_image_topic(bag.connections, None) == IMAGE
        assert choose_info_topic(bag.connections, IMAGE, None) == INFO
        assert choose_info_topic(bag.connections, "/other/image_raw", None) is None
        with pytest.raises(ValueError, match=IMAGE):
            choose_image_topic(bag.connections, "/words")
        with pytest.raises(ValueError, match=INFO):
            choose_info_topic(bag.connections, IMAGE, "/words")
        second = bag.connections[1]._replace(topic="/second")
        with pytest.raises(ValueError, match="/second"):
            choose_image_topic([*bag.connections, second], None)


@pytest.mark.parametrize("big_endian", [False, True])
def test_stamp_of_serialized_message(big_endian):
    info_type = "sensor_msgs/msg/CompressedImage"
    time = STORE.types["builtin_interfaces/msg/Time"](-1, 5)
    header = STORE.types["std_msgs/msg/Header"](time, "x")
    message = STORE.types[info_type](header, "png", np.zeros(3, np.uint8))
    raw = STORE.serialize_cdr(message, info_type, little_endian=not big_endian)
    assert stamp_of(bytes(raw)) == -1_000_000_000 + 5


def test_stamp_of_too_few_bytes():
    with pytest.raises(ValueError, match="3 bytes"):
        stamp_of(b"\x00\x01\x00")


def test_definition_is_computed_where_it_is_missing(tmp_path):
    own = get_typestore(Stores.ROS2_KILTED)
    own.register(get_types_from_msg(CUSTOM_DEFINITION, CUSTOM_TYPE))
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        writer.add_connection("/pressure", CUSTOM_TYPE, typestore=own)
    with AnyReader([tmp_path / "bag" / "bag.mcap"]) as bare:
        (connection,) = bare.connections
    assert connection.digest == ""
    text, digest = definition_of(connection, STORE)
    assert "float64 pascal" in text
    assert digest == own.hash_rihs01(CUSTOM_TYPE)
    empty = connection._replace(msgdef=connection.msgdef._replace(data="?? no definition"))
    assert definition_of(empty, STORE)[1] == UNKNOWN_DIGEST
