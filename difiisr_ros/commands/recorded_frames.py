"""Reads a recording of a camera and its results, and compares their pixels frame by frame."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from difiisr_models import Camera, Stream, Upscaler
from difiisr_models.resample import SCALE
from difiisr_ros import bags
from difiisr_ros.bags import Bag, CameraFrame, Message
from difiisr_ros.image_codec import result_encoding
from difiisr_training.evaluation.metrics import consistency

NODE_STATUS = "super-resolution"  # in the name of the node's own diagnostic status

_PARSED = (bags.CAMERA_INFO_TYPE, bags.DIAGNOSTICS_TYPE)  # of all others the times are enough
_TIMES = {"stamp": np.int64, "logged": np.int64}
_PIXEL_COLUMNS = {
    "consistency_mean": "Float64",
    "consistency_max": "Float64",
    "exact": "boolean",
    "difference_mean": "Float64",
    "difference_max": "Float64",
    "faults": "object",
}


@dataclass(frozen=True)
class Recording:
    """All that is read of a recording.

    Attributes:
        bag: holds the results.
        camera_bag: holds the camera; ``None``: ``bag`` does, and log times of both compare.
        topics: names of ``image``, ``sr``, ``image_info`` and ``sr_info``; ``None`` where the
            recording has none of that kind.
        tables: of each kind, its messages in recorded order: ``stamp`` and ``logged``, int64 ns,
            and, of camera_info, the messages themselves in ``content``.
        node: the node's own last diagnostics, if recorded.
        frames: a line for each camera frame and each result without, by ``stamp``;
            ``camera_logged`` and ``sr_logged``: log time of the first message with that stamp, ns;
            ``consistency_mean`` and ``consistency_max``: of |D(SR) - LR|, counts;
            ``exact``: whether the result has the very pixels of the offline run;
            ``difference_mean`` and ``difference_max``: of |SR - offline SR|, counts;
            ``faults``: words, of size, encoding, frame_id, unreadable.
            What was not measured is missing.
        offline: the run that the results were compared with; ``None``: none was made.
        fault: what is wrong with the recording, or "".
        camera: as the node had it.
    """

    bag: Path
    camera_bag: Path | None
    topics: dict[str, str | None]
    tables: dict[str, pd.DataFrame]
    node: dict[str, str]
    frames: pd.DataFrame
    offline: OfflineRun | None
    fault: str
    camera: Camera


def read_recording(
    bag: Path,
    camera_bag: Path | None = None,
    topics: tuple[str | None, str | None] = (None, None),
    upscaler: Upscaler | None = None,
    camera: Camera = Camera(),
) -> Recording:
    """Read times and small messages in one go, then the images, of which few are kept at a time.

    A terminal shows a progress bar. ``topics``: of camera and results; ``None``: chosen by name and
    type. ``upscaler``: of the offline run; ``None``: none is made.

    Raises:
        FileNotFoundError: there is no recording.
        ValueError: a topic is not there or not clear, or no result is readable.
    """
    run = None if upscaler is None else OfflineRun(upscaler, camera)
    with (
        bags.open_bag(bag) as results,
        bags.open_bag(camera_bag or bag) as cameras,
    ):  # both read at a time
        names = _choose_topics(cameras, results, *topics)
        if names["image"] == names["sr"] and camera_bag is None:
            raise ValueError(f"{names['sr']} cannot be the camera's topic and the result's")
        said = bags.topics_of(results, bags.DIAGNOSTICS_TYPE)
        made, damaged = _read_messages(results, [names["sr"], names["sr_info"], *said])
        seen, unseen = _read_messages(cameras, [names["image"], names["image_info"]])
        tables = {
            kind: table[table.topic == names[kind]]
            for table, kinds in ((made, ("sr", "sr_info")), (seen, ("image", "image_info")))
            for kind in kinds
        }
        if tables["sr"].empty:
            raise ValueError(f"no readable message on {names['sr']} in {bag}")
        given, answers = _stamped(cameras, names["image"]), _stamped(results, names["sr"])
        answers = tqdm(answers, total=len(tables["sr"]), unit="frame", disable=None)
        frames = _frame_table(tables, _compared(_matched(given, answers, tables), run, camera))
        broken = [results.fault, cameras.fault, *damaged, *unseen]
    statuses = (s for array in made.content[made.topic.isin(said)] for s in array.status)
    node = {p.key: p.value for s in statuses if NODE_STATUS in s.name for p in s.values}
    fault = "; ".join(dict.fromkeys(filter(None, broken)))
    return Recording(bag, camera_bag, names, tables, node, frames, run, fault, camera)


def _choose_topics(
    cameras: Bag, results: Bag, image: str | None, sr: str | None
) -> dict[str, str | None]:
    """``Recording.topics``: those given, the others by name and type."""
    made, seen = bags.image_topics(results), bags.image_topics(cameras)
    likely = [name for name in made if bags.raw_topic(name).endswith(("/sr", "/sr/image_raw"))]
    camera = [name for name in seen if name not in likely]
    sr = _choose("--sr-topic", sr, likely, made, "`difiisr replay` makes results")
    image = _choose("--topic", image, camera, seen, "--camera-bag may give the camera's recording")
    info, info_of_result = (
        topic if topic in bags.topics_of(bag, bags.CAMERA_INFO_TYPE) else None
        for bag, topic in (
            (cameras, bags.info_topic_beside(image)),
            (results, f"{bags.raw_topic(sr).removesuffix('/image_raw')}/camera_info"),
        )
    )
    return {"sr": sr, "sr_info": info_of_result, "image": image, "image_info": info}


def _choose(option: str, wanted: str | None, likely: list[str], known: list[str], hint: str) -> str:
    listed = f"{option}; there are: {', '.join(known) or 'none'}; {hint}"
    if wanted is None and len(likely) != 1:
        raise ValueError(f"say which topic with {listed}")
    if wanted is not None and wanted not in known:
        raise ValueError(f"no topic {wanted!r} for {listed}")
    return wanted or likely[0]


def _read_messages(bag: Bag, topics: list[str | None]) -> tuple[pd.DataFrame, list[str]]:
    """The messages by ``topic``, ``stamp``, ``logged`` and ``content``; and which are damaged."""
    rows, faults, number = [], [], Counter[str]()
    for message in bag.messages(list(filter(None, topics))):
        name, kind = message.topic.name, message.topic.type
        try:
            stamp = bags.stamp_of(message.data)
            parsed = bags.parse_message(message.data, kind) if kind in _PARSED else None
            rows.append((name, stamp, message.time, parsed))
        except ValueError as error:
            faults.append(f"message {number[name]} of {name}: {error}")
        number[name] += 1
    return pd.DataFrame(rows, columns=["topic", *_TIMES, "content"]).astype(_TIMES), faults


def _stamped(bag: Bag, topic: str | None) -> Iterator[tuple[int, Message]]:
    for message in bag.messages([topic] if topic else []):
        with suppress(ValueError):  # without a stamp: noted when times were read
            yield bags.stamp_of(message.data), message


def _matched(
    frames: Iterator[tuple[int, Message]],
    results: Iterable[tuple[int, Message]],
    tables: dict[str, pd.DataFrame],
) -> Iterator[tuple[int, Message | None, Message | None]]:
    """Each result, in recorded order, with the frame of its stamp; frames without come between.

    Kept in memory are only frames that wait for a result; for that, all stamps are known before.
    """
    there, wanted = set(tables["image"].stamp), Counter(tables["sr"].stamp)
    waiting: dict[int, Message] = {}
    for stamp, result in results:
        while stamp in there and stamp not in waiting and (given := next(frames, None)):
            if wanted[given[0]]:
                waiting.setdefault(*given)
            else:
                yield *given, None
        wanted[stamp] -= 1
        frame = waiting.get(stamp) if wanted[stamp] else waiting.pop(stamp, None)
        yield stamp, frame, result


class OfflineRun:
    """The stream of a node, computed again from what was recorded of it.

    The result of a node depends on the frames that it processed before, through the tracked range.
    Of a frame that has a result, one knows that it was processed, and when: one worker takes the
    frames in the order of their results. A frame without may have been dropped as stale, and then
    left no trace, or its result was lost on the way to the recorder. Both are tried at the next
    result, and what explains its pixels is kept.

    Attributes:
        upscaler: what runs.
        lost: frames without a result that were processed, as the results after them show.
    """

    def __init__(self, upscaler: Upscaler, camera: Camera) -> None:
        self.upscaler, self.lost = upscaler, 0
        self._stream = Stream(camera.no_data_values, camera.max_pause)
        self._if_processed: Stream | None = None
        self._skipped = 0

    def skip(self, frame: CameraFrame, stamp_ns: int) -> None:
        """Take in a frame without a result."""
        if self._if_processed is None:
            self._if_processed = copy.deepcopy(self._stream)
        self.upscaler.skip(frame.shown_to(self._if_processed), self._if_processed, stamp_ns)
        self._skipped += 1

    def expect(self, frame: CameraFrame, recorded: Any, stamp_ns: int) -> np.ndarray:
        """What the node should have made of a frame, given what it made (``None``: not known)."""
        expected = self.upscaler(frame.shown_to(self._stream), self._stream, stamp_ns)
        doubtful = None if recorded is None else self._if_processed
        if doubtful is not None and not np.array_equal(recorded, expected, equal_nan=True):
            other = self.upscaler(frame.shown_to(doubtful), doubtful, stamp_ns)
            if np.array_equal(recorded, other, equal_nan=True):
                expected, self._stream = other, doubtful
                self.lost += self._skipped
        self._if_processed, self._skipped = None, 0
        return expected


def _compared(
    pairs: Iterable[tuple[int, Message | None, Message | None]],
    offline: OfflineRun | None,
    camera: Camera,
) -> dict[int, dict[str, Any]]:
    """Stamp -> what the pixels of its first result say, of :data:`_PIXEL_COLUMNS`."""
    compared: dict[int, dict[str, Any]] = {}
    for stamp, frame, result in pairs:
        given, answer = _readable(frame, camera), _readable(result, Camera())
        if result is None:
            if given and offline:  # what is no frame, the node did not process
                offline.skip(given, stamp)
            continue
        found: dict[str, Any] = {"faults": "unreadable"} if frame else {}
        if given:
            faults = _faults(given, answer) if answer else ["unreadable"]
            sr = answer.pixels if answer and not {"size", "encoding"} & set(faults) else None
            expected = offline.expect(given, sr, stamp) if offline else None
            found = {"faults": " ".join(faults)}
            if sr is not None:
                found |= _apart(given.pixels, sr) | _differences(sr, expected)
        compared.setdefault(stamp, found)
    return compared


def _readable(message: Message | None, camera: Camera) -> CameraFrame | None:
    """A ``sensor_msgs/Image``; ``None``: it is not there, or not readable."""
    if message is not None:
        with suppress(ValueError):
            return bags.read_frame(message, camera)
    return None


def _faults(given: CameraFrame, answer: CameraFrame) -> list[str]:
    """What is not as due of a result, in words."""
    image, due = answer.image, tuple(SCALE * side for side in given.pixels.shape[:2])
    right = {
        "size": answer.pixels.shape[:2] == due,
        "encoding": image.encoding == result_encoding(given.image.encoding, given.pixels),
        "frame_id": image.header.frame_id == given.image.header.frame_id,
    }
    return [name for name in right if not right[name]]


def _apart(lr: np.ndarray, sr: np.ndarray) -> dict[str, float]:
    """How far the result, scaled down, is from the frame."""
    channels = zip(*(np.moveaxis(np.atleast_3d(pixels), -1, 0) for pixels in (sr, lr)), strict=True)
    apart = np.stack([consistency(above, below) for above, below in channels])
    apart = apart[np.isfinite(apart)]
    if not apart.size:
        return {}
    return {"consistency_mean": float(apart.mean()), "consistency_max": float(apart.max())}


def _differences(sr: np.ndarray, expected: np.ndarray | None) -> dict[str, Any]:
    """How far the result is from that of the offline run, if there is one."""
    if expected is None:
        return {}
    equal = (sr == expected) | (np.isnan(sr) & np.isnan(expected))
    difference = np.abs(sr.astype(np.float64) - expected)[~equal]
    difference = difference[np.isfinite(difference)]
    return {
        "exact": bool(equal.all()),
        "difference_mean": float(difference.sum() / equal.size),
        "difference_max": float(difference.max(initial=0.0)),
    }


def _frame_table(tables: dict[str, pd.DataFrame], compared: dict[int, dict]) -> pd.DataFrame:
    """``Recording.frames`` of the messages' times and of :func:`_compared`."""
    logged = {
        f"{column}_logged": tables[kind].drop_duplicates("stamp").set_index("stamp").logged
        for column, kind in (("camera", "image"), ("sr", "sr"))
    }
    frames = pd.DataFrame({name: times.astype("Int64") for name, times in logged.items()})
    pixels = pd.DataFrame.from_dict(compared, orient="index", columns=[*_PIXEL_COLUMNS])
    return frames.join(pixels.astype(_PIXEL_COLUMNS)).fillna({"faults": ""}).rename_axis("stamp")
