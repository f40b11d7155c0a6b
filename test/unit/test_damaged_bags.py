"""What a recording lost is counted and named; what the rest of it holds is read."""

import re
import sqlite3
import struct
import tracemalloc
from contextlib import closing

import numpy as np
import pytest
import yaml
import zstandard
from mcap.reader import make_reader
from mcap.writer import CompressionType, IndexType
from rosbags.highlevel import AnyReader
from thermal_bags import (
    IMAGE,
    INFO,
    STRING,
    WORDS,
    header,
    mcap_file,
    messages,
    pixels,
    record,
    storage_file,
)

from difiisr_models import load_upscaler
from difiisr_ros.bags import IMAGE_TYPE, STORE, BagError, image_bytes, open_bag
from difiisr_ros.replay import replay

FRAMES = 30


@pytest.fixture(scope="module")
def bicubic():
    return load_upscaler("bicubic", device="cpu")


def write_mcap(path, compression, crcs=True, chunk_size=3_000, **options):
    """Images, with a word behind each, in some ten chunks."""
    times = []
    options |= {"chunk_size": chunk_size, "compression": compression, "enable_crcs": crcs}
    with mcap_file(path, enable_data_crcs=False, **options) as writer:
        channels = {}
        for topic, kind in ((IMAGE, IMAGE_TYPE), (WORDS, STRING)):
            text, _ = STORE.generate_msgdef(kind, ros_version=2)
            schema = writer.register_schema(kind, "ros2msg", text.encode())
            channels[topic] = writer.register_channel(topic, "cdr", schema)
        for n in range(FRAMES):
            noisy = pixels(n) + np.random.default_rng(n).integers(0, 9, pixels(n).shape)
            data = image_bytes(header(n), noisy.astype(np.uint16), "mono16")
            for topic, content in ((IMAGE, data), (WORDS, b"\0\1\0\0\5\0\0\0word\0")):
                times.append((topic, 1000 + 10 * n + (topic == WORDS)))
                writer.add_message(channels[topic], times[-1][1], content, times[-1][1])
    return times


def read(path):
    with open_bag(path) as bag:
        left = [(m.topic.name, m.time) for m in bag.messages()]
        return left, bag.faults


def corrupt(file, at, content):
    data = bytearray(file.read_bytes())
    data[at : at + len(content)] = content
    file.write_bytes(data)


def chunk_at(file, number):
    """Offset of a chunk, as the index says."""
    with file.open("rb") as stream:
        return make_reader(stream).get_summary().chunk_indexes[number].chunk_start_offset


@pytest.mark.parametrize("compression", list(CompressionType))
@pytest.mark.parametrize("place", range(5, 95, 10))
def test_zeros_inside_cost_what_they_hit(tmp_path, compression, place):
    file = tmp_path / "a.mcap"
    written = write_mcap(file, compression)
    corrupt(file, place * file.stat().st_size // 100, bytes(512))
    left, faults = read(file)
    missing = set(written) - set(left)
    assert faults
    assert len(missing) <= 30  # a chunk or two
    for topic in {name for name, _ in missing}:
        assert any(topic in fault for fault in faults)


@pytest.mark.parametrize("seed", range(36))
def test_any_flipped_bit_is_harmless_or_told(tmp_path, seed):
    file = tmp_path / "a.mcap"
    written = write_mcap(file, list(CompressionType)[seed % 3], crcs=seed % 2 == 0)
    data, rng = bytearray(file.read_bytes()), np.random.default_rng(seed)
    region = range(len(data)) if seed % 4 < 2 else range(len(data) - 2_500, len(data))  # the index
    data[region[rng.integers(len(region))]] ^= 1 << rng.integers(8)
    file.write_bytes(data)
    left, faults = read(file)
    assert len(left) >= len(written) - 30
    assert faults or sorted(left) == sorted(written)


@pytest.mark.parametrize("crcs", [True, False])
def test_an_index_that_lies_hides_no_message(tmp_path, crcs):
    file = tmp_path / "a.mcap"
    written = write_mcap(file, CompressionType.NONE, crcs=crcs)
    data, chunk = file.read_bytes(), chunk_at(file, 3)
    at = data.rindex(struct.pack("<Q", chunk)) + 1
    corrupt(file, at, bytes([data[at] ^ 1]))
    left, faults = read(file)
    assert sorted(left) == sorted(written)
    assert faults


@pytest.mark.parametrize("field", [0, 3])  # opcode, length
def test_a_damaged_head_of_a_chunk_loses_nothing_that_the_index_knows(tmp_path, field):
    file = tmp_path / "a.mcap"
    written = write_mcap(file, CompressionType.ZSTD)
    at = chunk_at(file, 4) + field
    corrupt(file, at, bytes([file.read_bytes()[at] ^ 0x20]))
    assert sorted(read(file)[0]) == sorted(written)


@pytest.mark.parametrize("indexed", [True, False])
def test_what_a_chunk_lost_is_named_by_topic_and_time_or_counted(tmp_path, indexed):
    file = tmp_path / "a.mcap"
    kinds = IndexType.ALL if indexed else IndexType.ALL & ~IndexType.MESSAGE
    written = write_mcap(file, CompressionType.NONE, index_types=kinds)
    at = file.read_bytes().index(struct.pack("<QQ", 1100, 1100))  # the image of frame 10
    corrupt(file, at - 15, bytes(32))
    left, faults = read(file)
    missing = [message for message in written if message not in left]
    lost = sum(topic == IMAGE for topic, _ in missing)
    assert (IMAGE, 1100) in missing
    assert any(f"{lost} of {FRAMES} messages of {IMAGE} are lost" in text for text in faults)
    if indexed:
        assert missing == [(IMAGE, 1100)]
        assert any(
            f"lost of {IMAGE}: 1 at 1100 ns, in the chunk at byte" in text for text in faults
        )


@pytest.mark.parametrize("where", ["first", "last"])
def test_a_flipped_type_name_loses_nothing(tmp_path, bicubic, where):
    """``first`` of the name lies in a chunk, ``last`` in the index."""
    source = record(tmp_path / "in")
    file = storage_file(source)
    data = bytearray(file.read_bytes())
    at = (data.index if where == "first" else data.rindex)(b"sensor_msgs/msg/Image")
    data[at + 1] ^= 4
    file.write_bytes(data)
    report = replay(source, tmp_path / "out", bicubic)
    assert report.frames_out == 5
    assert any("in two ways" in fault for fault in report.faults)
    assert messages(tmp_path / "out", IMAGE, INFO, WORDS) == messages(source)


def bomb(unpacked_size, declared):
    packed = zstandard.ZstdCompressor(level=1).compressobj(size=-1)
    blocks = [packed.compress(bytes(1 << 20)) for _ in range(unpacked_size >> 20)]
    records = b"".join([*blocks, packed.flush()])
    body = struct.pack("<QQQII", 0, 9, declared, 0, 4) + b"zstd"
    return body + struct.pack("<Q", len(records)) + records


@pytest.mark.parametrize("declared", [1000, 1 << 50])
def test_a_chunk_unpacks_to_what_it_declares_and_no_more(tmp_path, declared):
    file = tmp_path / "a.mcap"
    with mcap_file(file) as writer:
        writer.register_channel("/a", "json", 0)
    data = file.read_bytes()
    chunk = bomb(256 << 20, declared)
    end = data.index(struct.pack("<BQ", 0x0F, 4))
    file.write_bytes(data[:end] + struct.pack("<BQ", 6, len(chunk)) + chunk + data[end:])
    tracemalloc.start()
    with pytest.raises(BagError, match=f"(more than the )?{declared} bytes"):
        open_bag(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20


def test_chunks_of_one_time_are_open_as_far_as_memory_allows(tmp_path, monkeypatch):
    """Each unpacks to little more than is allowed to all that are open."""
    file = tmp_path / "a.mcap"
    with mcap_file(file, chunk_size=1_000, compression=CompressionType.ZSTD) as writer:
        channel = writer.register_channel("/a", "json", 0)
        for n in range(4):
            writer.add_message(channel, n, b"{}", n)
            writer.add_message(channel, 1_000 + n, bytes(3_000), n)
    assert len(read(file)[0]) == 8
    monkeypatch.setattr("difiisr_ros.bag_storage.LARGEST_CHUNK", 10_000)
    left, faults = read(file)
    assert len(left) == 6
    assert any("2 of 8 messages of /a are lost" in fault for fault in faults)


def test_a_record_reads_nothing_behind_its_end_and_private_ones_are_told_once(tmp_path, bicubic):
    source = record(tmp_path / "in")
    file = storage_file(source)
    declares = struct.pack("<BQI", 12, 9, 1) + b"x" + struct.pack("<I", 200)  # a map of nothing
    data = file.read_bytes()
    at = data.index(struct.pack("<BQ", 0x0F, 4))
    file.write_bytes(data[:at] + 300 * declares + 300 * struct.pack("<BQ", 0x81, 0) + data[at:])
    report = replay(source, tmp_path / "out", bicubic)
    assert report.frames_out == 5
    assert sum("is lost" in fault for fault in report.faults) == 300
    assert len("".join(report.faults)) < 100_000
    assert [text for text in report.warnings if "0x81" in text] == [
        "left out: in.mcap: 300 records of kind 0x81"
    ]


@pytest.mark.parametrize("kind", [None, 8])  # it is cut out, or becomes an index of chunks
def test_a_chunk_that_is_gone_is_missed(tmp_path, kind):
    file = tmp_path / "a.mcap"
    kinds = IndexType.ALL & ~IndexType.MESSAGE if kind is None else IndexType.NONE
    written = write_mcap(file, CompressionType.LZ4, index_types=kinds)
    data, end, chunks = file.read_bytes(), 8, []
    while end + 9 < len(data):
        opcode, length = struct.unpack_from("<BQ", data, end)
        end += 9 + length
        chunks += [(end - 9 - length, end)] if opcode == 6 else []
    at, end = chunks[-1]
    rest = data[end:] if kind is None else bytes([kind]) + data[at + 1 :]
    file.write_bytes(data[:at] + rest)
    left, faults = read(file)
    assert len(left) < len(written)
    assert faults


@pytest.mark.parametrize("crcs", [True, False])
def test_what_lies_behind_the_end_of_a_file_is_missed(tmp_path, crcs):
    for name in ("a", "b"):
        write_mcap(tmp_path / f"{name}.mcap", CompressionType.NONE, crcs)
    file, other = tmp_path / "a.mcap", tmp_path / "b.mcap"
    file.write_bytes(file.read_bytes() + other.read_bytes())
    left, faults = read(file)
    assert len(left) == 2 * FRAMES
    assert any("does not end with its index" in fault for fault in faults)


def test_metadata_counts_are_compared(tmp_path):
    source = record(tmp_path / "in", "sqlite3")
    metadata = source / "metadata.yaml"
    text = metadata.read_text()
    metadata.write_text(text.replace("message_count: 5", "message_count: 7"))
    left, faults = read(source)
    assert len(left) == 15
    assert f"2 of 7 messages of {IMAGE}, as metadata.yaml counts them, are lost" in faults
    metadata.write_text(text.replace("message_count: 5", "message_count: 3"))  # edited: no loss
    assert read(source) == (left, [])
    metadata.write_text("a: " + "[" * 5_000)
    assert read(source) == (left, [])


RETYPED = "ALTER TABLE topics RENAME TO t; CREATE TABLE topics AS SELECT * FROM t;"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (f"UPDATE messages SET {wrong} WHERE topic_id = 2 AND id < 6", "2 of 5 messages of")
        for wrong in ("timestamp = 'soon'", "timestamp = -5", "data = 7", "data = 'text'")
    ]
    + [("UPDATE messages SET topic_id = 99 WHERE id < 3", "2 of 2 messages of topic 99 are lost")]
    + [
        (
            f"{RETYPED} UPDATE topics SET id = {number} WHERE id = 3",
            "5 messages of topic 3 are lost",
        )
        for number in ("'SELECT 3'", "'3) UNION ALL SELECT 3, 7, zeroblob(9) --'", "NULL")
    ]
    + [(f"UPDATE topics SET {name} = x'ff' WHERE id = 3", "") for name in ("name", "type")],
)
def test_values_of_another_type_in_sqlite_are_lost_and_counted(tmp_path, difiisr, change, fault):
    source = record(tmp_path / "in", "sqlite3")
    (source / "metadata.yaml").unlink()
    with closing(sqlite3.connect(storage_file(source))) as database:
        database.executescript(change)
    words = ("replay", source, tmp_path / "out", "--model", "bicubic")
    difiisr(*words, code=2 if fault else 0)
    assert fault in "".join(read(source)[1])


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "instead",
    [
        "CREATE VIEW messages AS WITH RECURSIVE m(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM m) "
        "SELECT id, 1 AS topic_id, id AS timestamp, x'00' AS data FROM m",
        "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER, timestamp INTEGER, "
        "data BLOB AS (zeroblob(900000000)))",
    ],
)
def test_a_database_that_computes_its_messages_is_refused(tmp_path, instead):
    source = record(tmp_path / "in", "sqlite3")
    with closing(sqlite3.connect(storage_file(source))) as database:
        database.executescript(f"DROP TABLE messages; {instead}")
    with pytest.raises(BagError, match="messages is computed"):
        open_bag(source)


def test_files_that_are_missing_or_not_listed_are_named(tmp_path, difiisr):
    source = record(tmp_path / "in")
    (source / "later.mcap").write_bytes(storage_file(source).read_bytes())
    words = ("replay", source, tmp_path / "out", "--model", "bicubic", "--force")
    assert "left out: later.mcap" in difiisr(*words).err
    metadata = source / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("- in.mcap", "- in.mcap\n  - in_1.mcap", 1))
    assert "in_1.mcap is missing" in difiisr(*words, code=2).err


@pytest.mark.parametrize("version", [8, 9])
@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_copies_keep_custom_data_and_are_of_the_version_asked_for(
    tmp_path, bicubic, storage, version
):
    source = record(tmp_path / "in", storage)
    metadata = source / "metadata.yaml"
    text = re.sub(r"custom_data: *\S*", "custom_data: {robot: fox}", metadata.read_text())
    metadata.write_text(text)
    replay(source, tmp_path / "out", bicubic, rosbag2_version=version)
    written = yaml.safe_load((tmp_path / "out" / "metadata.yaml").read_text())
    written = written["rosbag2_bagfile_information"]
    assert (written["version"], written["custom_data"]) == (version, {"robot": "fox"})
    # What Humble and Iron read of QoS is a string; a list is for Jazzy and later.
    qos = [
        t["topic_metadata"]["offered_qos_profiles"] for t in written["topics_with_message_count"]
    ]
    assert all(isinstance(one, str if version == 8 else list) for one in qos)
    with AnyReader([tmp_path / "out"]) as reader:
        assert len(list(reader.messages())) == 25


def test_damaged_attachments_and_private_records_are_named(tmp_path, bicubic):
    source = tmp_path / "a.mcap"
    with mcap_file(source) as writer:
        text, _ = STORE.generate_msgdef(IMAGE_TYPE, ros_version=2)
        schema = writer.register_schema(IMAGE_TYPE, "ros2msg", text.encode())
        channel = writer.register_channel(IMAGE, "cdr", schema)
        writer.add_message(channel, 1, image_bytes(header(0), pixels(0), "mono16"), 1)
        writer.add_attachment(1, 2, "calibration.yaml", "text/yaml", b"emissivity: 0.95\n")
    data = source.read_bytes().replace(b"0.95", b"0.85")
    at = data.index(struct.pack("<BQ", 0x0F, 4))
    source.write_bytes(data[:at] + struct.pack("<BQ", 0x81, 3) + b"own" + data[at:])
    report = replay(source, tmp_path / "out", bicubic)
    assert any("calibration.yaml" in fault for fault in report.faults)
    assert any("0x81" in warning for warning in report.warnings)
