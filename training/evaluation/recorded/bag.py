"""What a robot recorded: a camera topic and the super-resolved topic that a node made of it.

Read with rosbags, without ROS and without the definitions of other message types: of any message
that begins with a header, the stamp is read from its bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

from difiisr_models import image_encoding
from difiisr_models.message_header import stamp_of
from difiisr_training.data.bag_frames import unread_logs

IMAGE_TYPE = "sensor_msgs/msg/Image"
CAMERA_INFO_TYPE = "sensor_msgs/msg/CameraInfo"
DIAGNOSTICS_TYPE = "diagnostic_msgs/msg/DiagnosticArray"
DETECTIONS_TYPE = "vision_msgs/msg/Detection2DArray"
NODE_STATUS = "super-resolution"  # in the name of the node's own diagnostic status

_STORE = get_typestore(Stores.ROS2_KILTED)


class RecordedMessage(NamedTuple):
    """A message as it lies in the recording; both times in nanoseconds."""

    stamp: int
    logged: int
    raw: bytes


class Times(NamedTuple):
    """Header stamps and log times of a topic, ``(n,)`` int64 ns each, in recorded order."""

    stamps: np.ndarray
    logged: np.ndarray


@dataclass(frozen=True)
class RecordedTopics:
    """The topics to compare; ``None`` where the recording has none of that kind."""

    image: str
    sr: str
    image_info: str | None
    sr_info: str | None
    detections: str | None


class RecordedBag:
    """A rosbag2 folder or storage file, opened for reading; use it as a context manager.

    ``faults`` says what is wrong with the recording; reading messages may add to it.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: what is there is no recording, or one without its end.
    """

    def __init__(self, path: Path) -> None:
        self.faults: list[str] = []
        try:
            self._reader = Reader(path)
            self._reader.open()
        except FileNotFoundError:
            raise
        except Exception as error:  # damaged files raise whatever their parser raises
            raise ValueError(
                f"{path} cannot be opened as a recording ({error}); if it lacks its end, repair it "
                "first with `mcap recover` or `ros2 bag reindex`"
            ) from error
        self.faults += unread_logs(path)
        self.connections: list[Connection] = list(self._reader.connections)

    def messages(self, topic: str | None) -> Iterator[RecordedMessage]:
        """Messages of one topic, in recorded order, as far as they are readable."""
        return (message for _, message in self._numbered(topic))

    def parsed(self, topic: str | None, message_type: str) -> Iterator[tuple[RecordedMessage, Any]]:
        """Messages of one topic with their content; damaged ones are noted and left out."""
        for number, message in self._numbered(topic):
            try:
                content = _parse(message.raw, message_type)
            except ValueError as error:
                self._note(f"message {number} of {topic}: {error}")
                continue
            yield message, content

    def _numbered(self, topic: str | None) -> Iterator[tuple[int, RecordedMessage]]:
        wanted = [c for c in self.connections if c.topic == topic]
        if not wanted:
            return
        number = -1
        try:
            for number, (_, logged, raw) in enumerate(self._reader.messages(wanted)):
                try:
                    stamp = stamp_of(raw)
                except ValueError as error:
                    self._note(f"message {number} of {topic}: {error}")
                    continue
                yield number, RecordedMessage(stamp, logged, raw)
        except Exception as error:  # as above
            self._note(f"{topic} is unreadable after message {number}: {error}")

    def times(self, topic: str | None) -> Times:
        """Stamps and log times of one topic; empty for ``None``."""
        pairs = [(message.stamp, message.logged) for message in self.messages(topic)]
        return Times(*np.array(pairs, np.int64).reshape(-1, 2).T)

    def node_status(self) -> dict[str, str]:
        """What the node said about itself last, if its /diagnostics were recorded; else empty."""
        values: dict[str, str] = {}
        for connection in self.connections:
            if connection.msgtype == DIAGNOSTICS_TYPE:
                for _, array in self.parsed(connection.topic, DIAGNOSTICS_TYPE):
                    for status in array.status:
                        if NODE_STATUS in status.name:
                            values |= {pair.key: pair.value for pair in status.values}
        return values

    def _note(self, fault: str) -> None:
        if fault not in self.faults:  # topics are read more than once
            self.faults.append(fault)

    def __enter__(self) -> RecordedBag:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._reader.close()


def parse_image(raw: bytes) -> tuple[Any, np.ndarray]:
    """A ``sensor_msgs/Image`` and its pixels, ``(H, W)`` or ``(H, W, 3)``.

    Raises:
        ValueError: bytes that are no such message, or fields that contradict each other.
    """
    message = _parse(raw, IMAGE_TYPE)
    return message, image_encoding.image_to_array(message)


def _parse(raw: bytes, message_type: str) -> Any:
    try:
        return _STORE.deserialize_cdr(raw, message_type)
    except Exception as error:  # bytes that are no message raise whatever the parser raises
        raise ValueError(f"its bytes are no {message_type} ({error})") from error


def choose_topics(
    camera: Collection[Connection],
    results: Collection[Connection],
    image: str | None,
    sr: str | None,
    detections: str | None,
) -> RecordedTopics:
    """Settle the topics: those given, the others by name and type.

    Args:
        camera: connections of the recording that holds the camera.
        results: connections of the recording that holds the results, often the same.
        image: camera topic; by default the only image topic that is no result.
        sr: result topic; by default the only one named ``.../sr`` or ``.../sr/image_raw``.
        detections: any topic with a header; by default the only Detection2DArray topic.

    Raises:
        ValueError: no such topic, or no single one to choose; the text lists those there are.
    """
    result_images = _topics(results, IMAGE_TYPE)
    likely = [t for t in result_images if t.endswith(("/sr", "/sr/image_raw"))]
    if sr is None and not likely:
        listed = ", ".join(result_images) or "none"
        raise ValueError(
            "no topic named .../sr or .../sr/image_raw is recorded (image topics: "
            f"{listed}): name the results with --sr-topic, or make some with `difiisr replay`"
        )
    sr = _choose("--sr-topic", sr, likely, result_images)
    camera_images = _topics(camera, IMAGE_TYPE)
    if image is None and set(camera_images) <= set(likely):
        raise ValueError(
            f"no camera's topic is recorded, only {', '.join(camera_images) or 'none'}: give the "
            "recording that holds it with --camera-bag"
        )
    image = _choose("--topic", image, [t for t in camera_images if t not in likely], camera_images)
    if image == sr and camera is results:
        raise ValueError(f"{sr} cannot be the camera's topic and the result's")
    every = sorted({c.topic for c in results})
    found = _topics(results, DETECTIONS_TYPE)
    if detections is not None or len(found) > 1:
        detections = _choose("--detections-topic", detections, found, every)
    infos = _topics(camera, CAMERA_INFO_TYPE)
    beside = f"{image.rpartition('/')[0]}/camera_info"
    of_sr = f"{sr.removesuffix('/image_raw')}/camera_info"
    return RecordedTopics(
        image=image,
        sr=sr,
        image_info=beside if beside in infos else None,
        sr_info=of_sr if of_sr in _topics(results, CAMERA_INFO_TYPE) else None,
        detections=detections or (found[0] if found else None),
    )


def match_frames(
    frames: Iterable[RecordedMessage],
    results: Iterable[RecordedMessage],
    frame_stamps: np.ndarray,
    result_stamps: np.ndarray,
) -> Iterator[tuple[RecordedMessage | None, RecordedMessage | None]]:
    """Yield each result, in recorded order, with the camera frame of its stamp (``None``: none).

    Frames without a result come between, with ``None`` in its place, as far as there are results
    after them. Only frames that still wait for a result are kept in memory.

    Args:
        frames: messages of the camera.
        results: messages of the super-resolved topic.
        frame_stamps: stamps of ``frames``, ``(n,)`` int64, read beforehand.
        result_stamps: stamps of ``results``, likewise.
    """
    frames = iter(frames)
    there = set(frame_stamps.tolist())
    wanted = Counter(result_stamps.tolist())
    waiting: dict[int, RecordedMessage] = {}
    for result in results:
        while result.stamp in there and result.stamp not in waiting:
            frame = next(frames, None)
            if frame is None:
                break
            if wanted[frame.stamp]:
                waiting.setdefault(frame.stamp, frame)
            else:
                yield frame, None
        wanted[result.stamp] -= 1
        frame = waiting.get(result.stamp)
        if not wanted[result.stamp]:
            waiting.pop(result.stamp, None)
        yield frame, result


def _topics(connections: Collection[Connection], message_type: str) -> list[str]:
    return sorted({c.topic for c in connections if c.msgtype == message_type})


def _choose(option: str, wanted: str | None, likely: list[str], known: list[str]) -> str:
    listed = ", ".join(known) or "none"
    if wanted is None and len(likely) != 1:
        raise ValueError(f"say which topic with {option}; the recording has: {listed}")
    if wanted is not None and wanted not in known:
        raise ValueError(f"the recording has no topic {wanted!r} for {option}; it has: {listed}")
    return wanted or likely[0]
