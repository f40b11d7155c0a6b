"""Reads rosbag2 recordings (MCAP and SQLite) without ROS, damaged ones as far as they go."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from types import TracebackType

from rosbags.interfaces import Connection, MessageDefinitionFormat
from rosbags.rosbag2 import Reader, ReaderError, StoragePlugin
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from difiisr_models.message_header import stamp_of as stamp_of
from difiisr_ros.bag_remains import (
    McapRemains,
    Message,
    SqliteRemains,
    has_write_ahead_log,
    zstd,
)

IMAGE_TYPE = "sensor_msgs/msg/Image"
CAMERA_INFO_TYPE = "sensor_msgs/msg/CameraInfo"
DIAGNOSTICS_TYPE = "diagnostic_msgs/msg/DiagnosticArray"
UNKNOWN_DIGEST = "RIHS01_" + 64 * "0"

_STORAGES = {".mcap": StoragePlugin.MCAP, ".db3": StoragePlugin.SQLITE3}
_REMAINS = {".mcap": McapRemains, ".db3": SqliteRemains}
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class BagReader:
    """A rosbag2 folder, or one of its storage files, opened for reading.

    Use as a context manager. ``fault`` says what is wrong with the recording ("" while nothing
    is); it may be set by reading messages. Where the whole cannot be opened or read, each storage
    file is read as far as it goes. Nothing is written beside them.

    Raises:
        FileNotFoundError: the path does not exist.
        ReaderError: it holds no recording, or nothing of it is readable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._faults: list[str] = []
        self._parts: list[Reader | McapRemains | SqliteRemains] = []
        self._open_files = ExitStack()
        files = _storage_files(path)
        self.storage = next(_STORAGES[s] for s in files[0].suffixes if s in _STORAGES)
        try:
            self._open(path, files)
        except Exception as error:  # damaged files raise whatever their parser raises
            if (path / "metadata.yaml").exists():
                self._faults.append(f"{path.name}: {error}")
            for file in files:
                self._open_what_is_left(file)
        if not self._parts:
            self.close()
            raise ReaderError(f"nothing in {path} is readable: {self.fault}")

    @property
    def fault(self) -> str:
        """What is wrong with the recording, or ""."""
        faults = [*self._faults, *(getattr(part, "fault", "") for part in self._parts)]
        return "; ".join(dict.fromkeys(fault for fault in faults if fault))

    @property
    def connections(self) -> list[Connection]:
        """Topics with their types, QoS and message counts; one entry for each part of the bag."""
        return [connection for part in self._parts for connection in part.connections]

    def messages(self, topics: Collection[str] | None = None) -> Iterator[Message]:
        """Yield (connection, time in ns, CDR bytes), in recorded order; of some topics only."""
        for part in self._parts:
            try:
                yield from _messages_of(part, topics)
            except Exception as error:  # as above
                self._faults.append(f"{part.path.name}: {error}")
                if isinstance(part, Reader):
                    yield from self._messages_left(part, topics)

    def close(self) -> None:
        """Close the files."""
        self._open_files.close()
        self._parts.clear()

    def __enter__(self) -> BagReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self, path: Path, files: Collection[Path]) -> None:
        """Open what is whole: the folder or the file ``path``, which consists of ``files``."""
        if any(has_write_ahead_log(file) for file in files):
            raise ReaderError("its recorder was killed; what it left in a write-ahead log is read")
        reader = Reader(path)
        reader.open()
        self._open_files.callback(reader.close)
        self._parts.append(reader)

    def _open_what_is_left(self, file: Path) -> None:
        try:
            file = self._decompressed(file)
            self._open(file, [file])
        except Exception as error:  # as above
            self._faults.append(f"{file.name}: {error}")
            with suppress(ReaderError, KeyError):
                self._parts.append(_REMAINS[file.suffix](file))

    def _decompressed(self, file: Path) -> Path:
        """The storage file itself, or a temporary one of what of it could be decompressed."""
        if file.suffix != ".zstd":
            return file
        folder = self._open_files.enter_context(TemporaryDirectory())
        plain = Path(folder) / file.stem
        with zstd.open(file) as packed, plain.open("wb") as unpacked:
            try:
                shutil.copyfileobj(packed, unpacked)
            except (zstd.ZstdError, EOFError) as error:
                self._faults.append(f"{file.name}: {error}")
        return plain

    def _messages_left(self, part: Reader, topics: Collection[str] | None) -> Iterator[Message]:
        """What lies behind the place where reading the part has ended, in its files one by one."""
        seen: Counter[tuple[str, int]] = Counter()
        with suppress(Exception):  # it ends again where it has ended
            for connection, at, _ in _messages_of(part, topics):
                seen[connection.topic, at] += 1
        for path in _files_of(part):
            # Of several files each may be whole; one alone has just been seen not to be.
            read = self._messages_of_file if path != part.path else self._messages_of_remains
            try:
                for message in read(path, topics):
                    key = message[0].topic, message[1]
                    if seen[key]:
                        seen[key] -= 1
                    else:
                        yield message
            except Exception as error:  # as above
                self._faults.append(f"{path.name}: {error}")

    def _messages_of_file(self, path: Path, topics: Collection[str] | None) -> Iterator[Message]:
        with BagReader(path) as bag:
            yield from bag.messages(topics)
            self._faults.append(bag.fault)

    def _messages_of_remains(self, path: Path, topics: Collection[str] | None) -> Iterator[Message]:
        remains = _REMAINS[path.suffix](path)
        yield from _messages_of(remains, topics)
        self._faults.append(remains.fault)


def _files_of(part: Reader) -> list[Path]:
    """The storage files that are read, decompressed ones where the recorder compressed them."""
    storages = getattr(part.storage, "storages", [part.storage])  # of a folder, of a file
    return [Path(storage.path) for storage in storages]


def _messages_of(
    part: Reader | McapRemains | SqliteRemains, topics: Collection[str] | None
) -> Iterator[Message]:
    wanted = [c for c in part.connections if topics is None or c.topic in topics]
    for connection, at, raw in part.messages(wanted) if wanted else ():
        yield connection, at, _decompressed_message(raw)


def _decompressed_message(raw: bytes) -> bytes:
    """A message that a recorder compressed by itself, which a file alone does not tell."""
    if raw[:4] != _ZSTD_MAGIC:
        return raw
    with suppress(zstd.ZstdError):
        return zstd.decompress(raw)
    return raw


def image_topics(connections: Collection[Connection]) -> list[str]:
    """Names of the topics that carry ``sensor_msgs/Image``, sorted."""
    return sorted({c.topic for c in connections if c.msgtype == IMAGE_TYPE})


def choose_image_topic(connections: Collection[Connection], wanted: str | None) -> str:
    """The topic to work on: ``wanted``, or the only image topic there is.

    Raises:
        ValueError: no such image topic, or no single one to choose; the text lists them.
    """
    topics = image_topics(connections)
    listed = ", ".join(topics) or "none"
    if wanted is None and len(topics) != 1:
        raise ValueError(f"say which image topic to use; the bag has: {listed}")
    if wanted is not None and wanted not in topics:
        raise ValueError(f"the bag has no image topic {wanted!r}; it has: {listed}")
    return wanted or topics[0]


def choose_info_topic(
    connections: Collection[Connection], image_topic: str, wanted: str | None
) -> str | None:
    """The camera_info topic: ``wanted``, else ``camera_info`` beside the image topic, else None.

    Raises:
        ValueError: there is no topic ``wanted`` of that type; the text lists those there are.
    """
    topics = sorted({c.topic for c in connections if c.msgtype == CAMERA_INFO_TYPE})
    if wanted is not None and wanted not in topics:
        listed = ", ".join(topics) or "none"
        raise ValueError(f"the bag has no camera_info topic {wanted!r}; it has: {listed}")
    beside = f"{image_topic.rpartition('/')[0]}/camera_info"
    return wanted or (beside if beside in topics else None)


def definition_of(connection: Connection, store: Typestore) -> tuple[str, str]:
    """Message definition and type hash of a topic, computed where the recording lacks them.

    A type of which nothing is known gives ("", UNKNOWN_DIGEST).
    """
    text = connection.msgdef.data
    try:
        if connection.msgdef.format == MessageDefinitionFormat.NONE:
            text, _ = store.generate_msgdef(connection.msgtype, ros_version=2)
            return text, store.hash_rihs01(connection.msgtype)
        if connection.digest:
            return text, connection.digest
        own = get_typestore(Stores.EMPTY)
        if connection.msgdef.format == MessageDefinitionFormat.MSG:
            own.register(get_types_from_msg(text, connection.msgtype))
        else:
            for part in re.split(r"^=+\nIDL: .*$", text, flags=re.MULTILINE):
                own.register(get_types_from_idl(part))
        return text, own.hash_rihs01(connection.msgtype)
    except Exception:  # a definition that this parser cannot read is copied all the same
        return text, UNKNOWN_DIGEST


def _storage_files(path: Path) -> list[Path]:
    """Of a folder those that its metadata lists, all where it has none, in recorded order."""
    if not path.exists():
        raise FileNotFoundError(f"no recording at {path}")
    files = [path] if path.is_file() else [p for p in path.iterdir() if p.is_file()]
    # A recorder killed while it compressed leaves both: the plain one is whole.
    files = [f for f in files if f.suffix != ".zstd" or f.with_suffix("") not in files]
    # bag_0.mcap, bag_1.mcap, ... bag_10.mcap: in numerical order
    files = sorted(
        (file for file in files if _STORAGES.keys() & file.suffixes),
        key=lambda file: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", file.name)],
    )
    if not files:
        raise ReaderError(f"{path} is no rosbag2: no .mcap and no .db3 file")
    metadata = path / "metadata.yaml"
    text = metadata.read_text(errors="replace") if metadata.exists() else ""
    names = {PurePath(line.split()[-1]).name for line in text.splitlines() if line.strip()}
    return [file for file in files if file.name in names] or files
