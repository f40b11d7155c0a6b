"""The storage files of rosbag2, MCAP and SQLite, read message by message, without ROS.

Nothing is taken from metadata.yaml. A damaged file is read as far as it goes; ``faults`` says what
is wrong with it. Formats: the MCAP specification (records are parsed by the ``mcap`` library)
and rosbag2's SQLite schema.
"""

from __future__ import annotations

import heapq
import sqlite3
import struct
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple

import zstandard
from lz4.frame import LZ4FrameFile
from mcap import records as mcap
from mcap.opcode import Opcode
from mcap.reader import SeekingReader
from mcap.stream_reader import StreamReader
from mcap.writer import MCAP0_MAGIC
from rosbags.typesys import Stores, get_typestore

from difiisr_ros.refusals import described

STORE = get_typestore(Stores.ROS2_KILTED)
QOS, TYPE_HASH = "offered_qos_profiles", "topic_type_hash"  # keys of an MCAP channel's metadata
ROSBAG2_METADATA = "rosbag2"  # name of the MCAP record that repeats metadata.yaml

LARGEST_CHUNK = 2**30  # bytes, unpacked; also of all chunks that are open at a time

_UNPACKERS = {
    "": lambda packed: packed,
    "lz4": LZ4FrameFile,
    "zstd": lambda packed: zstandard.ZstdDecompressor().stream_reader(packed),
}
_IN_CHUNKS = b"", *(bytes([kind]) for kind in (Opcode.SCHEMA, Opcode.CHANNEL, Opcode.MESSAGE))
_BLOCK_BYTES = 2**17  # that are unpacked at a time: what comes before damage is kept
_NAMED_TIMES = 8
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
        faults: what is wrong with it, as far as it has been read; each once, in order.
        left_out: what of it nobody here can copy, and how often it is there.
        topics: by the number that the file gives them.
        counts: messages by number of the topic, as the file says, or as are found where it does
            not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faults: dict[str, None] = {}
        self.left_out: Counter[str] = Counter()
        self.topics: dict[int, Topic] = {}
        self.counts: Counter[int] = Counter()

    def extras(self) -> Iterator[mcap.Attachment | mcap.Metadata]:
        """Yield attachments and metadata records but rosbag2's own; only MCAP has any."""
        return iter(())

    def _note(self, fault: str) -> None:
        self.faults.setdefault(fault)

    def _note_lost(self, left: Mapping[int, int]) -> None:
        """Say how many messages of each topic are not among those ``left``, by its number."""
        for number, lost in (self.counts - Counter(left)).items():
            name = self.topics[number].name if number in self.topics else f"topic {number!r}"
            self._note(f"{lost} of {self.counts[number]} messages of {name} are lost")


class _Place(NamedTuple):
    """A chunk, or a run of records outside any: where it lies, and what indexes it, by offset."""

    offset: int
    end: int
    is_chunk: bool
    indexes: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"the chunk at byte {self.offset}" if self.is_chunk else f"byte {self.offset}"


class McapFile(StorageFile):
    """An MCAP file, read record by record; its index tells what is lost where it is damaged.

    Raises:
        BagError: the file is no MCAP file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._schemas: dict[int, mcap.Schema] = {}
        self._places: list[_Place] = []
        self._held = 0  # bytes of the chunks whose messages are being merged
        self._extras: list[int] = []  # offsets of attachments and metadata records
        self._file = path.open("rb")
        self._size = path.stat().st_size
        if self._file.read(len(MCAP0_MAGIC)) != MCAP0_MAGIC:
            self.close()
            raise BagError(f"{path} is no MCAP file")
        chunks, is_counted = self._read_summary()
        self._find_places(chunks)
        if not is_counted:
            found = (message for place in self._places for message in self._messages_at(place))
            self.counts = Counter(message.channel_id for message in found)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def messages(self, names: Collection[str] | None = None) -> Iterator[Message]:
        """Yield messages, of some topics only, in the order in which they were recorded."""
        read: Counter[int] = Counter()
        for *_, found in heapq.merge(*map(self._queue, self._places)):
            if found is None:
                continue
            topic = self.topics[found.channel_id]
            read[found.channel_id] += 1
            if names is None or topic.name in names:
                yield Message(topic, found.log_time, found.data, found.publish_time, found.sequence)
        self._note_lost(read)

    def extras(self) -> Iterator[mcap.Attachment | mcap.Metadata]:
        """Yield attachments and metadata records but rosbag2's own."""
        for offset in self._extras:
            content = self._stored_at(offset)
            try:
                record = _record(content)
            except Exception as error:  # damaged bytes raise whatever their parser raises
                what = f"attachment or metadata at byte {offset}"
                self._note(f"{what} is lost: {described(error)}")
                continue
            crc = int.from_bytes(content[-4:], "little") if content[0] == Opcode.ATTACHMENT else 0
            if crc not in (0, zlib.crc32(content[9:-4])):
                self._note(f"the attachment {record.name!r} is damaged: its checksum is wrong")
            if record.name != ROSBAG2_METADATA:
                yield record

    def _read_summary(self) -> tuple[dict[int, int], bool]:
        """Take topics and counts; start and end of each chunk; whether all messages are counted."""
        chunks: dict[int, int] = {}
        try:
            footer = _record(self._stored_at(self._size - _FOOTER_BYTES))
        except Exception:  # as above; what is missing at the end is noted with the places
            return chunks, False
        if not footer.summary_start:
            return chunks, False
        try:
            self._file.seek(footer.summary_start)
            index = self._file.read(self._size - 12 - footer.summary_start)
            if footer.summary_crc not in (0, zlib.crc32(index)):
                self._note("the index at the end is damaged: its checksum is wrong")
                return {}, False
            self._file.seek(0)
            summary: Any = SeekingReader(self._file).get_summary()
            chunks = self._ends_of(summary.chunk_indexes)
            self._schemas |= summary.schemas
            for channel in summary.channels.values():
                self._declare(channel)
            if summary.statistics is None:
                return chunks, False
            self.counts.update(summary.statistics.channel_message_counts)
            is_full = len(self.topics) >= summary.statistics.channel_count
        except Exception as error:  # as above
            self._note(f"the index at the end is damaged: {described(error)}")
            return chunks, False
        # A type that nobody knows may be a damaged name: chunks have it too.
        is_sure = footer.summary_crc or all(one.type in STORE.types for one in self.topics.values())
        return chunks, bool(is_sure) and is_full and self.topics.keys() >= self.counts.keys()

    def _ends_of(self, indexed: list[mcap.ChunkIndex]) -> dict[int, int]:
        """Start and end of the chunks that the index names and that are there."""
        ends = {}
        for one in indexed:
            start, length = one.chunk_start_offset, one.chunk_length
            opcode, own = self._head(start)
            is_chunk, follows = opcode == Opcode.CHUNK, self._head(start + 9 + own)[0]
            if is_chunk and 0 < follows <= Opcode.DATA_END:
                ends[start] = start + 9 + own
            elif is_chunk or 9 + own == length:
                ends[start] = start + length
            if not is_chunk or 9 + own != length:
                self._note(f"the index and the file differ about the chunk at byte {start}")
        return ends

    def _find_places(self, chunks: dict[int, int]) -> None:
        """Go from record to record, and past a damaged one to the next of the known ``chunks``."""
        offset, is_run = len(MCAP0_MAGIC), False
        starts = sorted(chunks, reverse=True)
        while offset + 9 <= self._size:
            opcode, length = self._head(offset)
            end = offset + 9 + length
            while starts and starts[-1] < offset:
                starts.pop()
            if starts and starts[-1] == offset:
                opcode, end = Opcode.CHUNK, chunks[starts.pop()]
            elif not starts and (opcode, length) in ((Opcode.DATA_END, 4), (Opcode.FOOTER, 20)):
                self._check_end(offset)
                return
            following = starts[-1] if starts else self._size
            is_damaged = opcode == 0 or end > following
            if is_damaged:
                end = following
                self._note(f"damaged or cut off at byte {offset}, {end - offset} bytes long")
            is_loose = opcode in (Opcode.SCHEMA, Opcode.CHANNEL, Opcode.MESSAGE)
            if is_loose and is_run and offset - self._places[-1].offset < _RUN_BYTES:
                self._places[-1] = self._places[-1]._replace(end=end)
            elif is_loose or opcode == Opcode.CHUNK:
                self._places.append(_Place(offset, end, opcode == Opcode.CHUNK))
            elif opcode > Opcode.DATA_END:
                self.left_out[f"records of kind {opcode:#x}"] += 1
            elif opcode in (Opcode.ATTACHMENT, Opcode.METADATA) and not is_damaged:
                self._extras.append(offset)
            elif opcode == Opcode.MESSAGE_INDEX and self._places and not is_damaged:
                last = self._places[-1]
                self._places[-1] = last._replace(indexes=(*last.indexes, offset))
            elif opcode not in (0, Opcode.HEADER, Opcode.MESSAGE_INDEX) and not is_damaged:
                self._note(f"a record of kind {opcode:#x} at byte {offset} does not belong there")
            offset, is_run = end, is_loose
        self._note("the file ends without its closing index")

    def _check_end(self, offset: int) -> None:
        """Note where a file does not end with the index behind its data, at ``offset``."""
        while (head := self._head(offset))[0] not in (0, Opcode.FOOTER):
            offset += 9 + head[1]
        if offset + _FOOTER_BYTES != self._size:
            self._note(f"it does not end with its index: nothing behind byte {offset} is read")

    def _queue(self, place: _Place) -> Iterator[tuple[int, int, int, mcap.Message | None]]:
        """Sort key and message; the place is read, or read again, when its first time has come."""
        if place.is_chunk:
            self._file.seek(place.offset + 9)
            start = int.from_bytes(self._file.read(8), "little")
        else:
            start = min((message.log_time for message in self._messages_at(place)), default=0)
        yield start, place.offset, -1, None
        messages = self._messages_at(place)
        held = sum(len(message.data) for message in messages)
        self._held += held
        try:
            for number, message in enumerate(messages):
                yield message.log_time, place.offset, number, message
        finally:
            self._held -= held

    def _messages_at(self, place: _Place) -> list[mcap.Message]:
        """Messages of a place by time; what is damaged is passed over, as far as an index helps."""
        indexed, messages, content, at = self._indexed(place), [], self._content(place), 0
        end, unknown = 0, Counter[int]()  # of the record at ``at``; messages by channel
        while at < len(content):
            try:
                end = at + 9 + struct.unpack_from("<Q", content, at + 1)[0]
                if end > len(content):
                    raise EOFError(f"a record of {end - at} bytes is cut off")
                record = _record(content[at:end])
                if isinstance(record, mcap.Schema):
                    self._believe(self._schemas, record.id, record)
                elif isinstance(record, mcap.Channel):
                    self._declare(record)
                elif record.channel_id in self.topics:
                    messages.append(record)
                else:
                    unknown[record.channel_id] += 1
                at = end
            except Exception as error:  # as above
                after = min((offset for offset, *_ in indexed if offset > at), default=len(content))
                after = end if end > at and content[end : end + 1] in _IN_CHUNKS else after
                self._note(f"{place} is damaged in bytes {at} to {after} of it: {described(error)}")
                at = after
        for channel, count in unknown.items():
            self._note(f"{count} of channel {channel}, which nobody describes, lost in {place}")
        found = Counter((message.channel_id, message.log_time) for message in messages)
        lost = Counter((channel, time) for _, channel, time in indexed) - found
        for channel in sorted({channel for channel, _ in lost}):
            times = [time for owner, time in lost.elements() if owner == channel]
            name = self.topics[channel].name if channel in self.topics else f"channel {channel}"
            self._note(f"lost of {name}: {_at(times)}, in {place}")
        return sorted(messages, key=lambda message: message.log_time)

    def _indexed(self, place: _Place) -> list[tuple[int, int, int]]:
        """Offset in the chunk, channel and log time of each message that its index names."""
        entries = []
        for offset in place.indexes:
            try:
                index = _record(self._stored_at(offset))
                entries += [(at, index.channel_id, time) for time, at in index.records]
            except Exception as error:  # as above
                self._note(f"the index at byte {offset} is damaged: {described(error)}")
        return entries

    def _content(self, place: _Place) -> bytes:
        """Records of a place, unpacked; of a damaged chunk those before the damage."""
        self._file.seek(place.offset)
        stored = self._file.read(place.end - place.offset)
        if not place.is_chunk:
            return stored
        content = BytesIO()
        try:
            size, crc, named = struct.unpack_from("<QII", stored, 25)
            compression, packed = stored[41 : 41 + named].decode(), stored[49 + named :]
            packed = packed[: int.from_bytes(stored[41 + named : 49 + named], "little")]
            if self._held + size > LARGEST_CHUNK:
                beside = f" beside {self._held} of others of its time" if self._held else ""
                raise BagError(f"it unpacks to {size} bytes{beside}, {LARGEST_CHUNK} may be")
            fault = unpack(compression, BytesIO(packed), content, size)
            if content.tell() != size or crc not in (0, zlib.crc32(content.getvalue())):
                fault = fault or "its size or checksum is wrong"
        except Exception as error:  # as above
            fault = described(error)
        if fault:
            self._note(f"{place} is damaged: {fault}")
        return content.getvalue()

    def _declare(self, channel: mcap.Channel) -> None:
        schema = self._schemas.get(channel.schema_id) or mcap.Schema(0, b"", "", "")
        form = (schema.name, schema.data, schema.encoding, channel.message_encoding)
        topic = Topic(channel.topic, *form, tuple(channel.metadata.items()))
        self._believe(self.topics, channel.id, topic)

    def _believe(self, known: dict[int, Any], number: int, found: Any) -> None:
        """Keep a description; of two with one number, the first whose type is known."""
        before = known.setdefault(number, found)
        if before != found:
            kind, names = type(found).__name__.lower(), f"{before.name}, {found.name}"
            self._note(f"{kind} {number} is described in two ways: {names}")
            if getattr(before, "type", before.name) not in STORE.types:  # a schema is called so
                known[number] = found

    def _head(self, offset: int) -> tuple[int, int]:
        """Opcode and length of a record, zeros behind the end of the file."""
        self._file.seek(min(offset, self._size))
        return struct.unpack("<BQ", self._file.read(9).ljust(9, b"\0"))

    def _stored_at(self, offset: int) -> bytes:
        """The bytes of a record, those there are of one that is cut off."""
        length = self._head(offset)[1]
        self._file.seek(offset)
        return self._file.read(min(9 + length, self._size))


def _record(stored: bytes) -> Any:
    """The record of these bytes: what its fields declare reads nothing behind them."""
    return next(StreamReader(BytesIO(stored), skip_magic=True, emit_chunks=True).records)


def unpack(compression: str, packed: IO[bytes], target: IO[bytes], size: int) -> str:
    """Write what ``packed`` holds to the empty ``target``; returns what is wrong with it.

    Args:
        compression: of it, "zstd", "lz4" or "".
        packed: read from where it is.
        target: gets ``size`` bytes and one more at most.
        size: that it is said to have unpacked.

    Raises:
        BagError: another compression.
    """
    if compression not in _UNPACKERS:
        raise BagError(f"compression {compression!r} is not one of {', '.join(_UNPACKERS)}")
    stream = _UNPACKERS[compression](packed)
    try:
        while block := stream.read(min(_BLOCK_BYTES, size + 1 - target.tell())):
            target.write(block)
    except (zstandard.ZstdError, EOFError, RuntimeError) as error:  # the last is of lz4
        return str(error)
    return "" if target.tell() <= size else f"more than the {size} bytes declared"


def _at(times: list[int]) -> str:
    """Times as they are reported: all of a few, or how many, from when to when."""
    if len(times) <= _NAMED_TIMES:
        return f"{len(times)} at {', '.join(map(str, sorted(times)))} ns"
    return f"{len(times)} from {min(times)} to {max(times)} ns"


# Views and virtual tables have no page of their own, generated columns are hidden.
_COMPUTED = """SELECT name FROM sqlite_master AS made
WHERE name IN ('topics', 'messages', 'message_definitions')
AND (rootpage = 0 OR EXISTS (SELECT 1 FROM pragma_table_xinfo(made.name) WHERE hidden))"""


_NOTES = {QOS: QOS, TYPE_HASH: "type_description_hash"}  # columns of topics


def _texts(row: sqlite3.Row) -> dict[str, str]:
    """The values of a row, which may be of other types than its columns, as text."""
    values = zip(row.keys(), row, strict=True)
    return {k: _text(v) if isinstance(v, bytes) else str(v or "") for k, v in values}


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


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
        self._database.text_factory = _text
        try:
            self._database.execute("PRAGMA locking_mode=exclusive")  # else a log needs an index
            if computed := [row["name"] for row in self._database.execute(_COMPUTED)]:
                raise sqlite3.DatabaseError(f"{computed[0]} is computed, and may have no end")
            self._read_topics()
        except sqlite3.Error as error:
            self.close()
            raise BagError(f"the list of topics cannot be read: {self._advice(error)}") from error
        for key, count in self._rows("SELECT topic_id, count(*) FROM messages GROUP BY 1"):
            self.counts[key] = count

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def messages(self, names: Collection[str] | None = None) -> Iterator[Message]:
        """Yield messages, of some topics only, in the order in which they were recorded."""
        wanted = [k for k, topic in self.topics.items() if names is None or topic.name in names]
        query = (
            "SELECT topic_id, timestamp, data FROM messages "
            f"WHERE topic_id IN ({', '.join('?' * len(wanted))}) ORDER BY timestamp, id"
        )
        others = self.topics.keys() - set(wanted)
        left = Counter({key: self.counts[key] for key in others})
        for key, time, data in self._rows(query, wanted):  # a key need not be a number
            is_whole = type(time) is int and 0 <= time < 2**63 and type(data) is bytes
            if is_whole and key in self.topics:
                left[key] += 1
                yield Message(self.topics[key], time, data)
        self._note_lost(left)

    def _read_topics(self) -> None:
        definitions = {}
        with suppress(sqlite3.Error):  # before Iron, rosbag2 stored none
            for found in map(_texts, self._database.execute("SELECT * FROM message_definitions")):
                definitions[found["topic_type"]] = found
        for row in self._database.execute("SELECT * FROM topics ORDER BY id"):
            said = _texts(row)
            found = definitions.get(said["type"], {})
            self.topics[row["id"]] = Topic(
                said["name"],
                said["type"],
                found.get("encoded_message_definition", "").encode(),
                found.get("encoding", "ros2msg"),
                said["serialization_format"],
                tuple((key, said.get(old, "")) for key, old in _NOTES.items()),
            )

    def _rows(self, query: str, values: Sequence[Any] = ()) -> Iterator[sqlite3.Row]:
        """Rows as far as they can be read."""
        try:
            yield from self._database.execute(query, values)
        except sqlite3.Error as error:
            self._note(self._advice(error))

    def _advice(self, error: sqlite3.Error) -> str:
        return f"{error}; `sqlite3 {self.path.name} .recover` saves more"
