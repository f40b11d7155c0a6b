"""Writes rosbag2 recordings without ROS; a recording appears when it is complete, or not at all."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from difiisr_ros.bag_reader import IMAGE_TYPE, UNKNOWN_DIGEST, definition_of
from difiisr_ros.image_codec import encode

STORE = get_typestore(Stores.ROS2_KILTED)
BAG_VERSION = 9  # rosbag2 metadata version


@contextmanager
def write_bag(
    target: Path, storage: StoragePlugin = StoragePlugin.MCAP, force: bool = False
) -> Iterator[Writer]:
    """An open ``Writer`` whose folder becomes ``target`` when the block ends without an error.

    Raises:
        FileExistsError: as :func:`check_target`.
    """
    check_target(target, force)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    try:
        partial, replaced = work / target.name, work / "replaced"
        with Writer(partial, version=BAG_VERSION, storage_plugin=storage) as writer:
            yield writer
        if storage is StoragePlugin.SQLITE3:
            _forget_empty_definitions(partial)
        if target.exists():
            os.replace(target, replaced)
        try:
            os.replace(partial, target)
        except OSError:
            if replaced.exists():
                os.replace(replaced, target)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_target(target: Path, force: bool) -> None:
    """Raise FileExistsError if ``target`` exists, unless it is a recording and ``force`` is set."""
    if target.exists() and not force:
        raise FileExistsError(f"{target} exists; choose another output, or --force to replace it")
    if target.exists() and not (target / "metadata.yaml").is_file():
        raise FileExistsError(f"{target} exists and is no rosbag2: it is not replaced")


def copy_connections(
    connections: Iterable[Connection], writer: Writer
) -> dict[tuple[str, str], Connection]:
    """Declare the topics of another recording in ``writer``: (topic, type) -> its connection."""
    copies: dict[tuple[str, str], Connection] = {}
    for connection in connections:
        key = (connection.topic, connection.msgtype)
        if key in copies:
            continue
        definition, digest = definition_of(connection, STORE)
        copies[key] = writer.add_connection(
            *key,
            msgdef=definition,
            rihs01=digest,
            serialization_format=connection.ext.serialization_format,
            offered_qos_profiles=connection.ext.offered_qos_profiles,
        )
    return copies


def image_bytes(header: Any, pixels: np.ndarray, encoding: str) -> bytes:
    """CDR bytes of a ``sensor_msgs/Image``; pixels as for :func:`image_codec.encode`."""
    fields = encode(pixels, encoding)._asdict()
    fields["data"] = np.frombuffer(fields["data"], np.uint8)
    message = STORE.types[IMAGE_TYPE](header=header, **fields)
    return bytes(STORE.serialize_cdr(message, IMAGE_TYPE))


def _forget_empty_definitions(bag: Path) -> None:
    """Old SQLite recordings define no message types; an empty definition would be a wrong one."""
    with closing(sqlite3.connect(bag / f"{bag.name}.db3")) as database:
        database.execute(
            "DELETE FROM message_definitions WHERE type_description_hash = ?"
            " AND encoded_message_definition = ''",
            (UNKNOWN_DIGEST,),
        )
        database.commit()
