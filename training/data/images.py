"""High-resolution infrared frames of image files: where they lie, how they are split and read.

Images that were taken one after the other are a sequence, and none of a sequence is used to judge
what was trained on another.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt, Le, Lt, MinLen
from PIL import Image, ImageFile, ImageOps, ImageSequence
from pydantic.dataclasses import dataclass

from difiisr_models.files import files_below
from difiisr_models.radiometry import robust_range

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}

Part = Literal["train", "val"]
Share = Annotated[float, Ge(0), Le(1)]

_BITS_PER_SAMPLE = 258  # tag of a TIFF
_TWO_BYTES = re.compile(r";16[BLN]$")  # at the end of Pillow's raw modes; BMP's BGR;16 is 5+6+5 bit

LARGEST_GAP = 50
"""Numbers further apart than this belong to different sequences."""

_FEW = 8  # files of a folder, too few to tell that their numbers say nothing
_NEARLY_ALL = 0.9

_NUMBERED = re.compile(r"(.*?)(\d+)(\D*)")

log = logging.getLogger(__name__)


@dataclass(frozen=True, config={"extra": "forbid"})
class ImageSource:
    """High-resolution frames of one origin and how they are used.

    Frames stay in memory in the dtype of the file, once for each scale: 1,000 frames of 640x512
    take 330 MB in 8 bit, 660 MB in 16 bit. Processes forked to load samples share them.

    Attributes:
        folder: a folder of images, one rosbag2 recording, or a folder of recordings; relative to
            the data root.
        weight: how often its crops are drawn, relative to the other sources.
        skip_last: files at the end of the sorted list that neither part ever sees.
        scales: side lengths at which its frames are used, relative to the file (1 = as stored). A
            frame downsampled by 2 is cleaner and sharper than the stored one.
        val_share: largest share of the files held out for validation, in whole sequences; a
            recording is a sequence.
        topic: image topic of the recordings; not needed where there is only one.
        every: use the first of each so many messages of a recording: neighbours are alike.
        camera: of the recordings: name of a camera or a YAML file, which says what is cut off their
            frames and which values are no data.
    """

    folder: str
    weight: Annotated[float, Ge(0)] = 1.0
    skip_last: Annotated[int, Ge(0)] = 0
    scales: Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)] = (1.0,)
    val_share: Annotated[float, Ge(0), Lt(1)] = 0.1
    topic: str | None = None
    every: Annotated[int, Ge(1)] = 1
    camera: str | None = None


LoadFrames = Callable[[ImageSource, Part], list[np.ndarray]]
"""Gives the frames of one part of a source: ``(H, W)`` uint8, uint16 or float32 counts each.

The training part is never empty. Whoever opens the sources makes it: ``partial(load_images,
data=folder)`` for image files.
"""


def load_images(source: ImageSource, part: Part, *, data: Path) -> list[np.ndarray]:
    """Read one part of a source of image files; what is damaged is skipped, counted and logged.

    Raises as :func:`list_images` and :func:`read_part` do.
    """
    root = data / source.folder
    paths = list_images(root)
    names = sequence_names([path.relative_to(root) for path in paths])
    return read_part(source, root, part, paths, names, _read_readable)


def read_part(
    source: ImageSource,
    root: Path,
    part: Part,
    files: Sequence[Path],
    sequences: Sequence[str],
    read: Callable[[Path, Callable[[str], None]], Iterator[np.ndarray]],
) -> list[np.ndarray]:
    """Read the files of one part: whole sequences, never some frames of one.

    ValueError: nothing of a training part is readable.

    Args:
        source: says how much is held out.
        root: place of the source, for the log.
        part: which.
        files: of the source, in order.
        sequences: the name of each file's sequence.
        read: gives the frames of a file, and calls its argument with a text for each that it skips.
    """
    count = max(0, len(files) - source.skip_last)
    held_out = validation_sequences(sequences[:count], source.val_share)
    named = zip(files[:count], sequences[:count], strict=True)
    chosen = [file for file, name in named if (name in held_out) == (part == "val")]
    skipped: list[str] = []
    images = [image for file in chosen for image in read(file, skipped.append)]
    size = sum(image.nbytes for image in images) / 2**20
    log.info("%s: %d frames (%.0f MiB) for %s", root, len(images), size, part)
    for text in skipped:
        log.warning("%s", text)
    if skipped:
        log.warning("%s: skipped %d that were damaged or not finite", root, len(skipped))
    if part == "train" and not images:
        raise ValueError(f"{root}: nothing to train on among {len(chosen)} files; see the log")
    return images


def _read_readable(path: Path, skipped: Callable[[str], None]) -> Iterator[np.ndarray]:
    try:
        pages = list(read_pages(path))
        for counts in pages:
            if counts.dtype.kind == "f" and (wrong := np.count_nonzero(~np.isfinite(counts))):
                raise ValueError(f"{wrong} pixels are NaN or infinity")
    except Exception as error:  # damaged files raise whatever their decoder raises
        skipped(f"skipped damaged image {path}: {error}")
    else:
        yield from pages


def sequence_names(paths: Sequence[PurePath]) -> list[str]:
    """Name the sequence of each image, from folder and file name alone.

    A sequence is a run of numbers without a gap above :data:`LARGEST_GAP` among the files of one
    folder whose names differ in their last number only: FLIR_04593 and FLIR_04598 are one drive,
    HIT-UAV's 0_100_30_0_03281 and 0_100_30_0_08070 two flights at the same height and angle, and
    0_100_40_0_03317 is another view; MSRS' 00056D and 00003N are day and night. A name without a
    number is a sequence of its own. Where nearly all files of a folder would be (numbers that are
    time stamps or hashes, every hundredth frame), they say nothing: the folder is one sequence.

    Args:
        paths: relative to the data, so that the names are the same on every machine.
    """
    names, streams = [path.as_posix() for path in paths], defaultdict(list)
    folders = [path.parent.as_posix() for path in paths]
    for index, path in enumerate(paths):
        if match := _NUMBERED.fullmatch(path.stem):
            before, number, after = match.groups()
            streams[folders[index], before, after].append((int(number), index))
    for (folder, before, after), numbered in streams.items():
        first = previous = -math.inf
        for number, index in sorted(numbered):
            if number - previous > LARGEST_GAP:
                first = number
            names[index] = f"{folder}/{before}{first}{after}"
            previous = number
    sizes = Counter(names)
    alone = Counter(f for f, name in zip(folders, names, strict=True) if sizes[name] == 1)
    silent = {f for f, n in Counter(folders).items() if n >= _FEW and alone[f] > _NEARLY_ALL * n}
    return [f if f in silent else name for f, name in zip(folders, names, strict=True)]


def validation_sequences(names: Sequence[str], share: float) -> set[str]:
    """Choose whole sequences that together hold at most ``share`` of the images.

    The choice depends on the names alone: sequences are taken in the order of their hashes, each
    one that still fits. A source of a single sequence keeps it for training.

    ``names``: the sequence of each image.
    """
    sizes = Counter(names)
    room = share * len(names)
    chosen = set()
    for name in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if sizes[name] <= room:
            chosen.add(name)
            room -= sizes[name]
    return chosen


def list_images(folder: Path) -> list[Path]:
    """Image files in a folder and the folders below it, also behind links, sorted by path.

    FileNotFoundError: the folder does not exist or holds no image.
    """
    if not folder.exists():
        raise FileNotFoundError(f"no folder {folder}")
    files = sorted(files_below(folder))
    paths = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise FileNotFoundError(f"no images ({', '.join(sorted(SUFFIXES))}) in {folder}")
    return paths


def read_counts(path: Path) -> np.ndarray:
    """Read one image, the first page of a TIFF; see :func:`read_pages`."""
    return next(read_pages(path))


def read_pages(path: Path) -> Iterator[np.ndarray]:
    """Read an image, each page of a TIFF, as ``(H, W)`` uint8, uint16 or float32 counts.

    A colour file gives the mean of its channels, uint8. What EXIF says is turned stands upright.

    Raises:
        OSError: the file is no image, damaged, or a bomb of more pixels than Pillow decodes; for
            some kinds of damage Pillow raises others.
        ValueError: integers beyond 16 bit, or colours of 16 bit, which Pillow cuts to 8.
    """
    try:
        image = Image.open(path)
    except Image.DecompressionBombError as error:
        raise OSError(f"{path}: {error}") from error
    with image:
        if _is_deep_colour(image):
            raise ValueError(f"{path}: 16-bit colour; write it as one 16-bit channel")
        try:
            image.load()
        except Exception as error:  # damaged files raise whatever their decoder raises
            raise OSError(f"{path}: {error}") from error
        pages = ImageSequence.Iterator(image) if image.format == "TIFF" else [image]
        for page in pages:
            yield _counts(path, ImageOps.exif_transpose(page))


def _counts(path: Path, image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    if image.mode == "I":
        if pixels.min() < 0 or pixels.max() > np.iinfo(np.uint16).max:
            raise ValueError(f"{path}: counts {pixels.min()}..{pixels.max()} exceed 16 bit")
        return pixels.astype(np.uint16)
    if image.mode.startswith("I;16"):
        return pixels.astype(np.uint16)
    if image.mode in ("L", "F"):
        return pixels
    return np.asarray(image.convert("RGB")).mean(axis=-1).round().astype(np.uint8)


def _is_deep_colour(image: ImageFile.ImageFile) -> bool:
    """Whether Pillow will give 8 bit of a file's 16; known only before ``load``."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return False
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))
    codings = [tile[3] if isinstance(tile[3], tuple) else (tile[3],) for tile in image.tile]
    return max(bits) > 8 or any(_TWO_BYTES.search(str(coding[0])) for coding in codings if coding)


def crop_to_multiple(image: np.ndarray, multiple: int) -> np.ndarray:
    """Cut the bottom and right edge so that both sides are multiples of ``multiple``."""
    h, w = (side // multiple * multiple for side in image.shape)
    return image[:h, :w]


def as_picture(counts: np.ndarray) -> np.ndarray:
    """Counts ``(H, W)`` -> float32 in 0..1, as detectors and segmenters see them.

    8 bit: 0..255. Otherwise from the bottom to the top of the frame's own robust range.
    """
    if counts.dtype == np.uint8:
        return counts.astype(np.float32) / 255
    shown = robust_range(counts)
    return ((counts.astype(np.float32) - shown.lo) / shown.span).clip(0, 1)
