"""The storage files of rosbag2, MCAP and SQLite, read and written message by message, without ROS.

Nothing is taken from metadata.yaml. A damaged file is read as far as it goes; ``faults`` says what
is wrong with it. Formats: the MCAP specification (records are parsed and written by the ``mcap``
library) and rosbag2's SQLite schema.
"""

from __future__ import annotations

import heapq
import sqlite3
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import yaml
import zstandard
from lz4.frame import LZ4FrameDecompressor
from mcap import records as mcap
from mcap.opcode import Opcode
from mcap.reader import SeekingReader
from mcap.stream_reader import StreamReader
from mcap.writer import MCAP0_MAGIC, CompressionType
from mcap.writer import Writer as McapRecordWriter
from rosbags.rosbag2.metadata import dump_qos_v9, parse_qos
from rosbags.rosbag2.storage_sqlite3 import Sqlite3Writer
from rosbags.typesys import Stores, get_typestore

STORE = get_typestore(Stores.ROS2_KILTED)
QOS, TYPE_HASH = "offered_qos_profiles", "topic_type_hash"  # keys of an MCAP channel's metadata
ROSBAG2_METADATA = "rosbag2"  # name of the MCAP record that repeats metadata.yaml

_VERSION = 9  # of rosbag2's metadata
_FOOTER_BYTES = 37  # with the closing magic
_RUN_BYTES = 2**20  # of messages outside chunks that are read at once


class BagError(ValueError):
    """There is no recording, or nothing of it is readable."""


class Topic(NamedTuple):
    """A topic as its recording describes it.

    Attributes:
        name: as in ``/thermal/image_raw``.
        type: as in ``sensor_msgs/msg/Image``; "" where the recording names none.
        definition: of the type, "" where the recording has none.
        definition_encoding: ``ros2msg`` or ``ros2idl``; others are not of ROS 2.
        encoding: of the messages, ``cdr`` in ROS 2.
        metadata: key and value pairs; :data:`QOS` and :data:`TYPE_HASH` among them.
    """

    name: str
    type: str
    definition: bytes = b""
    definition_encoding: str = "ros2msg"
    encoding: str = "cdr"
    metadata: tuple[tuple[str, str], ...] = ()


class Message(NamedTuple):
    """A message as it lies in a recording; times in nanoseconds.

    Attributes:
        topic: of the message.
        time: when it was recorded.
        data: its bytes.
        published: when it was sent; ``None``: when it was recorded. MCAP only.
        sequence: counted by its publisher. MCAP only.
    """

    topic: Topic
    time: int
    data: bytes
    published: int | None = None
    sequence: int = 0


class StorageFile:
    """A storage file, opened for reading.

    Attributes:
        path: of the file.
        faults: what is wrong with it, as far as it has been read.
        topics: by the number that the file gives them.
        counts: messages of each topic.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faults: list[str] = []
        self.topics: dict[int, Topic] = {}
        self.counts: Counter[Topic] = Counter()

    def extras(self) -> Iterator[mcap.Attachment | mcap.Metadata]:
        """Yield attachments and metadata records but rosbag2's own; only MCAP has any."""
        return iter(())

    def _note(self, fault: str) -> None:
        if fault not in self.faults:  # files are read more than once
            self.faults.append(fault)


class McapFile(StorageFile):
    """An MCAP file, read by its index, or by a scan where it has none that serves.

    Raises:
        BagError: the file is no MCAP file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._total = 0  # messages that the file says it holds
        self._schemas: dict[int, mcap.Schema] = {}
        # Chunks, and runs of records outside any: first log time (ns), offset, length
        self._places: list[tuple[int, int, int]] = []
        self._extras: list[int] = []  # offsets of attachments and metadata records
        self._file = path.open("rb")
        self._size = path.stat().st_size
        if self._file.read(len(MCAP0_MAGIC)) != MCAP0_MAGIC:
            self.close()
            raise BagError(f"{path} is no MCAP file")
        if not self._read_index():
            self._scan()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def messages(self, names: Collection[str] | None = None) -> Iterator[Message]:
        """Yield messages, of some topics only, in the order in which they were recorded."""
        read = 0
        for *_, found in heapq.merge(*map(self._queue, sorted(self._places))):
            if found is None:
                continue
            read += 1
            topic = self.topics[found.channel_id]
            if names is None or topic.name in names:
                yield Message(topic, found.log_time, found.data, found.publish_time, found.sequence)
        if read < self._total:
            self._note(f"{self._total - read} of {self._total} messages are lost")

    def extras(self) -> Iterator[mcap.Attachment | mcap.Metadata]:
        """Yield attachments and metadata records but rosbag2's own."""
        for offset in self._extras:
            try:
                record = self._record_at(offset)
            except Exception as error:  # damaged bytes raise whatever their parser raises
                self._note(f"attachment or metadata at byte {offset} is lost: {error!r}")
                continue
            if getattr(record, "name", ROSBAG2_METADATA) != ROSBAG2_METADATA:
                yield record

    def _read_index(self) -> bool:
        """Take topics, counts and chunks from the end of the file; False where it cannot serve."""
        try:
            footer = self._record_at(self._size - _FOOTER_BYTES)
            self._file.seek(footer.summary_start)
            index = self._file.read(self._size - 12 - footer.summary_start)
            if footer.summary_crc not in (0, zlib.crc32(index)):
                return False
            self._file.seek(0)
            summary = SeekingReader(self._file).get_summary()
            counted, channels = summary.statistics, summary.channels
            self._total = counted.message_count
        except Exception:  # as above; there may be no index at all
            return False
        counts = counted.channel_message_counts
        all_topics = len(channels) >= counted.channel_count and channels.keys() >= counts.keys()
        if not all_topics or (self._total and not summary.chunk_indexes):
            return False
        self._schemas |= summary.schemas
        for channel in channels.values():
            self._declare(channel)
            self.counts[self.topics[channel.id]] += counts.get(channel.id, 0)
        self._places = [
            (chunk.message_start_time, chunk.chunk_start_offset, chunk.chunk_length)
            for chunk in summary.chunk_indexes
        ]
        self._extras = [i.offset for i in (*summary.attachment_indexes, *summary.metadata_indexes)]
        return True

    def _scan(self) -> None:
        """Find places, extras and topics from the beginning on, as far as records make sense."""
        places: list[tuple[int, int]] = []  # first byte, end
        offset, joined = len(MCAP0_MAGIC), False
        while True:
            self._file.seek(offset)
            head = self._file.read(9)
            if len(head) < 9:
                self._note("the file ends without its closing index")
                break
            opcode, length = struct.unpack("<BQ", head)
            end = offset + 9 + length
            if (opcode, length) in ((Opcode.DATA_END, 4), (Opcode.FOOTER, 20)):
                break
            if opcode in (Opcode.ATTACHMENT, Opcode.METADATA):
                self._extras.append(offset)
            outside = opcode in (Opcode.SCHEMA, Opcode.CHANNEL, Opcode.MESSAGE)
            if outside and joined and offset - places[-1][0] < _RUN_BYTES:
                places[-1] = places[-1][0], end
            elif outside or opcode == Opcode.CHUNK:
                places.append((offset, end))
            joined = outside
            if opcode == 0 or end > self._size:
                self._note(f"the file is damaged or cut off at byte {offset} of {self._size}")
                break
            offset = end
        for offset, end in places:
            messages = self._messages_at(offset, end - offset)
            self.counts.update(self.topics[message.channel_id] for message in messages)
            start = messages[0].log_time if messages else 0
            self._places.append((start, offset, end - offset))
        self._total = max(self._total, self.counts.total())

    def _queue(
        self, place: tuple[int, int, int]
    ) -> Iterator[tuple[int, int, int, mcap.Message | None]]:
        """Sort key and message; the place is read when its first time has come."""
        start, offset, length = place
        yield start, offset, -1, None
        for number, message in enumerate(self._messages_at(offset, length)):
            yield message.log_time, offset, number, message

    def _messages_at(self, offset: int, length: int) -> list[mcap.Message]:
        """Messages of a place by time, up to where it stops making sense; notes its topics."""
        messages = []
        try:
            self._file.seek(offset)
            content = self._file.read(min(length, self._size))
            first, last = 0, 2**64
            if content[0] == Opcode.CHUNK:
                content, first, last = self._unpack(content, offset)
            stream = BytesIO(content)
            records = StreamReader(stream, skip_magic=True).records
            while stream.tell() < len(content):
                record = next(records)
                if isinstance(record, mcap.Schema):
                    self._schemas.setdefault(record.id, record)
                elif isinstance(record, mcap.Channel):
                    self._declare(record)
                elif record.channel_id in self.topics and first <= record.log_time <= last:
                    messages.append(record)
                else:
                    raise BagError(f"a message of channel {record.channel_id} makes no sense")
        except Exception as error:  # as above
            self._note(f"damaged at byte {offset}, {length} bytes long: {error!r}")
        return sorted(messages, key=lambda message: message.log_time)

    def _unpack(self, chunk: bytes, offset: int) -> tuple[bytes, int, int]:
        """Records of a chunk, of a cut one as many as can be had, and its first and last time."""
        first, last, size, crc, named = struct.unpack_from("<QQQII", chunk, 9)
        compression, packed = chunk[41 : 41 + named].decode(), chunk[49 + named :]
        if compression == "zstd":
            packed = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
        elif compression == "lz4":
            packed = LZ4FrameDecompressor().decompress(packed)
        elif compression:
            raise BagError(f"the compression {compression!r} is not known")
        if len(packed) != size or crc not in (0, zlib.crc32(packed)):
            self._note(f"the chunk at byte {offset} is damaged: its size or checksum is wrong")
        return packed, first, last

    def _declare(self, channel: mcap.Channel) -> None:
        schema = self._schemas.get(channel.schema_id) or mcap.Schema(0, b"", "", "")
        topic = Topic(
            channel.topic,
            schema.name,
            schema.data,
            schema.encoding,
            channel.message_encoding,
            tuple(channel.metadata.items()),
        )
        if self.topics.setdefault(channel.id, topic) != topic:
            self._note(f"{self.topics[channel.id].name} is described in two ways")

    def _record_at(self, offset: int) -> mcap.McapRecord:
        self._file.seek(offset)
        return next(StreamReader(self._file, skip_magic=True, emit_chunks=True).records)


class SqliteFile(StorageFile):
    """A SQLite storage file, with what a killed recorder left in a log beside it (``<file>-wal``).

    Neither file is changed, and none is made.

    Raises:
        BagError: not even the list of topics can be read.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        log = path.with_name(f"{path.name}-wal")
        how = "immutable=1"
        if log.exists() and log.stat().st_size:
            self._note("its recorder was killed; what it left in a write-ahead log is read")
            how = "mode=ro&vfs=unix-none"  # a lock would need a file that may be written
        self._database = sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True)
        self._database.row_factory = sqlite3.Row
        try:
            self._database.execute("PRAGMA locking_mode=exclusive")  # else a log needs an index
            self._read_topics()
        except sqlite3.Error as error:
            self.close()
            raise BagError(f"the list of topics cannot be read: {self._advice(error)}") from error
        for key, count in self._rows("SELECT topic_id, count(*) FROM messages GROUP BY 1"):
            self.counts[self.topics[key]] += count

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def messages(self, names: Collection[str] | None = None) -> Iterator[Message]:
        """Yield messages, of some topics only, in the order in which they were recorded."""
        wanted = [k for k, topic in self.topics.items() if names is None or topic.name in names]
        query = (
            "SELECT topic_id, timestamp, data FROM messages "
            f"WHERE topic_id IN ({', '.join(map(str, wanted))}) ORDER BY timestamp, id"
        )
        for key, time, data in self._rows(query):
            yield Message(self.topics[key], time, data)

    def _read_topics(self) -> None:
        definitions = {}
        with suppress(sqlite3.Error):  # before Iron, rosbag2 stored none
            rows = self._database.execute("SELECT * FROM message_definitions")
            definitions = {row["topic_type"]: row for row in rows}
        for row in map(dict, self._database.execute("SELECT * FROM topics ORDER BY id")):
            found = definitions.get(row["type"])
            type_hash = row.get("type_description_hash") or ""
            self.topics[row["id"]] = Topic(
                row["name"],
                row["type"],
                found["encoded_message_definition"].encode() if found else b"",
                found["encoding"] if found else "ros2msg",
                row["serialization_format"],
                ((QOS, row.get(QOS) or ""), (TYPE_HASH, type_hash)),
            )

    def _rows(self, query: str) -> Iterator[sqlite3.Row]:
        """Rows as far as they can be read."""
        try:
            yield from self._database.execute(query)
        except sqlite3.Error as error:
            self._note(self._advice(error))

    def _advice(self, error: sqlite3.Error) -> str:
        return f"{error}; `sqlite3 {self.path.name} .recover` saves more"


class BagWriter:
    """Writes a recording of one storage file to a new folder; see :func:`.bags.write_bag`."""

    suffix: str
    identifier: str
    close: Callable[[], None]  # closes the storage file, complete or not

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._path = folder / f"{folder.name}{self.suffix}"
        self._topics: dict[tuple[str, str, str], Topic] = {}
        self._keys: dict[Topic, int] = {}
        self._counts: dict[Topic, int] = {}
        self._first, self._last = 2**63 - 1, 0

    def add(self, topic: Topic) -> Topic:
        """Declare a topic, unless it is; messages of undeclared ones declare theirs."""
        identity = (topic.name, topic.type, topic.encoding)
        if identity not in self._topics:
            topic = self._topics[identity] = _defined(topic)
            self._counts[topic] = 0
            self._keys[topic] = self._declare(topic)
        return self._topics[identity]

    def write(self, message: Message) -> None:
        """Write a message; of a copied one every byte stays."""
        topic = self.add(message.topic)
        self._append(self._keys[topic], message)
        self._counts[topic] += 1
        self._first = min(self._first, message.time)
        self._last = max(self._last, message.time)

    def write_extra(self, extra: mcap.Attachment | mcap.Metadata) -> None:
        """Write an attachment or metadata record of a recording; only MCAP can hold it."""

    def complete(self) -> None:
        """End the storage file, and write metadata.yaml as rosbag2 has it in version 9."""
        span = {
            "starting_time": {"nanoseconds_since_epoch": self._first},
            "duration": {"nanoseconds": max(0, self._last - self._first)},
            "message_count": sum(self._counts.values()),
        }
        topics = []
        for topic, count in self._counts.items():
            notes = dict(topic.metadata)
            described = {
                "name": topic.name,
                "type": topic.type,
                "serialization_format": topic.encoding,
                "offered_qos_profiles": yaml.safe_load(notes.get(QOS, "")) or [],
                "type_description_hash": notes.get(TYPE_HASH, ""),
            }
            topics.append({"topic_metadata": described, "message_count": count})
        information = {
            "version": _VERSION,
            "storage_identifier": self.identifier,
            "relative_file_paths": [self._path.name],
            **span,
            "topics_with_message_count": topics,
            "compression_format": "",
            "compression_mode": "",
            "files": [{"path": self._path.name, **span}],
            "custom_data": None,
            "ros_distro": "rosbags",
        }
        self._end(yaml.safe_dump(information))
        text = yaml.safe_dump({"rosbag2_bagfile_information": information})
        self._path.with_name("metadata.yaml").write_text(text)


class McapBagWriter(BagWriter):
    """Writes a recording as MCAP."""

    suffix, identifier = ".mcap", "mcap"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._file = self._path.open("xb")
        self.close = self._file.close
        self._writer = McapRecordWriter(self._file, compression=CompressionType.NONE)
        self._writer.start(profile="ros2", library="difiisr_ros")
        self._schemas = {("", "", b""): 0}

    def write_extra(self, extra: mcap.Attachment | mcap.Metadata) -> None:
        """Write an attachment or metadata record of a recording."""
        if isinstance(extra, mcap.Metadata):
            self._writer.add_metadata(extra.name, extra.metadata)
        else:
            self._writer.add_attachment(**vars(extra))

    def _declare(self, topic: Topic) -> int:
        schema = (topic.type, topic.definition_encoding, topic.definition)
        if schema not in self._schemas:
            self._schemas[schema] = self._writer.register_schema(*schema)
        return self._writer.register_channel(
            topic.name, topic.encoding, self._schemas[schema], dict(topic.metadata)
        )

    def _append(self, key: int, message: Message) -> None:
        _, time, data, published, sequence = message
        published = time if published is None else published
        self._writer.add_message(key, time, data, published, sequence)

    def _end(self, metadata: str) -> None:
        self._writer.add_metadata(ROSBAG2_METADATA, {"serialized_metadata": metadata})
        self._writer.finish()


class SqliteBagWriter(BagWriter):
    """Writes a recording as SQLite database."""

    suffix, identifier = ".db3", "sqlite3"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._database = sqlite3.connect(self._path)
        self.close = self._database.close
        self._database.executescript(Sqlite3Writer.SQLITE_SCHEMA)
        self._types: set[str] = set()

    def _declare(self, topic: Topic) -> int:
        notes = {QOS: "", TYPE_HASH: "", **dict(topic.metadata)}
        if topic.definition and topic.type not in self._types:
            self._types.add(topic.type)
            definition = (topic.definition_encoding, topic.definition.decode(), notes[TYPE_HASH])
            self._insert("message_definitions", topic.type, *definition)
        described = (topic.name, topic.type, topic.encoding, notes[QOS], notes[TYPE_HASH])
        return self._insert("topics", *described)

    def _append(self, key: int, message: Message) -> None:
        self._insert("messages", key, message.time, message.data)

    def _end(self, metadata: str) -> None:
        self._insert("metadata", _VERSION, metadata)
        self._database.commit()

    def _insert(self, table: str, *values: Any) -> int:
        places = ", ?" * len(values)
        row = self._database.execute(f"INSERT INTO {table} VALUES (NULL{places})", values)
        return row.lastrowid


def _defined(topic: Topic) -> Topic:
    """A ROS 2 topic with its QoS as version 9 writes them, and its definition where it is known."""
    if topic.encoding != "cdr":
        return topic
    notes = dict(topic.metadata)
    with suppress(Exception):  # QoS that nobody can read are copied as they are
        notes[QOS] = yaml.safe_dump(dump_qos_v9(parse_qos(notes.get(QOS, ""))))
    if not topic.definition and topic.type in STORE.types:
        definition, _ = STORE.generate_msgdef(topic.type, ros_version=2)
        topic = topic._replace(definition=definition.encode(), definition_encoding="ros2msg")
        notes[TYPE_HASH] = STORE.hash_rihs01(topic.type)
    return topic._replace(metadata=tuple(notes.items()))
