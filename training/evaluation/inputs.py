"""What is evaluated: named frames of any source, which of them, and low resolution made of them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge
from pydantic.dataclasses import dataclass

from difiisr_models.resample import SCALE
from difiisr_training.data.annotations import images_by_name, pair_names
from difiisr_training.data.images import crop_to_multiple, read_counts, read_pages
from difiisr_training.degradations import DegradationConfig, Kind, agc_range, degrade, pillow_resize

log = logging.getLogger(__name__)

HELD_OUT = {"roadscene/last20": ("roadscene/train", 20)}
"""Sets that the shipped models never saw and that are the end of a folder: how many images."""


@dataclass(frozen=True)
class Selection:
    """Which frames of a set are used; applied in the order of the fields."""

    every: Annotated[int, Ge(1)] = 1  # the first of each so many
    last: Annotated[int, Ge(0)] = 0  # only so many at the end; 0 = all
    limit: Annotated[int, Ge(1)] | None = None
    spread: bool = True  # over the set, else the first: neighbours in time, which flicker needs

    def choose(self, count: int) -> list[int]:
        """Indices of the chosen frames among ``count``, ascending."""
        chosen = list(range(0, count, self.every))[-self.last :]
        if self.limit is None:
            return chosen
        return evenly(chosen, self.limit) if self.spread else chosen[: self.limit]


@dataclass(frozen=True)
class InputSet:
    """Frames that belong together: one folder of images, or one topic of one recording.

    ``read`` gives names and ``(H, W)`` uint8, uint16 or float32 counts, or why there are none, in
    order, anew each time.
    ``lr`` holds the user's own low-resolution image of each frame, by name, else they are made;
    ``masks`` images that are 0 where results are not judged.
    """

    name: str
    path: Path
    kind: Literal["images", "bag"]
    read: Callable[[], Iterable[tuple[str, np.ndarray | str]]]
    topic: str | None = None
    lr: Mapping[str, Path] = field(default_factory=dict)
    masks: Mapping[str, Path] = field(default_factory=dict)

    def frames(self, left_out: dict[str, str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """What ``read`` gives, without borders that are not finite.

        Frames that cannot be read, hold NaN or infinity inside, or have less than 4x4 pixels, are
        left out, named in the log, and put into ``left_out`` with the reason.
        """
        for name, counts in self.read():
            cut = np.empty(0) if isinstance(counts, str) else counts[finite_window(counts)]
            reason = counts if isinstance(counts, str) else ""
            if not reason and (not cut.size or not np.isfinite(cut).all()):
                reason = "it holds NaN or infinity"
            elif not reason and min(cut.shape) < SCALE:
                size = f"{cut.shape[1]}x{cut.shape[0]}"
                reason = f"it has {size} pixels, at least {SCALE}x{SCALE} are evaluated"
            if reason:
                log.warning("left out frame %s of %s: %s", name, self.path, reason)
                if left_out is not None:
                    left_out[name] = reason
                continue
            if cut.shape != np.shape(counts):
                log.warning("frame %s of %s is cut to its finite %s", name, self.path, cut.shape)
            yield name, cut

    def pair(self, name: str, hr: np.ndarray, degradation: Kind) -> tuple[np.ndarray, np.ndarray]:
        """Low and high resolution of a frame; as :func:`make_pair`, or the user's own.

        FileNotFoundError: there is no image of it; ValueError: it is not a quarter of the size.
        """
        if not self.lr:
            return make_pair(hr, degradation, name)
        lr, hr = _read_of(self.lr, name, "--lr"), crop_to_multiple(hr, SCALE)
        if tuple(SCALE * side for side in lr.shape) != hr.shape or lr.dtype != hr.dtype:
            raise ValueError(
                f"--lr gives {lr.shape} {lr.dtype}, a quarter of {hr.shape} {hr.dtype} is needed"
            )
        return lr, hr

    def mask(self, name: str, hr: np.ndarray) -> np.ndarray | None:
        """Which pixels of a frame are judged, bool; None: all. Raises as :meth:`pair`."""
        if not self.masks:
            return None
        mask = crop_to_multiple(_read_of(self.masks, name, "--masks"), SCALE) > 0
        if mask.shape != hr.shape or not mask.any():
            raise ValueError(f"--masks gives {mask.shape} or nothing to judge, not {hr.shape}")
        return mask


def _read_of(images: Mapping[str, Path], name: str, option: str) -> np.ndarray:
    found = pair_names([name], images)
    if name not in found:
        raise FileNotFoundError(f"{option} has no image of frame {name}")
    return read_counts(found[name])


def finite_window(counts: np.ndarray) -> tuple[slice, slice]:
    """What is left of ``(H, W)`` without borders that hold NaN or infinity, worst side first."""
    rows, columns = (slice(0, side) for side in counts.shape)
    while (part := np.isfinite(counts[rows, columns])).size:
        sides = [1 - line.mean() for line in (part[0], part[-1], part[:, 0], part[:, -1])]
        worst = int(np.argmax(sides))
        if sides[worst] == 0:
            break
        rows = slice(rows.start + (worst == 0), rows.stop - (worst == 1))
        columns = slice(columns.start + (worst == 2), columns.stop - (worst == 3))
    return rows, columns


def image_set(name: str, folder: Path, selection: Selection, last: int = 0) -> InputSet:
    """The images in a folder and below; frames are named by their path in it, without suffix.

    ``last``: the set is only so many at the end of the folder; 0 = all.
    """

    def read() -> Iterator[tuple[str, np.ndarray | str]]:
        images = list(images_by_name(folder).items())[-last:]
        for index in selection.choose(len(images)):
            frame, path = images[index]
            try:
                for page, counts in enumerate(read_pages(path), 1):
                    yield frame if page == 1 else f"{frame}__page{page}", counts
            except Exception as error:  # damaged files raise whatever their decoder raises
                yield frame, str(error) or type(error).__name__

    return InputSet(name, folder, "images", read)


def evenly(entries: Sequence, count: int) -> list:
    """At most ``count`` of ``entries``, evenly spaced, the first and the last among them."""
    places = np.linspace(0, len(entries) - 1, min(count, len(entries))).round().astype(int)
    return [entries[place] for place in places]


def make_pair(
    hr: np.ndarray, degradation: Kind = "bicubic", name: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """What a camera with a quarter of a frame's resolution saw, and the frame cut to fit.

    Args:
        hr: ``(H, W)`` uint8, uint16 or float32 counts.
        degradation: ``"bicubic"``, antialiased bicubic /4, the paper's; or ``"thermal"`` or
            ``"second_order"`` with the ranges that training draws from by default.
        name: of the frame; the same name draws the same degradation, whatever frames are beside.

    Returns:
        ``(h, w)`` and ``(4h, 4w)`` of the dtype of ``hr``; the second has what a camera with more
        pixels would show as well (a thermal camera's drift, the range of an 8-bit picture).
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
