"""The bag room: opens and reads rosbag2 recordings (MCAP and SQLite) without ROS.

A recording is a folder or one of its storage files, split and compressed ones included. Damaged
ones are read as far as they go. :mod:`.bag_writing` writes them.
"""

from __future__ import annotations

import logging
import re
import shutil
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, closing
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any, NamedTuple, TypeVar

import numpy as np
import yaml
import zstandard

from difiisr_models.settings import Camera, Crop
from difiisr_models.stream import Stream
from difiisr_models.validity import fill
from difiisr_ros.bag_storage import (
    LARGEST_CHUNK,
    QOS,
    STORE,
    BagError,
    McapFile,
    Message,
    SqliteFile,
    Topic,
    unpack,
)
from difiisr_ros.image_codec import (
    compress,
    decompress,
    encode_rows,
    image_to_array,
    is_false_colour,
)

IMAGE_TYPE = "sensor_msgs/msg/Image"
CAMERA_INFO_TYPE = "sensor_msgs/msg/CameraInfo"
COMPRESSED_TYPE = "sensor_msgs/msg/CompressedImage"
DIAGNOSTICS_TYPE = "diagnostic_msgs/msg/DiagnosticArray"

_Path = TypeVar("_Path", bound=PurePath)

MOST_MEGAPIXELS = 100.0
"""Larger compressed images are not decoded."""

_FILES: dict[str, type[McapFile | SqliteFile]] = {".mcap": McapFile, ".db3": SqliteFile}
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_HEADER = 18  # bytes at most
_MAX_METADATA_BYTES = 2**22

log = logging.getLogger(__name__)


class TopicError(ValueError):
    """The recording has no such topic, or no single one to choose."""


class Bag(ExitStack):
    """A recording, opened for reading; see :func:`open_bag`. Its context closes the files.

    Attributes:
        path: of the folder or file.
        topics: of all its files.
        custom_data: that its recorder was given.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._faults: dict[str, None] = {}
        self._left_out: list[str] = []
        self._files: list[McapFile | SqliteFile] = []
        self._counts: Counter[str] = Counter()  # as metadata.yaml has them
        self.custom_data: Mapping[str, str] = {}
        there = storage_files(path)
        for file in self._listed(there, self._read_metadata()):
            try:
                plain = self._decompressed(file)
                self._files.append(self.enter_context(closing(_FILES[plain.suffix](plain))))
            except Exception as error:  # damaged files raise whatever their parser raises
                self._faults.setdefault(f"{file.name}: {error}")
        topics = (topic for file in self._files for topic in file.topics.values())
        self.topics = list(dict.fromkeys(topics))
        if not self.topics and self.fault:
            self.close()
            raise BagError(f"nothing in {path} is readable: {self.fault}")

    @property
    def faults(self) -> list[str]:
        """What is wrong with the recording, as far as it has been read, and what of it is lost."""
        found = [f"{file.path.name}: {fault}" for file in self._files for fault in file.faults]
        return [*self._faults, *found]

    @property
    def fault(self) -> str:
        """:attr:`faults` in one line; "" if there is none."""
        return "; ".join(self.faults)

    @property
    def left_out(self) -> list[str]:
        """What of it nobody here reads or copies."""
        found = [
            f"{file.path.name}: {count} {what}"
            for file in self._files
            for what, count in file.left_out.items()
        ]
        return [*self._left_out, *found]

    def count(self, name: str) -> int:
        """Number of messages of the topic ``name``."""
        pairs = [(file, *pair) for file in self._files for pair in file.topics.items()]
        return sum(file.counts[number] for file, number, topic in pairs if topic.name == name)

    def messages(self, names: Collection[str] | None = None) -> Iterator[Message]:
        """Yield the messages, of some topics only, in recorded order."""
        read: Counter[str] = Counter()
        for file in self._files:
            for message in file.messages(names):
                read[message.topic.name] += 1
                # A recorder that compresses message by message says so in metadata.yaml alone
                if message.topic.encoding == "cdr" and message.data[:4] == _ZSTD_MAGIC:
                    message = self._unpacked(message)
                yield message
        for name, count in self._counts.items():
            if (names is None or name in names) and read[name] < count > self.count(name):
                lost = f"{count - read[name]} of {count} messages of {name}"
                self._faults.setdefault(f"{lost}, as metadata.yaml counts them, are lost")

    def extras(self) -> Iterator[Any]:
        """Yield MCAP's attachments and metadata records, for :meth:`.BagWriter.write_extra`."""
        for file in self._files:
            yield from file.extras()

    def _read_metadata(self) -> Collection[str]:
        """Take counts and custom data of metadata.yaml; returns the files that it lists.

        It may have been edited, or kept from another recording. Damage is noted.
        """
        file = self.path / "metadata.yaml"
        if not file.is_file():
            return ()
        try:
            if (size := file.stat().st_size) > _MAX_METADATA_BYTES:
                raise ValueError(f"{size} bytes, at most {_MAX_METADATA_BYTES} are read")
            said = yaml.safe_load(file.read_text(errors="replace"))["rosbag2_bagfile_information"]
            counts: Counter[str] = Counter()
            for topic in said["topics_with_message_count"]:
                counts[topic["topic_metadata"]["name"]] += int(topic["message_count"])
            custom = {str(k): str(v) for k, v in (said.get("custom_data") or {}).items()}
            files = [PurePath(name).name for name in said["relative_file_paths"]]
        except Exception as error:  # as above
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self._left_out.append(f"metadata.yaml, which is damaged: {reason}")
            return ()
        self._counts, self.custom_data = counts, custom
        return files

    def _listed(self, there: list[Path], in_metadata: Collection[str]) -> list[Path]:
        """The files that metadata.yaml lists, or all; notes what it and the folder do not share."""
        listed = {name.removesuffix(".zstd") for name in in_metadata}
        names = {file.name.removesuffix(".zstd"): file for file in there}
        if not listed & names.keys():
            return there
        for name in sorted(listed - names.keys()):
            self._faults.setdefault(f"{name} is missing, which metadata.yaml lists")
        for name in sorted(names.keys() - listed):
            self._left_out.append(f"{name}, which metadata.yaml does not list")
        return [file for name, file in names.items() if name in listed]

    def _unpacked(self, message: Message) -> Message:
        """A message that its recorder compressed; as it is, and noted, if it is damaged."""
        size, data = zstandard.frame_content_size(message.data), BytesIO()
        most = LARGEST_CHUNK if size < 0 else size
        if fault := unpack("zstd", BytesIO(message.data), data, most):
            where = f"a message of {message.topic.name} at {message.time} ns"
            self._faults.setdefault(f"damaged: {where}: {fault}")
            return message
        return message._replace(data=data.getvalue())

    def _decompressed(self, file: Path) -> Path:
        """The storage file itself, or a temporary one of what of it could be decompressed."""
        if file.suffix != ".zstd":
            return file
        folder = self.enter_context(tempfile.TemporaryDirectory())
        plain, room = Path(folder) / file.stem, shutil.disk_usage(folder).free // 2
        with file.open("rb") as packed, plain.open("wb") as result:
            size = zstandard.frame_content_size(packed.read(_ZSTD_HEADER))
            if size > room:
                raise BagError(f"it unpacks to {size} bytes, {room} may be used in {folder}")
            packed.seek(0)
            if fault := unpack("zstd", packed, result, room if size < 0 else size):
                self._faults.setdefault(f"{file.name}: {fault}")
        return plain


def open_bag(path: Path) -> Bag:
    """Open a rosbag2 folder or one of its storage files; nothing is written beside them.

    Raises:
        FileNotFoundError: the path does not exist.
        BagError: it holds no recording, or nothing of it is readable.
    """
    return Bag(path)


def storage_files(path: Path) -> list[Path]:
    """Storage files at or in ``path``, in recorded order, whatever its metadata lists.

    Raises:
        FileNotFoundError: the path does not exist.
        BagError: there is no .mcap and no .db3 file.
    """
    if not path.exists():
        raise FileNotFoundError(f"no recording at {path}")
    files = [path] if path.is_file() else [p for p in path.iterdir() if p.is_file()]
    # A recorder killed while it compressed leaves both: the plain one is whole.
    files = [f for f in files if f.suffix != ".zstd" or f.with_suffix("") not in files]
    # bag_0.mcap, bag_1.mcap, ... bag_10.mcap: in numerical order
    files = sorted(
        (file for file in files if _FILES.keys() & file.suffixes),
        key=lambda file: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", file.name)],
    )
    if not files:
        raise BagError(f"{path} is no rosbag2: no .mcap and no .db3 file")
    return files


def find_recordings(path: Path) -> list[Path]:
    """Recordings at or below ``path``: storage files, or their folder if it has a metadata.yaml."""
    if path.is_file():
        return [path] if is_storage(path) else []
    return recordings_among({file for file in path.rglob("*") if file.is_file()})


def recordings_among(files: Collection[_Path]) -> list[_Path]:
    """Recordings that some files make up: storage files, or folders of a metadata.yaml."""
    storage = filter(is_storage, files)
    return sorted({f.parent if f.parent / "metadata.yaml" in files else f for f in storage})


def is_storage(path: PurePath) -> bool:
    """Whether it is called as a storage file of a recording is."""
    return bool(_FILES.keys() & set(path.suffixes))


def choose_image_topic(bag: Bag, wanted: str | None = None) -> str:
    """The topic to work on: ``wanted``, or the only image topic; of compressed ones, without raw.

    Raises:
        TopicError: no such image topic, or no single one to choose; the text lists them.
    """
    topics = image_topics(bag)
    if wanted is not None:
        return _known_topic(bag, wanted, "image topic", topics)
    likely = topics_of(bag, IMAGE_TYPE) or topics
    if len(likely) != 1:
        listed = ", ".join(topics) or "none"
        raise TopicError(f"{bag.path}: say which topic of images to use; it has: {listed}")
    return likely[0]


def image_topics(bag: Bag) -> list[str]:
    """Names of the topics of images, compressed ones included, sorted."""
    return sorted([*topics_of(bag, IMAGE_TYPE), *topics_of(bag, COMPRESSED_TYPE)])


def choose_info_topic(bag: Bag, image_topic: str, wanted: str | None = None) -> str | None:
    """The camera_info topic: ``wanted``, else ``camera_info`` beside the image topic, else None.

    Raises:
        TopicError: there is no topic ``wanted`` of that type; the text lists those there are.
    """
    topics, beside = topics_of(bag, CAMERA_INFO_TYPE), info_topic_beside(image_topic)
    if wanted is not None:
        return _known_topic(bag, wanted, "camera_info topic", topics)
    return beside if beside in topics else None


def _known_topic(bag: Bag, wanted: str, what: str, topics: list[str]) -> str:
    if wanted not in topics:
        listed = ", ".join(topics) or "none"
        raise TopicError(f"{bag.path}: no {what} {wanted!r}; it has: {listed}")
    return wanted


def info_topic_beside(image_topic: str) -> str:
    """Where a camera's info is: /thermal/image_raw, or compressed below -> /thermal/camera_info."""
    return f"{raw_topic(image_topic).rpartition('/')[0]}/camera_info"


def raw_topic(image_topic: str) -> str:
    """The topic without what image_transport adds: /image_raw/compressed -> /image_raw."""
    return re.sub("/compressed(Depth)?$", "", image_topic)


def topics_of(bag: Bag, message_type: str) -> list[str]:
    """Names of the topics of a type, sorted."""
    return sorted({topic.name for topic in bag.topics if topic.type == message_type})


def frames_of(
    path: Path,
    topic: str | None = None,
    every: int = 1,
    choose: Callable[[int], Collection[int]] | None = None,
    skipped: Callable[[str], None] = log.warning,
    camera: Camera = Camera(),
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the frames of a recording, in recorded order, named by their number: 000000, ...

    Args:
        path: folder or storage file.
        topic: name of an image topic; ``None``: the only one there is.
        every: take the first of each so many messages; neighbours are nearly the same picture.
        choose: given their count, says the numbers of the messages to take; ``None``: all.
        skipped: is told of each message that is damaged, has colours, or holds NaN or infinity,
            and of what else is wrong with the recording.
        camera: what is cut off its frames, and which values are filled from the nearest others.

    Yields:
        Name and ``(H, W)`` uint8, uint16 or float32 counts.

    Raises:
        TopicError: there is no such topic, or no single one to choose.
    """
    try:
        bag = open_bag(path)
    except BagError as error:
        skipped(f"could not read {path}: {error}")
        return
    with bag:
        topic = choose_image_topic(bag, topic)
        chosen = None if choose is None else set(choose(bag.count(topic)))
        for number, message in enumerate(bag.messages({topic})):
            if number % every or (chosen is not None and number not in chosen):
                continue
            try:
                yield f"{number:06}", _counts(message, camera)
            except ValueError as error:
                skipped(f"skipped message {number} of {path}: {error}")
        if bag.fault:
            skipped(f"could not read all of {path}: {bag.fault}")


def _counts(message: Message, camera: Camera) -> np.ndarray:
    """Finite counts ``(H, W)`` of an image; ValueError without."""
    image, _, counts, _ = read_frame(message, camera)
    if is_false_colour(image):
        raise ValueError(f"encoding {image.encoding!r} has colours; a thermal image has counts")
    counts = counts if counts.ndim == 2 else counts[..., 0]
    if not counts.size:
        raise ValueError(f"nothing is left of {image.width}x{image.height} pixels: see crop")
    if (invalid := np.isin(counts, camera.no_data_values)).any():
        counts = fill(counts, invalid)
    if counts.dtype.kind == "i":
        counts = counts.astype(np.float32)
    if counts.dtype.kind == "f" and not np.isfinite(counts).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(counts))} pixels are NaN or infinity")
    return counts.copy()


def read_image(message: Message) -> Any:
    """The ``sensor_msgs/Image`` of a message, decompressed where it is compressed; ValueError."""
    if message.topic.type == COMPRESSED_TYPE:
        return decompress(parse_message(message.data, COMPRESSED_TYPE), MOST_MEGAPIXELS)
    return parse_message(message.data, IMAGE_TYPE)


class CameraFrame(NamedTuple):
    """An image, what is cut off it, what is left of its pixels; ``is_shut``: its telemetry says."""

    image: Any
    crop: Crop
    pixels: np.ndarray
    is_shut: bool

    def shown_to(self, stream: Stream) -> np.ndarray:
        """The pixels, for a stream that is told what the message says beside them."""
        stream.encoding, stream.is_closed = self.image.encoding, self.is_shut
        return self.pixels


def read_frame(message: Message, camera: Camera) -> CameraFrame:
    """The image of a message; ValueError where it is none."""
    image = read_image(message)
    pixels = image_to_array(image)
    crop = camera.window(*pixels.shape[:2])
    return CameraFrame(image, crop, crop.cut(pixels), camera.is_shut(pixels))


def parse_message(data: bytes, message_type: str) -> Any:
    """A message of one of the types of :data:`STORE`.

    Raises:
        ValueError: the bytes are no such message.
    """
    try:
        return STORE.deserialize_cdr(data, message_type)
    except Exception as error:  # bytes that are no message raise whatever the parser raises
        raise ValueError(f"its bytes are no {message_type} ({error})") from error


def image_bytes(header: Any, pixels: np.ndarray, encoding: str) -> bytes:
    """CDR bytes of a ``sensor_msgs/Image``; pixels as for :func:`.encode_rows`."""
    rows = encode_rows(pixels, encoding)
    fields = (*pixels.shape[:2], encoding, 0, rows.shape[1], rows.reshape(-1))
    return message_bytes(STORE.types[IMAGE_TYPE](header, *fields))


def compressed_bytes(header: Any, pixels: np.ndarray, encoding: str) -> bytes:
    """CDR bytes of a ``sensor_msgs/CompressedImage``; pixels as for :func:`.compress`."""
    form, data = compress(pixels, encoding)
    fields = (header, form, np.frombuffer(data, np.uint8))
    return message_bytes(STORE.types[COMPRESSED_TYPE](*fields))


def message_bytes(message: Any) -> bytes:
    """CDR bytes of a message of one of the types of :data:`STORE`."""
    return bytes(STORE.serialize_cdr(message, message.__msgtype__))


def stamp_of(data: bytes) -> int:
    """Header stamp in nanoseconds of the CDR bytes of any message that begins with a header.

    Raises:
        ValueError: there are too few bytes for a stamp.
    """
    if len(data) < 12:
        raise ValueError(f"{len(data)} bytes are too few for a message with a header")
    seconds, nanoseconds = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
    return seconds * 1_000_000_000 + nanoseconds


def ros_topic(name: str, message_type: str, like: Topic | None = None) -> Topic:
    """A topic to write, of one of the types of :data:`STORE`, with the QoS of ``like``."""
    metadata = () if like is None else tuple(pair for pair in like.metadata if pair[0] == QOS)
    return Topic(name, message_type, metadata=metadata)
