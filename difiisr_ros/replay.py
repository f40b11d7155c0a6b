"""Offline replay: every frame of a rosbag2 super-resolved in order, without ROS.

All messages of the recording are copied byte for byte with their times; each result stands right
behind the frame it was made from, at the same time. The same bag, model and machine give the same
bytes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from difiisr_models.settings import Camera
from difiisr_models.stream import Stream, StreamEvents
from difiisr_ros import bags
from difiisr_ros.bag_writing import Version, write_bag
from difiisr_ros.camera_info import camera_info_of_result, info_finder
from difiisr_ros.image_codec import FALSE_COLOUR, is_false_colour, result_encoding

_RECALLED = 30  # frames: what a recurrent model remembers of older ones is faint


@dataclass(frozen=True)
class ReplayOptions:
    """What of a recording is super-resolved, and what is written.

    Attributes:
        image_topic: default: the only image topic.
        camera_info_topic: default: beside the image topic.
        sr_topic: topic of the results, camera_info below it; default: sr beside the image topic.
        only_sr: do not copy the other topics.
        compressed: write results as PNG, on "compressed" below their topic.
        force: replace an existing OUT_BAG.
        rosbag2_version: of OUT_BAG: 8 for Humble to Lyrical, 9 for Jazzy to Lyrical.
    """

    image_topic: str | None = None
    camera_info_topic: str | None = None
    sr_topic: str | None = None
    only_sr: bool = False
    compressed: bool = False
    force: bool = False
    rosbag2_version: Version = 8


@dataclass
class ReplayReport:
    """What a replay did.

    Attributes:
        image_topic, sr_topic: the topics of the frames and of the results.
        frames_in, frames_out: frames that were read, results that were written.
        malformed: of each frame that was refused, which and why.
        warnings: what else the user should know.
        latencies: seconds, one for each frame out.
        faults: what is wrong with the recording, and what of it is lost.
        repeated: frames that are the one before them, which ``on_repeat`` says to drop.
        events: what happened in the stream, in words.
    """

    image_topic: str
    sr_topic: str
    frames_in: int = 0
    frames_out: int = 0
    malformed: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    repeated: int = 0
    events: str = "none"


def replay(
    source: Path,
    target: Path,
    upscaler: Any,
    options: ReplayOptions = ReplayOptions(),
    *,
    first: int = 0,
    frames: int | None = None,
    warm_up: int | None = None,
    camera: Camera = Camera(),
    stream: Stream | None = None,
    **fields: Any,
) -> ReplayReport:
    """Write to ``target`` the recording ``source`` with a super-resolved topic added.

    A terminal shows a progress bar.

    Args:
        source: rosbag2 folder or one of its storage files (mcap, sqlite3).
        target: folder to make; it appears when it is complete, an MCAP recording.
        upscaler: what ``load_upscaler`` returned; its own stream is not touched.
        options: what is written.
        first: the frame to begin with; what was recorded before it is left out.
        frames: stop after this many frames; None for all.
        warm_up: how many frames before ``first`` the stream sees; None for all, which makes the
            results those of the whole recording to the bit. A recurrent model computes the last 30
            of them, and its results are near those of the whole.
        camera: what is to be known of it.
        stream: a new one to use, which then says what was seen.
        fields: of the options, over what these say: ``only_sr=True``.

    Raises:
        FileExistsError: ``target`` exists and ``force`` is not set, or it touches ``source``.
        FileNotFoundError: there is no ``source``.
        BagError: nothing in ``source`` is readable.
        TopicError: a topic is missing in the recording, or a result topic is already in it.
    """
    options = replace(options, **fields)
    here, there = source.resolve(), target.resolve()
    if here == there or there in here.parents or here in there.parents:
        raise FileExistsError(f"the output {target} may not lie in or around the input {source}")
    with ExitStack() as stack:
        bag = stack.enter_context(bags.open_bag(source))
        image_topic = bags.choose_image_topic(bag, options.image_topic)
        info_topic = bags.choose_info_topic(bag, image_topic, options.camera_info_topic)
        info_of = info_finder(_infos(bag, info_topic))
        base = options.sr_topic or f"{bags.raw_topic(image_topic).rpartition('/')[0]}/sr"
        sr_type, to_bytes, below = bags.IMAGE_TYPE, bags.image_bytes, ""
        if options.compressed:
            sr_type, to_bytes = bags.COMPRESSED_TYPE, bags.compressed_bytes
            below = "/compressed"
        report = ReplayReport(image_topic, base + below)
        if info_topic is None:
            beside = bags.info_topic_beside(image_topic)
            report.warnings.append(f"there is no {beside}: the results have no camera_info")
        results = {report.sr_topic, f"{base}/camera_info"}
        if taken := sorted(results & {topic.name for topic in bag.topics}):
            raise bags.TopicError(
                f"the bag already has a topic {taken[0]}; name another result topic"
            )
        writer = stack.enter_context(write_bag(target, options.force, options.rosbag2_version))
        if not options.only_sr:
            writer.custom_data = bag.custom_data
            for topic in bag.topics:
                writer.add(topic)
            for extra in bag.extras():
                writer.write_extra(extra)
        source_topic = next(topic for topic in bag.topics if topic.name == image_topic)
        sr_image = writer.add(bags.ros_topic(report.sr_topic, sr_type, source_topic))
        sr_info = writer.add(
            bags.ros_topic(f"{base}/camera_info", bags.CAMERA_INFO_TYPE, source_topic)
        )
        stream = Stream() if stream is None else stream
        stream.set_camera(camera)
        total = max(0, bag.count(image_topic) - first)
        total = total if frames is None else min(total, frames)
        seen_from = 0 if warm_up is None else first - warm_up
        number = -1  # of the last frame
        bar = stack.enter_context(tqdm(total=total, unit="frame", disable=None))
        for message in bag.messages({image_topic} if options.only_sr else None):
            is_frame = message.topic.name == image_topic
            number += is_frame
            if first > max(number, 0):
                if is_frame and number >= seen_from:
                    computed = upscaler.is_recurrent and number >= first - _RECALLED
                    look = upscaler if computed else upscaler.skip
                    with suppress(ValueError):
                        pixels = bags.read_frame(message, camera).shown_to(stream)
                        look(pixels, stream, bags.stamp_of(message.data))
                    stream.events = StreamEvents()  # what happened before the slice is not its own
                continue
            if is_frame and report.frames_in == frames:
                break
            if not options.only_sr:
                writer.write(message)
            if not is_frame:
                continue
            bar.update()
            started = time.perf_counter()
            report.frames_in += 1
            try:
                frame = bags.read_frame(message, camera)
                image, stamp = frame.image, bags.stamp_of(message.data)
                pixels = upscaler(frame.shown_to(stream), stream, stamp)
                encoding = result_encoding(image.encoding, pixels)
                result = to_bytes(image.header, pixels, encoding)
            except ValueError as error:
                report.malformed.append(f"frame {number} at {message.time} ns: {error}")
                continue
            if stream.is_repeat and camera.on_repeat == "drop":
                report.repeated += 1
                continue
            if not report.frames_out and is_false_colour(image):
                report.warnings.append(FALSE_COLOUR.format(image_topic))
            writer.write(message._replace(topic=sr_image, data=result))
            if info := info_of(stamp, message.time):
                try:
                    rows = camera.telemetry_rows
                    info = camera_info_of_result(info, image, upscaler.scale, frame.crop, rows)
                except ValueError as error:
                    report.warnings = report.warnings or [str(error)]
                else:
                    writer.write(message._replace(topic=sr_info, data=bags.message_bytes(info)))
            report.frames_out += 1
            report.latencies.append(time.perf_counter() - started)
        report.faults = bag.faults
        report.warnings += [f"left out: {what}" for what in bag.left_out]
        if report.faults and not report.frames_in:
            raise bags.BagError(f"no frame of {image_topic} is readable: {bag.fault}")
        report.events = stream.events.text
    return report


def _infos(bag: bags.Bag, topic: str | None) -> Iterator[tuple[int, int, Any]]:
    """Stamp, time and message of each readable camera_info."""
    for message in bag.messages({topic}) if topic else ():
        with suppress(ValueError):
            info = bags.parse_message(message.data, bags.CAMERA_INFO_TYPE)
            yield bags.stamp_of(message.data), message.time, info
