"""Reads a recording of a camera and its results, and compares their pixels frame by frame."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from difiisr_models import Camera, Stream, Upscaler
from difiisr_models.resample import SCALE
from difiisr_ros.bags import (
    CAMERA_INFO_TYPE,
    DIAGNOSTICS_TYPE,
    Bag,
    CameraFrame,
    image_topics,
    info_topic_beside,
    open_bag,
    parse_message,
    raw_topic,
    read_frame,
    stamp_of,
    topics_of,
)
from difiisr_ros.image_codec import result_encoding
from difiisr_training.evaluation.metrics import consistency

NODE_STATUS = "super-resolution"  # in the name of the node's own diagnostic status

_PARSED = (CAMERA_INFO_TYPE, DIAGNOSTICS_TYPE)  # of all others the times are enough
_PIXEL_COLUMNS = {
    "consistency_mean": "Float64",
    "consistency_max": "Float64",
    "exact": "boolean",
    "difference_mean": "Float64",
    "difference_max": "Float64",
    "faults": "object",
}


class RecordedMessage(NamedTuple):
    """Header stamp and log time, ns, and bytes or parsed message; ``None``: times are enough."""

    stamp: int
    logged: int
    content: Any = None


Pair = tuple[RecordedMessage | None, RecordedMessage | None]
"""A camera frame and a result of its stamp; ``None``: there is none."""


@dataclass(frozen=True)
class Recording:
    """All that is read of a recording.

    Attributes:
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
        one_bag: camera and results lie in one recording, so that their log times compare.
        fault: what is wrong with the recording, or "".
        camera: as the node had it.
    """

    topics: dict[str, str | None]
    tables: dict[str, pd.DataFrame]
    node: dict[str, str]
    frames: pd.DataFrame
    offline: OfflineRun | None
    one_bag: bool
    fault: str
    camera: Camera = Camera()


def read_recording(
    bag: Path,
    camera_bag: Path | None,
    topics: tuple[str | None, str | None],
    upscaler: Upscaler | None,
    camera: Camera = Camera(),
) -> Recording:
    """Read times and small messages in one go, then the images, of which few are kept at a time.

    A terminal shows a progress bar. Arguments as of ``recorded.judge_recording``; ``upscaler``: of
    the offline run; ``None``: none is made.

    Raises:
        FileNotFoundError: there is no recording.
        ValueError: a topic is not there or not clear, or no result is readable.
    """
    faults: list[str] = []
    run = None if upscaler is None else OfflineRun(upscaler, camera)
    with open_bag(bag) as results, open_bag(camera_bag or bag) as cameras:  # both read at a time
        names = _choose_topics(cameras, results, *topics)
        if names["image"] == names["sr"] and camera_bag is None:
            raise ValueError(f"{names['sr']} cannot be the camera's topic and the result's")
        said = topics_of(results, DIAGNOSTICS_TYPE)
        of_camera = {kind: names.pop(kind) for kind in ("image", "image_info")}
        made = _read_topics(results, {*names.values(), *said}, faults)
        seen = _read_topics(cameras, {*of_camera.values()}, faults)
        tables = {kind: made[name] for kind, name in names.items()}
        tables |= {kind: seen[name] for kind, name in of_camera.items()}
        if tables["sr"].empty:
            raise ValueError(f"no readable message on {names['sr']} in {bag}")
        given, answers = _images(cameras, of_camera["image"]), _images(results, names["sr"])
        answers = tqdm(answers, total=len(tables["sr"]), unit="frame", disable=None)
        pairs = _match_frames(given, answers, tables)
        frames = _frame_table(tables, _compare_frames(pairs, run, camera))
        broken = [results.fault, cameras.fault, *faults]
    statuses = (s for topic in said for array in made[topic].content for s in array.status)
    return Recording(
        topics=names | of_camera,
        tables=tables,
        node={p.key: p.value for s in statuses if NODE_STATUS in s.name for p in s.values},
        frames=frames,
        offline=run,
        one_bag=camera_bag is None,
        camera=camera,
        fault="; ".join(dict.fromkeys(filter(None, broken))),
    )


def _choose_topics(
    cameras: Bag, results: Bag, image: str | None, sr: str | None
) -> dict[str, str | None]:
    """``Recording.topics``: those given, the others by name and type."""
    made, seen = image_topics(results), image_topics(cameras)
    likely = [name for name in made if raw_topic(name).endswith(("/sr", "/sr/image_raw"))]
    camera = [name for name in seen if name not in likely]
    sr = _choose("--sr-topic", sr, likely, made, "`difiisr replay` makes results")
    image = _choose("--topic", image, camera, seen, "--camera-bag may give the camera's recording")
    names: dict[str, str | None] = {"image": image, "sr": sr}
    for kind, bag, topic in (
        ("image_info", cameras, info_topic_beside(image)),
        ("sr_info", results, f"{raw_topic(sr).removesuffix('/image_raw')}/camera_info"),
    ):
        names[kind] = topic if topic in topics_of(bag, CAMERA_INFO_TYPE) else None
    return names


def _choose(option: str, wanted: str | None, likely: list[str], known: list[str], hint: str) -> str:
    listed = ", ".join(known) or "none"
    if wanted is None and len(likely) != 1:
        raise ValueError(f"say which topic with {option}; there are: {listed}; {hint}")
    if wanted is not None and wanted not in known:
        raise ValueError(f"no topic {wanted!r} for {option}; there are: {listed}; {hint}")
    return wanted or likely[0]


def _read_topics(
    bag: Bag, names: set[str | None], faults: list[str]
) -> dict[str | None, pd.DataFrame]:
    """Topic -> table of its messages; damaged ones are noted in ``faults`` and left out."""
    found: dict[str | None, list[RecordedMessage]] = {name: [] for name in names}
    number: Counter[str] = Counter()
    for message in bag.messages([name for name in names if name]):
        name, kind = message.topic.name, message.topic.type
        try:
            stamp = stamp_of(message.data)
            parsed = parse_message(message.data, kind) if kind in _PARSED else None
            found[name].append(RecordedMessage(stamp, message.time, parsed))
        except ValueError as error:
            faults.append(f"message {number[name]} of {name}: {error}")
        number[name] += 1
    columns, times = RecordedMessage._fields, {"stamp": np.int64, "logged": np.int64}
    return {n: pd.DataFrame(rows, columns=columns).astype(times) for n, rows in found.items()}


def _images(bag: Bag, topic: str | None) -> Iterator[RecordedMessage]:
    for message in bag.messages([topic] if topic else []):
        with suppress(ValueError):  # without a stamp: noted when times were read
            yield RecordedMessage(stamp_of(message.data), message.time, message)


def _match_frames(
    frames: Iterator[RecordedMessage],
    results: Iterable[RecordedMessage],
    tables: dict[str, pd.DataFrame],
) -> Iterator[Pair]:
    """Each result, in recorded order, with the frame of its stamp; frames without come between.

    Kept in memory are only frames that wait for a result; for that, all stamps are known before.
    """
    there, wanted = set(tables["image"].stamp), Counter(tables["sr"].stamp)
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


def _compare_frames(
    pairs: Iterable[Pair], offline: OfflineRun | None, camera: Camera
) -> dict[int, dict[str, Any]]:
    """Stamp -> what the pixels of its first result say, of :data:`_PIXEL_COLUMNS`."""
    compared: dict[int, dict[str, Any]] = {}
    for frame, result in pairs:
        given = _read(frame, camera)
        if result is None:
            if frame and given and offline:  # what is no frame, the node did not process
                offline.skip(given, frame.stamp)
            continue
        found: dict[str, Any] = {}
        if frame and given:
            answer = _read(result)
            faults = _faults(given, answer)
            sr = answer.pixels if answer and not {"size", "encoding"} & set(faults) else None
            expected = None if offline is None else offline.expect(given, sr, frame.stamp)
            found = {"faults": " ".join(faults)} | _differences(given.pixels, sr, expected)
        elif frame:
            found = {"faults": "unreadable"}
        compared.setdefault(result.stamp, found)
    return compared


def _read(message: RecordedMessage | None, camera: Camera = Camera()) -> CameraFrame | None:
    """A ``sensor_msgs/Image``; ``None``: it is not there, or not readable."""
    if message is not None:
        with suppress(ValueError):
            return read_frame(message.content, camera)
    return None


def _faults(given: CameraFrame, answer: CameraFrame | None) -> list[str]:
    """What is not as due of a result, in words."""
    if answer is None:
        return ["unreadable"]
    image, due = answer.image, tuple(SCALE * side for side in given.pixels.shape[:2])
    right = {
        "size": answer.pixels.shape[:2] == due,
        "encoding": image.encoding == result_encoding(given.image.encoding, given.pixels),
        "frame_id": image.header.frame_id == given.image.header.frame_id,
    }
    return [name for name in right if not right[name]]


def _differences(
    lr: np.ndarray, sr: np.ndarray | None, expected: np.ndarray | None
) -> dict[str, Any]:
    if sr is None:
        return {}
    found: dict[str, Any] = {}
    channels = zip(*(np.moveaxis(np.atleast_3d(pixels), -1, 0) for pixels in (sr, lr)), strict=True)
    apart = np.stack([consistency(above, below) for above, below in channels])
    apart = apart[np.isfinite(apart)]
    if apart.size:
        found |= {"consistency_mean": float(apart.mean()), "consistency_max": float(apart.max())}
    if expected is not None:
        equal = (sr == expected) | (np.isnan(sr) & np.isnan(expected))
        difference = np.abs(sr.astype(np.float64) - expected)[~equal]
        difference = difference[np.isfinite(difference)]
        found["exact"] = bool(equal.all())
        found["difference_mean"] = float(difference.sum() / equal.size)
        found["difference_max"] = float(difference.max(initial=0.0))
    return found


def _frame_table(tables: dict[str, pd.DataFrame], compared: dict[int, dict]) -> pd.DataFrame:
    """``Recording.frames`` of the messages' times and of :func:`_compare_frames`."""
    logged = {
        f"{column}_logged": tables[kind].drop_duplicates("stamp").set_index("stamp").logged
        for column, kind in (("camera", "image"), ("sr", "sr"))
    }
    frames = pd.DataFrame({name: times.astype("Int64") for name, times in logged.items()})
    frames = frames.dropna(subset=["camera_logged", "sr_logged"], how="all")
    pixels = pd.DataFrame.from_dict(compared, orient="index", columns=[*_PIXEL_COLUMNS])
    return frames.join(pixels.astype(_PIXEL_COLUMNS)).fillna({"faults": ""}).rename_axis("stamp")
