"""Writes a rosbag2 recording, one MCAP file, without ROS; what is copied stays as it is.

It appears when it is complete, or not at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Literal

import yaml
from mcap import records as mcap
from mcap.writer import CompressionType, Writer
from rosbags.rosbag2.metadata import dump_qos_v8, dump_qos_v9, parse_qos

from difiisr_models.files import replaced_folder
from difiisr_ros.bag_storage import QOS, ROSBAG2_METADATA, STORE, TYPE_HASH, Message, Topic

Version = Literal[8, 9]
"""Of rosbag2's metadata and QoS. All distributions read what 8 holds: Humble and Iron, which write
5 and 7, pass over what is newer. Jazzy and later write 9, with QoS that older ones cannot read."""


class BagWriter:
    """Writes a recording to a new folder; see :func:`write_bag`.

    Attributes:
        version: of what is written.
        custom_data: of a recording, for metadata.yaml.
    """

    def __init__(self, folder: Path, version: Version) -> None:
        folder.mkdir()
        self.version = version
        self.custom_data: Mapping[str, str] = {}
        self._path = folder / f"{folder.name}.mcap"
        self._topics: dict[tuple, Topic] = {}
        self._channels: dict[Topic, int] = {}
        self._schemas = {("", "", b""): 0}
        self._counts: Counter[Topic] = Counter()
        self._first, self._last = 2**63 - 1, 0
        self._file = self._path.open("xb")
        self._writer = Writer(self._file, compression=CompressionType.NONE)
        self._writer.start(profile="ros2", library="difiisr_ros")

    def close(self) -> None:
        """Close the file, complete or not."""
        self._file.close()

    def add(self, topic: Topic) -> Topic:
        """Declare a topic, unless it is; messages of undeclared ones declare theirs."""
        # A topic of ROS 2 is one, also where files of a recording tell of its QoS differently.
        is_ros = topic.encoding == "cdr"
        identity = (topic.name, topic.type, topic.encoding) if is_ros else topic
        if identity not in self._topics:
            topic = self._topics[identity] = _defined(topic, self.version) if is_ros else topic
            schema = (topic.type, topic.definition_encoding, topic.definition)
            if schema not in self._schemas:
                self._schemas[schema] = self._writer.register_schema(*schema)
            self._channels[topic] = self._writer.register_channel(
                topic.name, topic.encoding, self._schemas[schema], dict(topic.metadata)
            )
        return self._topics[identity]

    def write(self, message: Message) -> None:
        """Write a message; of a copied one every byte stays."""
        topic, time = self.add(message.topic), message.time
        published = time if message.published is None else message.published
        self._writer.add_message(
            self._channels[topic], time, message.data, published, message.sequence
        )
        self._counts[topic] += 1
        self._first, self._last = min(self._first, time), max(self._last, time)

    def write_extra(self, extra: mcap.Attachment | mcap.Metadata) -> None:
        """Write an attachment or metadata record of a recording."""
        if isinstance(extra, mcap.Metadata):
            self._writer.add_metadata(extra.name, extra.metadata)
        else:
            self._writer.add_attachment(**vars(extra))

    def complete(self) -> None:
        """End the file, and write metadata.yaml as rosbag2 does."""
        span = {
            "starting_time": {"nanoseconds_since_epoch": self._first},
            "duration": {"nanoseconds": max(0, self._last - self._first)},
            "message_count": self._counts.total(),
        }
        topics = []
        for topic in self._channels:
            notes = {QOS: "", TYPE_HASH: "", **dict(topic.metadata)}
            qos = notes[QOS] if self.version == 8 else yaml.safe_load(notes[QOS]) or []
            described = {
                "name": topic.name,
                "type": topic.type,
                "serialization_format": topic.encoding,
                "offered_qos_profiles": qos,
                "type_description_hash": notes[TYPE_HASH],
            }
            topics.append({"topic_metadata": described, "message_count": self._counts[topic]})
        information = {
            "version": self.version,
            "storage_identifier": "mcap",
            "relative_file_paths": [self._path.name],
            **span,
            "topics_with_message_count": topics,
            "compression_format": "",
            "compression_mode": "",
            "files": [{"path": self._path.name, **span}],
            "custom_data": self.custom_data or None,
            "ros_distro": "rosbags",
        }
        repeated = {"serialized_metadata": yaml.safe_dump(information)}
        self._writer.add_metadata(ROSBAG2_METADATA, repeated)
        self._writer.finish()
        text = yaml.safe_dump({"rosbag2_bagfile_information": information})
        self._path.with_name("metadata.yaml").write_text(text)


def _defined(topic: Topic, version: Version) -> Topic:
    """A ROS 2 topic with its QoS as a version writes them, and its definition where it is known."""
    notes = dict(topic.metadata)
    with suppress(Exception):  # QoS that nobody can read are copied as they are
        qos = parse_qos(notes.get(QOS, ""))
        notes[QOS] = dump_qos_v8(qos) if version == 8 else yaml.safe_dump(dump_qos_v9(qos))
    if not topic.definition and topic.type in STORE.types:
        definition, _ = STORE.generate_msgdef(topic.type, ros_version=2)
        topic = topic._replace(definition=definition.encode(), definition_encoding="ros2msg")
        notes[TYPE_HASH] = STORE.hash_rihs01(topic.type)
    return topic._replace(metadata=tuple(notes.items()))


@contextmanager
def write_bag(target: Path, force: bool = False, version: Version = 8) -> Iterator[BagWriter]:
    """A writer whose folder becomes ``target`` when the block ends without an error.

    Raises:
        OSError: it cannot be written; ``target`` is as it was.
        FileExistsError: ``target`` exists and is no recording, or ``force`` is not set.
    """
    folders = replaced_folder(target, force, "metadata.yaml")
    with folders as folder, closing(BagWriter(folder, version)) as writer:
        yield writer
        writer.complete()
