"""What is evaluated: frames of image folders, of recordings, and of the held-out sets."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from difiisr_training.data.bag_frames import find_recordings, find_topic, messages, parse
from difiisr_training.data.images import list_images, read_counts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selection:
    """Which frames of a set are used; applied in the order of the fields.

    Attributes:
        every: the first of each so many.
        last: only so many at the end; 0 = all.
        limit: at most so many; ``None`` = all.
        spread: the limit takes frames evenly spaced over the set, else the first ones: neighbours
            in time, which flicker needs.
    """

    every: int = 1
    last: int = 0
    limit: int | None = None
    spread: bool = True

    def __post_init__(self) -> None:
        if self.every < 1 or self.last < 0 or (self.limit is not None and self.limit < 1):
            raise ValueError(
                "every and limit must be 1 or more and last 0 or more, got "
                f"{self.every}, {self.limit} and {self.last}"
            )

    def choose(self, count: int) -> list[int]:
        """Indices of the chosen frames among ``count``, ascending."""
        chosen = list(range(0, count, self.every))[-self.last :]
        if self.limit is None or self.limit >= len(chosen):
            return chosen
        if not self.spread:
            return chosen[: self.limit]
        places = np.linspace(0, len(chosen) - 1, self.limit).round().astype(int)
        return [chosen[i] for i in places]


@dataclass(frozen=True)
class InputSet:
    """Frames that belong together: one folder of images, or one topic of one recording.

    Attributes:
        name: in tables.
        path: the folder or recording.
        kind: what it is.
        topic: image topic of a recording.
        last: the set is only so many images at the end of the folder; 0 = all.
        selection: which of its frames.
    """

    name: str
    path: Path
    kind: Literal["images", "bag"]
    topic: str | None = None
    last: int = 0
    selection: Selection = Selection()

    def frames(self) -> Iterator[tuple[str, np.ndarray]]:
        """Names and ``(H, W)`` uint8, uint16 or float32 counts, in order.

        Images are named by their path below the folder, without suffix; messages by their number.
        Damaged messages and float frames with NaN or infinity are left out and named in the log.

        Raises:
            FileNotFoundError: the folder holds no image.
            OSError: an image is damaged.
            ValueError: two images have one name.
        """
        for name, counts in self._images() if self.kind == "images" else self._messages():
            if counts.dtype.kind == "f" and not np.isfinite(counts).all():
                log.warning("left out frame %s of %s: it holds NaN or infinity", name, self.path)
            else:
                yield name, counts

    def _images(self) -> Iterator[tuple[str, np.ndarray]]:
        paths = list_images(self.path)[-self.last :]
        named = name_images(paths, self.path)
        for index in self.selection.choose(len(paths)):
            yield named[index], read_counts(paths[index])

    def _messages(self) -> Iterator[tuple[str, np.ndarray]]:
        count = sum(1 for _ in messages(self.path, self.topic, []))
        chosen = set(self.selection.choose(count))
        for number, raw in messages(self.path, self.topic, []):
            if number not in chosen:
                continue
            try:
                yield f"{number:06}", parse(raw)
            except Exception as error:  # damaged bytes raise whatever their parser raises
                log.warning("left out message %d of %s: %s", number, self.path, error)


HELD_OUT = (
    InputSet("hit_uav/test", Path("hit_uav/test"), "images"),
    InputSet("msrs/test", Path("msrs/test"), "images"),
    InputSet("roadscene/last20", Path("roadscene/train"), "images", last=20),
)
"""Images that the shipped models never saw; paths relative to the root of the data."""


def resolve_inputs(
    given: Iterable[str], data: Path | None, topic: str | None, selection: Selection
) -> list[InputSet]:
    """The sets that a command line names.

    Args:
        given: folders of images, recordings (mcap, sqlite3), folders of recordings; or names of
            :data:`HELD_OUT` or folders below ``data``.
        data: root of the sets' folders.
        topic: image topic of the recordings.
        selection: of the frames of each set.

    Raises:
        FileNotFoundError: there is no such file, folder or set.
        ValueError: two sets have one name, or a recording has no such topic or several.
    """
    found: list[InputSet] = []
    for name in given:
        found += _resolve(name, data, topic, selection)
    names = [chosen.name for chosen in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two inputs are called {', '.join(twice)}; give each once")
    return found


def _resolve(
    name: str, data: Path | None, topic: str | None, selection: Selection
) -> list[InputSet]:
    path = Path(name)
    if not path.exists():
        held_out = next((chosen for chosen in HELD_OUT if chosen.name == name), None)
        if data is None:
            raise FileNotFoundError(
                f"{name}: no such file or folder; the name of a set needs their root, --data"
            )
        if held_out:
            return [replace(held_out, path=data / held_out.path, selection=selection)]
        path = data / name
    if not path.exists():
        raise FileNotFoundError(f"{name}: neither a file or folder nor a set below {data}")
    if path.is_file() and not find_recordings(path):
        raise ValueError(f"{name}: a single file must be a recording (.mcap or .db3)")
    recordings = find_recordings(path)
    if not recordings:
        return [InputSet(name, path, "images", selection=selection)]
    return [
        InputSet(
            name if len(recordings) == 1 else f"{name}/{one.relative_to(path).as_posix()}",
            one,
            "bag",
            find_topic(one, topic),
            selection=selection,
        )
        for one in recordings
    ]


def name_images(paths: Sequence[Path], folder: Path) -> list[str]:
    """Name of the frame that each image holds: its path below ``folder`` without suffix.

    Raises:
        ValueError: two images differ in their suffix alone.
    """
    names = ["__".join(path.relative_to(folder).with_suffix("").parts) for path in paths]
    seen: dict[str, Path] = {}
    for name, path in zip(names, paths, strict=True):
        if name in seen:
            raise ValueError(f"{seen[name]} and {path} have one name; keep one of them")
        seen[name] = path
    return names


def hash_frame(digest: hashlib._Hash, name: str, counts: np.ndarray) -> None:
    """Feed a frame to a hash: name, dtype, shape and pixels."""
    digest.update(f"{name}\n{counts.dtype.name} {counts.shape}\n".encode())
    digest.update(np.ascontiguousarray(counts).data)
