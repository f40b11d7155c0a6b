"""Offline replay: every frame of a rosbag2 super-resolved in order, without ROS.

All messages of the recording are copied byte for byte with their timestamps; each result stands
right behind the frame it was made from, at the same time. The same bag, model and machine give
the same bytes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.interfaces import Connection
from rosbags.rosbag2 import ReaderError, Writer
from tqdm import tqdm

from difiisr_ros.bag_reader import (
    CAMERA_INFO_TYPE,
    IMAGE_TYPE,
    BagReader,
    choose_image_topic,
    choose_info_topic,
    stamp_of,
)
from difiisr_ros.bag_writer import STORE, copy_connections, image_bytes, write_bag
from difiisr_ros.camera_info import described_size, matches, scale_camera_info
from difiisr_ros.image_codec import image_to_array
from difiisr_ros.image_stream import ImageStream


@dataclass(frozen=True)
class ReplayTopics:
    """What is read and written; ``info`` is None where the image has no camera_info."""

    image: str
    info: str | None
    sr_image: str
    sr_info: str


@dataclass
class ReplayReport:
    """What a replay did; ``fault`` says what was wrong with the recording ("" if nothing)."""

    topics: ReplayTopics
    frames_in: int = 0
    frames_out: int = 0
    malformed: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)  # seconds, one for each frame out
    fault: str = ""


def sr_topics(image_topic: str) -> tuple[str, str]:
    """Result topics: /thermal/image_raw -> (/thermal/sr, /thermal/sr/camera_info)."""
    parent = image_topic.rpartition("/")[0]
    return f"{parent}/sr", f"{parent}/sr/camera_info"


def choose_topics(
    connections: list[Connection], image: str | None, info: str | None, sr: str | None
) -> ReplayTopics:
    """Settle the topics: those given, the others by ROS's naming habits.

    Raises:
        ValueError: a topic is missing in the recording, or a result topic is already in it.
    """
    image = choose_image_topic(connections, image)
    info = choose_info_topic(connections, image, info)
    sr_image, sr_info = (sr, f"{sr}/camera_info") if sr else sr_topics(image)
    for topic in sorted({c.topic for c in connections} & {sr_image, sr_info}):
        raise ValueError(f"the bag already has a topic {topic}; name another result topic")
    return ReplayTopics(image, info, sr_image, sr_info)


def replay(
    source: Path,
    target: Path,
    upscaler: Any,
    *,
    image_topic: str | None = None,
    info_topic: str | None = None,
    sr_topic: str | None = None,
    only_sr: bool = False,
    force: bool = False,
    frames: int | None = None,
) -> ReplayReport:
    """Write to ``target`` the recording ``source`` with a super-resolved topic added.

    A terminal shows a progress bar.

    Args:
        source: rosbag2 folder or one of its storage files (mcap, sqlite3).
        target: folder to make; it appears when it is complete, in the storage format of ``source``.
        upscaler: what ``load_upscaler`` returned; its own tracked range is not touched.
        image_topic: by default the only image topic there is.
        info_topic: by default ``camera_info`` beside the image topic, if it is there.
        sr_topic: by default ``sr`` beside the image topic; camera_info is written below it.
        only_sr: leave out the recording's own topics.
        force: replace an existing recording at ``target``.
        frames: stop after this many frames; None for all.

    Returns:
        Counts, refused frames, latencies, and what is wrong with the recording, if anything.

    Raises:
        FileExistsError: ``target`` exists and ``force`` is not set, or it touches ``source``.
        FileNotFoundError: there is no ``source``.
        ReaderError, ValueError: nothing in ``source`` is readable, or a topic does not fit.
    """
    here, there = source.resolve(), target.resolve()
    if here == there or there in here.parents or here in there.parents:
        raise FileExistsError(f"the output {target} may not lie in or around the input {source}")
    with BagReader(source) as bag:
        topics = choose_topics(bag.connections, image_topic, info_topic, sr_topic)
        report = ReplayReport(topics)
        with write_bag(target, bag.storage, force) as writer:
            _replay(bag, writer, upscaler, report, only_sr, frames)
            report.fault = bag.fault
            if report.fault and not report.frames_in:
                raise ReaderError(f"no frame of {topics.image} is readable: {report.fault}")
    return report


def _replay(
    bag: BagReader,
    writer: Writer,
    upscaler: Any,
    report: ReplayReport,
    only_sr: bool,
    frames: int | None,
) -> None:
    topics = report.topics
    infos = _CameraInfos(bag, topics.info, upscaler.scale)
    copies = {} if only_sr else copy_connections(bag.connections, writer)
    qos = next(c.ext.offered_qos_profiles for c in bag.connections if c.topic == topics.image)
    sr_image, sr_info = (
        writer.add_connection(topic, kind, typestore=STORE, offered_qos_profiles=qos)
        for topic, kind in ((topics.sr_image, IMAGE_TYPE), (topics.sr_info, CAMERA_INFO_TYPE))
    )
    stream = ImageStream()
    recorded = sum(c.msgcount for c in bag.connections if c.topic == topics.image)
    total = recorded if frames is None else min(recorded, frames)
    with tqdm(total=total, unit="frame", disable=None) as bar:
        for connection, at, raw in bag.messages({topics.image} if only_sr else None):
            is_frame = connection.topic == topics.image
            if is_frame and report.frames_in == frames:
                break
            if not only_sr:
                writer.write(copies[connection.topic, connection.msgtype], at, raw)
            if not is_frame:
                continue
            report.frames_in += 1
            bar.update()
            started = time.perf_counter()
            try:
                image = _parse_image(raw)
                pixels = stream.upscale(upscaler, image_to_array(image))
            except ValueError as error:
                report.malformed.append(f"frame {report.frames_in - 1} at {at} ns: {error}")
                continue
            writer.write(sr_image, at, image_bytes(image.header, pixels, image.encoding))
            info = infos.scaled_for(image, stamp_of(raw), at, report.warnings)
            if info is not None:
                writer.write(sr_info, at, STORE.serialize_cdr(info, CAMERA_INFO_TYPE))
            report.frames_out += 1
            report.latencies.append(time.perf_counter() - started)


def _parse_image(raw: bytes) -> Any:
    try:
        return STORE.deserialize_cdr(raw, IMAGE_TYPE)
    except Exception as error:  # bytes that are no message raise whatever the parser raises
        raise ValueError(f"its bytes are no {IMAGE_TYPE} ({error})") from error


class _CameraInfos:
    """All camera_info messages of a recording, to find the one that belongs to a frame."""

    def __init__(self, bag: BagReader, topic: str | None, scale: int) -> None:
        self._scale = scale
        self._warned = False
        self._raw: list[bytes] = []
        self._times: list[int] = []
        self._by_stamp: dict[int, int] = {}
        for _, at, raw in bag.messages({topic}) if topic else ():
            try:
                STORE.deserialize_cdr(raw, CAMERA_INFO_TYPE)
            except Exception:  # as in _parse_image
                continue
            self._by_stamp.setdefault(stamp_of(raw), len(self._raw))
            self._raw.append(raw)
            self._times.append(at)

    def scaled_for(self, image: Any, stamp: int, at: int, warnings: list[str]) -> Any | None:
        """Info of the frame's stamp, else the last before it, else the first; scaled."""
        if not self._raw:
            return None
        before = int(np.searchsorted(self._times, at, side="right")) - 1
        index = self._by_stamp.get(stamp, max(before, 0))
        info = STORE.deserialize_cdr(self._raw[index], CAMERA_INFO_TYPE)
        if not matches(info, image):
            if not self._warned:
                self._warned = True
                warnings.append(
                    "camera_info is not used: it describes images of {}x{}, these are {}x{}".format(
                        *described_size(info), image.width, image.height
                    )
                )
            return None
        scaled = scale_camera_info(info, self._scale)
        scaled.header = image.header
        return scaled
