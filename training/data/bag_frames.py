"""Frames of one topic of a rosbag2 recording (MCAP or SQLite), read without ROS."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

from difiisr_models import image_encoding

IMAGE_TYPE = "sensor_msgs/msg/Image"

_STORAGE_SUFFIXES = {".mcap", ".db3"}
_STORE = get_typestore(Stores.ROS2_KILTED)

log = logging.getLogger(__name__)


class TopicError(ValueError):
    """The recording has no such image topic, or no single one to choose."""


def find_recordings(path: Path) -> list[Path]:
    """Recordings at or below ``path``: storage files, or their folder if it has a metadata.yaml."""
    files = [path] if path.is_file() else path.rglob("*")
    storage = [file for file in files if _STORAGE_SUFFIXES & set(file.suffixes)]
    if path.is_file():
        return storage
    return sorted({f.parent if (f.parent / "metadata.yaml").exists() else f for f in storage})


def find_topic(recording: Path, topic: str | None) -> str:
    """The image topic that is read: ``topic`` itself, or without it the only one there is.

    Raises:
        TopicError: there is no such topic, or no single one to choose.
        ReaderError: the recording cannot be opened.
    """
    with Reader(recording) as reader:
        return _choose(reader.connections, topic, recording)[0].topic


def read_recordings(
    recordings: list[Path], topic: str | None, every: int
) -> tuple[list[np.ndarray], list[Path]]:
    """Read the frames of a topic, in recorded order.

    What is damaged is skipped and named in the log: single messages, the rest of a recording from
    the first unreadable place on, or all of it.

    Args:
        recordings: of :func:`find_recordings`.
        topic: name of an image topic; ``None``: the only one there is.
        every: take the first of each so many messages; neighbours are nearly the same picture.

    Returns:
        ``(H, W)`` uint8, uint16 or float32 counts; the recording of each skip.

    Raises:
        TopicError: there is no such topic, or no single one to choose.
    """
    frames: list[np.ndarray] = []
    skipped: list[Path] = []
    for recording in recordings:
        for number, raw in messages(recording, topic, skipped):
            if number % every:
                continue
            try:
                frame = parse(raw)
                require_finite(frame)
                frames.append(frame)
            except Exception as error:  # damaged bytes raise whatever their parser raises
                log.warning("skipped message %d of %s: %s", number, recording, error)
                skipped.append(recording)
    return frames, skipped


def require_finite(counts: np.ndarray) -> None:
    """Raise ValueError where a frame holds NaN or infinity."""
    if counts.dtype.kind == "f" and not np.isfinite(counts).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(counts))} pixels are NaN or infinity")


def parse(raw: bytes) -> np.ndarray:
    """Pixels of a serialised ``sensor_msgs/Image``; damaged bytes raise whatever they lead to."""
    return decode(_STORE.deserialize_cdr(raw, IMAGE_TYPE))


def decode(message: Any) -> np.ndarray:
    """Pixels of a ``sensor_msgs/Image``, ``(H, W)``, native byte order, without row padding.

    Raises:
        ValueError: an encoding that is no thermal image's, or fields that contradict each other.
    """
    pixels = image_encoding.image_to_array(message)
    if pixels.ndim != 2:
        raise ValueError(f"encoding {message.encoding!r} has colours; a thermal image has counts")
    return pixels.copy()


def messages(
    recording: Path, topic: str | None, skipped: list[Path]
) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each message of a topic, in recorded order.

    The end of what is readable is logged, and noted in ``skipped``.

    Raises:
        TopicError: as :func:`read_recordings`.
    """
    number = 0
    for fault in unread_logs(recording):
        log.warning("%s", fault)
        skipped.append(recording)
    try:
        with Reader(recording) as reader:
            connections = _choose(reader.connections, topic, recording)
            for number, (_, _, raw) in enumerate(reader.messages(connections)):
                yield number, raw
    except TopicError:
        raise
    except Exception as error:  # as above
        log.warning("could not read %s beyond message %d: %s", recording, number, error)
        skipped.append(recording)


def unread_logs(recording: Path) -> list[str]:
    """What a killed SQLite recorder left beside its files, which is not read here, and a remedy."""
    files = recording.glob("*.db3") if recording.is_dir() else [recording]
    logs = ((file, file.with_name(f"{file.name}-wal")) for file in sorted(files))
    return [
        f"the newest messages of {file} are in {log.name} and are not read; "
        f"`sqlite3 {file} 'PRAGMA wal_checkpoint(TRUNCATE)'` puts them in their place"
        for file, log in logs
        if log.exists() and log.stat().st_size > 0
    ]


def _choose(connections: list[Connection], topic: str | None, recording: Path) -> list[Connection]:
    """The connections of the topic; a recording may hold several, one for each publisher."""
    images = [c for c in connections if c.msgtype == IMAGE_TYPE]
    topics = sorted({c.topic for c in images})
    if topic is None and len(topics) != 1:
        raise TopicError(f"{recording}: say which topic; it has: {', '.join(topics) or 'none'}")
    if topic is not None and topic not in topics:
        raise TopicError(f"{recording}: no image topic {topic!r}; it has: {', '.join(topics)}")
    return [c for c in images if c.topic == (topic or topics[0])]
