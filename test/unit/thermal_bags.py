"""Small recordings, as rosbags writes them, for the tests of bag reading and replay."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from mcap.writer import Writer as McapWriter
from rosbags.rosbag2 import StoragePlugin, Writer

from difiisr_ros import scene
from difiisr_ros.bags import (
    CAMERA_INFO_TYPE,
    IMAGE_TYPE,
    STORE,
    image_bytes,
    message_bytes,
    open_bag,
    parse_message,
)
from difiisr_ros.image_codec import image_to_array

STRING = "std_msgs/msg/String"
IMAGE, INFO, WORDS = "/cam/image_raw", "/cam/camera_info", "/words"
START, PERIOD = 1_000_000_000, 100_000_000


def header(index: int):
    stamp = STORE.types["builtin_interfaces/msg/Time"](*divmod(START + index * PERIOD, 10**9))
    return STORE.types["std_msgs/msg/Header"](stamp=stamp, frame_id="lens")


def pixels(index: int, height: int = 18, width: int = 24) -> np.ndarray:
    return np.random.default_rng(index).integers(29000, 29400, (height, width), np.uint16)


def camera_info(index: int, height: int = 18, width: int = 24) -> bytes:
    info = scene.camera_info(header(index))
    info.height, info.width = height, width
    return message_bytes(info)


def word(text: str) -> bytes:
    return message_bytes(STORE.types[STRING](text))


@contextmanager
def mcap_file(path: Path, **options) -> Iterator[McapWriter]:
    """A writer of an MCAP file, which ends with the block."""
    with path.open("wb") as file:
        writer = McapWriter(file, **options)
        writer.start(profile="ros2")
        yield writer
        writer.finish()


def record(
    path: Path,
    storage: str = "mcap",
    frames: int = 5,
    images: list | dict[int, np.ndarray | bytes] = (),
    infos: dict[int, bytes] | None = None,
    encoding: str = "mono16",
) -> Path:
    """A camera with info and words between.

    ``images`` (pixels, or a message's bytes): all of them, or those that replace single ones.
    """
    frames = frames if isinstance(images, dict) else len(images) or frames
    images = images if isinstance(images, dict) else dict(enumerate(images))
    with Writer(path, version=9, storage_plugin=StoragePlugin[storage.upper()]) as writer:
        info = writer.add_connection(INFO, CAMERA_INFO_TYPE, typestore=STORE)
        image = writer.add_connection(IMAGE, IMAGE_TYPE, typestore=STORE)
        words = writer.add_connection(WORDS, STRING, typestore=STORE)
        for index in range(frames):
            at = START + index * PERIOD + 7
            shown = images.get(index, pixels(index))
            if not isinstance(shown, bytes):
                shown = image_bytes(header(index), shown, encoding)
            writer.write(info, at, (infos or {}).get(index, camera_info(index)))
            writer.write(image, at, shown)
            writer.write(words, at + 1, word(f"word {index}"))
    return path


def messages(path: Path, *topics: str) -> list[tuple[str, int, bytes]]:
    with open_bag(path) as bag:
        return [(m.topic.name, m.time, m.data) for m in bag.messages(topics or None)]


def image_of(data: bytes):
    """The image of its bytes, and its counts."""
    image = parse_message(data, IMAGE_TYPE)
    return image, image_to_array(image)


def info_of(data: bytes):
    return parse_message(data, CAMERA_INFO_TYPE)


def storage_file(path: Path) -> Path:
    (file,) = (p for p in path.iterdir() if p.suffix in (".mcap", ".db3"))
    return file


def cut(path: Path, fraction: float) -> None:
    """Cut the storage file of a recording, and take its metadata away, as a crash does."""
    file = storage_file(path)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * fraction)])
    (path / "metadata.yaml").unlink()


def kill_the_recorder(bag: Path, left_in_the_log: int) -> None:
    """Make of a whole SQLite recording what a killed recorder in WAL mode leaves."""
    file, killed = bag / "bag.db3", bag.parent / "killed.db3"
    with closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA wal_autocheckpoint=0")
        newest = list(
            database.execute("SELECT * FROM messages ORDER BY id DESC LIMIT ?", (left_in_the_log,))
        )
        database.executemany("DELETE FROM messages WHERE id = ?", [row[:1] for row in newest])
        database.commit()
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        places = ", ".join("?" * len(newest[0]))
        database.executemany(f"INSERT INTO messages VALUES ({places})", newest[::-1])
        database.commit()
        shutil.copy(file, killed)
        shutil.copy(f"{file}-wal", f"{killed}-wal")
    (bag / "metadata.yaml").unlink()
    killed.rename(file)
    (bag.parent / "killed.db3-wal").rename(bag / "bag.db3-wal")
