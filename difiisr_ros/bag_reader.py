"""Reads rosbag2 recordings (MCAP and SQLite) without ROS, damaged ones as far as they go."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from rosbags.interfaces import Connection, MessageDefinitionFormat
from rosbags.rosbag2 import Reader, ReaderError, StoragePlugin
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from difiisr_models.message_header import stamp_of as stamp_of
from difiisr_ros.bag_remains import McapRemains, Message, SqliteRemains

IMAGE_TYPE = "sensor_msgs/msg/Image"
CAMERA_INFO_TYPE = "sensor_msgs/msg/CameraInfo"
DIAGNOSTICS_TYPE = "diagnostic_msgs/msg/DiagnosticArray"
UNKNOWN_DIGEST = "RIHS01_" + 64 * "0"

_STORAGES = {".mcap": StoragePlugin.MCAP, ".db3": StoragePlugin.SQLITE3}


class BagReader:
    """A rosbag2 folder, or one of its storage files, opened for reading.

    Use as a context manager. ``fault`` says what is wrong with the recording ("" while nothing
    is); it may be set by reading messages. Where the whole cannot be opened, each storage file is
    read as far as it goes.

    Raises:
        FileNotFoundError: the path does not exist.
        ReaderError: it holds no recording, or nothing of it is readable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fault = ""
        self._parts: list[Reader | McapRemains | SqliteRemains] = []
        files = _storage_files(path)
        self.storage = next(_STORAGES[s] for s in files[0].suffixes if s in _STORAGES)
        try:
            self._open(path)
        except Exception as error:  # damaged files raise whatever their parser raises
            if not (path.is_dir() and not (path / "metadata.yaml").exists()):
                self._fault = str(error)
            for file in files:
                self._open_what_is_left(file)
        if not self._parts:
            raise ReaderError(f"nothing in {path} is readable: {self._fault}")

    @property
    def fault(self) -> str:
        """What is wrong with the recording, or ""."""
        faults = [self._fault, *(getattr(part, "fault", "") for part in self._parts)]
        return "; ".join(dict.fromkeys(fault for fault in faults if fault))

    @property
    def connections(self) -> list[Connection]:
        """Topics with their types, QoS and message counts; one entry for each part of the bag."""
        return [connection for part in self._parts for connection in part.connections]

    def messages(self, topics: Collection[str] | None = None) -> Iterator[Message]:
        """Yield (connection, time in ns, CDR bytes), in recorded order; of some topics only."""
        for part in self._parts:
            wanted = [c for c in part.connections if topics is None or c.topic in topics]
            if not wanted:
                continue
            try:
                yield from part.messages(wanted)
            except Exception as error:  # as above
                self._fault = str(error)

    def close(self) -> None:
        """Close the files."""
        for part in self._parts:
            if isinstance(part, Reader):
                part.close()
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

    def _open(self, path: Path) -> None:
        reader = Reader(path)
        reader.open()
        self._parts.append(reader)

    def _open_what_is_left(self, file: Path) -> None:
        try:
            self._open(file)
        except Exception as error:  # as above
            self._fault = str(error)
            remains = {".mcap": McapRemains, ".db3": SqliteRemains}.get(file.suffix)
            if remains is not None:
                with suppress(ReaderError):
                    self._parts.append(remains(file))


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
    if not path.exists():
        raise FileNotFoundError(f"no recording at {path}")
    files = [path] if path.is_file() else [p for p in path.iterdir() if p.is_file()]
    # bag_0.mcap, bag_1.mcap, ... bag_10.mcap: in numerical order
    files = sorted(
        (file for file in files if _STORAGES.keys() & file.suffixes),
        key=lambda file: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", file.name)],
    )
    if not files:
        raise ReaderError(f"{path} is no rosbag2: no .mcap and no .db3 file")
    return files
