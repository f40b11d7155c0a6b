"""What can still be read from a damaged rosbag2 storage file: a record scan without any index.

A recorder that was killed leaves an MCAP file without its closing index, and a cut file ends in
the middle of a record. Both classes offer ``connections``, ``messages(connections)`` and ``fault``.
Format facts: the MCAP specification (records, chunks) and rosbag2's SQLite schema.
"""

from __future__ import annotations

import io
import os
import struct
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import apsw
from lz4.frame import LZ4FrameDecompressor
from rosbags.interfaces import (
    Connection,
    ConnectionExtRosbag2,
    MessageDefinition,
    MessageDefinitionFormat,
)
from rosbags.rosbag2 import ReaderError
from rosbags.rosbag2.metadata import parse_qos

try:
    from compression import zstd  # Python 3.14
except ImportError:
    from backports import zstd

Message = tuple[Connection, int, bytes]

_MAGIC = b"\x89MCAP0\r\n"
_FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK = 0x02, 0x03, 0x04, 0x05, 0x06
_FORMATS = {"ros2msg": MessageDefinitionFormat.MSG, "ros2idl": MessageDefinitionFormat.IDL}


class McapRemains:
    """Every message of an MCAP file up to the place where it stops making sense.

    A damaged chunk is left where it stops making sense, and the next one read.

    Raises:
        ReaderError: the file is no MCAP file at all.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._end = ""
        self._damaged: list[str] = []
        self._schemas: dict[int, tuple[str, MessageDefinition]] = {}
        self._channels: dict[int, Connection] = {}
        counts = Counter(channel for channel, _, _ in self._scan())
        self.connections = [c._replace(msgcount=counts[c.id]) for c in self._channels.values()]

    @property
    def fault(self) -> str:
        """What is wrong with the file, as far as it has been read."""
        count = len(self._damaged)
        damage = self._damaged[:1] + ([f"and {count - 1} more"] if count > 1 else [])
        return "; ".join([*damage, *filter(None, [self._end])])

    def messages(self, connections: Collection[Connection]) -> Iterator[Message]:
        """Yield (connection, log time in ns, CDR bytes) in file order, sorted within chunks."""
        wanted = {connection.id: connection for connection in connections}
        for channel, time, data in self._scan():
            if channel in wanted:
                yield wanted[channel], time, data

    def _scan(self) -> Iterator[tuple[int, int, bytes]]:
        self._end, self._damaged = "the file ends without its closing index", []
        with self.path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise ReaderError(f"{self.path} is no MCAP file")
            size = os.fstat(file.fileno()).st_size
            for opcode, body, whole in _records(file, size):
                if not whole:
                    self._end = f"the file is cut off inside a record at byte {size}"
                if opcode == _FOOTER:
                    self._end = ""
                    return
                if opcode == _CHUNK:  # a damaged one is whole outside: the next can be read
                    yield from sorted(self._read_chunk(body, file.tell()), key=lambda m: m[1])
                    continue
                try:
                    yield from self._read(opcode, body, whole)
                except Exception as error:  # damaged bytes raise whatever their parser raises
                    self._damaged.append(f"damaged record before byte {file.tell()}: {error}")
                    return

    def _read_chunk(self, body: bytes, end: int) -> list[tuple[int, int, bytes]]:
        """Its messages, up to where it stops making sense; ``end``: of the chunk in the file."""
        found = []
        try:
            inner = _decompress(body)
            for record in _records(io.BytesIO(inner), len(inner)):
                found += self._read(*record)
        except Exception as error:  # as above
            self._damaged.append(f"damaged chunk before byte {end}: {error}")
        return found

    def _read(self, opcode: int, body: bytes, whole: bool) -> Iterator[tuple[int, int, bytes]]:
        if not whole:
            return
        if opcode == _SCHEMA:
            (key,) = struct.unpack_from("<H", body)
            name, at = _string(body, 2)
            encoding, at = _string(body, at)
            text, _ = _string(body, at)
            form = _FORMATS.get(encoding, MessageDefinitionFormat.NONE)
            self._schemas[key] = (name, MessageDefinition(form, text))
        elif opcode == _CHANNEL:
            key, schema = struct.unpack_from("<HH", body)
            topic, at = _string(body, 4)
            encoding, at = _string(body, at)
            end = at + 4 + struct.unpack_from("<I", body, at)[0]
            at, metadata = at + 4, {}
            while at < end:
                name, at = _string(body, at)
                metadata[name], at = _string(body, at)
            qos = parse_qos(metadata.get("offered_qos_profiles", ""))
            ext = ConnectionExtRosbag2(encoding, qos)
            msgtype, definition = self._schemas[schema]
            connection = Connection(key, topic, msgtype, definition, "", 0, ext, self)
            self._channels.setdefault(key, connection)
        elif opcode == _MESSAGE:
            channel, _, time = struct.unpack_from("<HIQ", body)
            if channel in self._channels:
                yield channel, time, body[22:]


def _records(stream: BinaryIO, size: int) -> Iterator[tuple[int, bytes, bool]]:
    """Yield (opcode, body, whether the body is complete)."""
    while len(head := stream.read(9)) == 9:
        opcode, length = struct.unpack("<BQ", head)
        body = stream.read(min(length, size - stream.tell()))
        yield opcode, body, len(body) == length


def _string(body: bytes, at: int) -> tuple[str, int]:
    start = at + 4
    end = start + struct.unpack_from("<I", body, at)[0]
    return body[start:end].decode(), end


def _decompress(chunk: bytes) -> bytes:
    """Records of a chunk; of a chunk that is cut off, as many bytes as can be unpacked."""
    compression, at = _string(chunk, 28)
    data = chunk[at + 8 :]
    if compression == "zstd":
        return zstd.ZstdDecompressor().decompress(data)
    if compression == "lz4":
        return LZ4FrameDecompressor().decompress(data)
    if compression:
        raise ReaderError(f"chunk compression {compression!r} is not known")
    return data


class SqliteRemains:
    """Every message of a SQLite storage file up to the first page that cannot be read.

    The newest ones of a recorder that was killed may lie in a write-ahead log beside the file
    (``<file>-wal``): they are read as well, and neither file is changed.

    Raises:
        ReaderError: not even the list of topics can be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fault = ""
        try:
            with _read_only(self.path) as database:
                topics = database.execute("SELECT * FROM topics ORDER BY id")
                topics = [
                    dict(zip((c[0] for c in topics.description), t, strict=True)) for t in topics
                ]
                definitions = self._definitions(database)
        except apsw.Error as error:
            raise ReaderError(f"{path}: the list of topics cannot be read: {error}") from error
        no_definition = (MessageDefinition(MessageDefinitionFormat.NONE, ""), "")
        self.connections = []
        for topic in topics:
            qos = parse_qos(topic.get("offered_qos_profiles", ""))
            definition, digest = definitions.get(topic["type"], no_definition)
            ext = ConnectionExtRosbag2(topic["serialization_format"], qos)
            self.connections.append(
                Connection(
                    topic["id"], topic["name"], topic["type"], definition, digest, 0, ext, self
                )
            )
        counts = Counter(connection.id for connection, _, _ in self.messages(self.connections))
        self.connections = [c._replace(msgcount=counts[c.id]) for c in self.connections]

    def messages(self, connections: Collection[Connection]) -> Iterator[Message]:
        """Yield (connection, time in ns, CDR bytes) in the order in which they were written."""
        wanted = {connection.id: connection for connection in connections}
        query = "SELECT topic_id, timestamp, data FROM messages NOT INDEXED"
        with _read_only(self.path) as database:
            try:
                for topic, time, data in database.execute(query):
                    if topic in wanted:
                        yield wanted[topic], time, data
            except apsw.Error as error:
                self.fault = f"the database is damaged: {error}"

    @staticmethod
    def _definitions(database: apsw.Connection) -> dict[str, tuple[MessageDefinition, str]]:
        try:
            rows = database.execute(
                "SELECT topic_type, encoding, encoded_message_definition, type_description_hash "
                "FROM message_definitions"
            )
            return {
                name: (MessageDefinition(_FORMATS[encoding], text), digest)
                for name, encoding, text, digest in rows
            }
        except (apsw.Error, KeyError):
            return {}  # recorded before rosbag2 stored definitions


_NO_LOCKS = "unix-none"  # SQLite's own: a lock would need a file that may be written


class _WholePagesFile(apsw.VFSFile):
    """A database file that ends at its last whole page: of a torn one SQLite makes up the rest."""

    def __init__(self, name: str | apsw.URIFilename, flags: list[int]) -> None:
        super().__init__(_NO_LOCKS, name, flags)
        self._is_database = bool(flags[0] & apsw.SQLITE_OPEN_MAIN_DB)

    def xFileSize(self) -> int:
        size = super().xFileSize()
        if not self._is_database:
            return size
        stored = int.from_bytes(self.xRead(2, 16), "big") if size >= 100 else 512
        page = 65536 if stored == 1 else max(stored, 512)  # SQLite file format, 1.3.2
        return size - size % page


class _WholePages(apsw.VFS):
    """Opens every file as a :class:`_WholePagesFile`."""

    NAME = "difiisr_whole_pages"

    def __init__(self) -> None:
        super().__init__(self.NAME, _NO_LOCKS)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        return _WholePagesFile(name, flags)


_vfs = _WholePages()  # registered with SQLite as long as this object lives


def has_write_ahead_log(path: Path) -> bool:
    """Whether messages of a SQLite storage file may lie in a log beside it."""
    log = path.with_name(f"{path.name}-wal")
    return log.exists() and log.stat().st_size > 0


@contextmanager
def _read_only(path: Path) -> Iterator[apsw.Connection]:
    how = "mode=ro" if has_write_ahead_log(path) else "immutable=1"
    database = apsw.Connection(
        f"{path.absolute().as_uri()}?{how}",
        flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI,
        vfs=_WholePages.NAME,
    )
    try:
        database.pragma("locking_mode", "exclusive")  # else a log needs an index file beside it
        database.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # nor is it written back
        # Without this SQLite refuses a file that is shorter than its header says.
        database.pragma("writable_schema", True)
        yield database
    finally:
        database.close()
