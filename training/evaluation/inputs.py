"""What is evaluated: named frames of any source, which of them, and low resolution made of them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge
from pydantic.dataclasses import dataclass

from difiisr_models.resample import SCALE
from difiisr_training.data.images import crop_to_multiple, read_counts
from difiisr_training.data.pairing import images_by_name
from difiisr_training.degradations.mix import DegradationConfig, Kind, degrade, pillow_resize
from difiisr_training.degradations.thermal_camera import agc_range

log = logging.getLogger(__name__)

HELD_OUT = {"roadscene/last20": ("roadscene/train", 20)}
"""Sets that the shipped models never saw and that are the end of a folder: how many images."""


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

    every: Annotated[int, Ge(1)] = 1
    last: Annotated[int, Ge(0)] = 0
    limit: Annotated[int, Ge(1)] | None = None
    spread: bool = True

    def choose(self, count: int) -> list[int]:
        """Indices of the chosen frames among ``count``, ascending."""
        chosen = list(range(0, count, self.every))[-self.last :]
        if self.limit is None:
            return chosen
        return evenly(chosen, self.limit) if self.spread else chosen[: self.limit]


@dataclass(frozen=True)
class InputSet:
    """Frames that belong together: one folder of images, or one topic of one recording.

    Attributes:
        name: in tables.
        path: the folder or recording.
        kind: what it is.
        read: gives names and ``(H, W)`` uint8, uint16 or float32 counts, in order, anew each time.
        topic: image topic of a recording.
    """

    name: str
    path: Path
    kind: Literal["images", "bag"]
    read: Callable[[], Iterable[tuple[str, np.ndarray]]]
    topic: str | None = None

    def frames(self) -> Iterator[tuple[str, np.ndarray]]:
        """What ``read`` gives; float frames with NaN or infinity are left out, named in the log."""
        for name, counts in self.read():
            if np.isfinite(counts).all():
                yield name, counts
            else:
                log.warning("left out frame %s of %s: it holds NaN or infinity", name, self.path)


def image_set(name: str, folder: Path, selection: Selection, last: int = 0) -> InputSet:
    """The images in a folder and below; frames are named by their path in it, without suffix.

    ``last``: the set is only so many at the end of the folder; 0 = all. Reading them raises
    FileNotFoundError where there is no image, OSError for a damaged one and ValueError where two
    have one name.
    """

    def read() -> Iterator[tuple[str, np.ndarray]]:
        images = list(images_by_name(folder).items())[-last:]
        for index in selection.choose(len(images)):
            frame, path = images[index]
            yield frame, read_counts(path)

    return InputSet(name, folder, "images", read)


def evenly(entries: Sequence, count: int) -> list:
    """At most ``count`` of ``entries``, evenly spaced, the first and the last among them."""
    places = np.linspace(0, len(entries) - 1, min(count, len(entries))).round().astype(int)
    return [entries[place] for place in places]


def make_pair(
    hr: np.ndarray, degradation: Kind = "bicubic", name: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """A frame cut to multiples of 4 and what a camera with a quarter of its resolution saw.

    Args:
        hr: ``(H, W)`` uint8, uint16 or float32 counts.
        degradation: ``"bicubic"``, antialiased bicubic /4, the paper's; or ``"thermal"`` or
            ``"second_order"`` with the ranges that training draws from by default.
        name: of the frame; the same name draws the same degradation, whatever frames are beside.

    Returns:
        ``(lr, hr)``, ``(h, w)`` and ``(4h, 4w)``, of the dtype of ``hr``. The second is the frame
        itself, but for what a camera with more pixels would show as well (a thermal camera's
        drift, the range of an 8-bit picture).
    """
    hr = crop_to_multiple(hr, SCALE)
    if degradation == "bicubic":
        return pillow_resize(hr, hr.shape[0] // SCALE, hr.shape[1] // SCALE), hr
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    rng = np.random.default_rng(seed)
    lr, target = degrade(degradation, hr, agc_range(hr), DegradationConfig(), rng)
    return to_dtype(lr, hr.dtype), to_dtype(target, hr.dtype)


def to_dtype(counts: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Round and clip float counts to what ``dtype`` holds; float32 stays as it is."""
    if dtype == np.float32:
        return counts.astype(np.float32)
    limits = np.iinfo(dtype)
    return np.rint(counts).clip(limits.min, limits.max).astype(dtype)


def full_range(counts: np.ndarray) -> tuple[float, float]:
    """Black level and span of a picture: 0..255 for 8 bit, else its own extremes."""
    if counts.dtype == np.uint8:
        return 0.0, 255.0
    lo, hi = float(counts.min()), float(counts.max())
    return lo, max(hi - lo, 1e-6)
