"""High-resolution infrared frames of image files and recordings, for training and validation."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from difiisr_training.data.bag_frames import find_recordings, read_recordings, require_finite
from difiisr_training.data.sequences import sequence_names, validation_sequences

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}

Part = Literal["train", "val"]

_BITS_PER_SAMPLE = 258  # tag of a TIFF
_TWO_BYTES = re.compile(r";16[BLN]$")  # at the end of Pillow's raw modes; BMP's BGR;16 is 5+6+5 bit

log = logging.getLogger(__name__)


@dataclass(frozen=True)
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
    """

    folder: str
    weight: float = 1.0
    skip_last: int = 0
    scales: tuple[float, ...] = (1.0,)
    val_share: float = 0.1
    topic: str | None = None
    every: int = 1

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"{self.folder}: scales must be above 0, got {list(self.scales)}")
        if self.weight < 0 or self.skip_last < 0 or self.every < 1 or not 0 <= self.val_share < 1:
            raise ValueError(
                f"{self.folder}: weight and skip_last must be 0 or more, every 1 or more and "
                f"val_share in 0..1, got {self.weight}, {self.skip_last}, {self.every} and "
                f"{self.val_share}"
            )


def load_images(source: ImageSource, data: Path, part: Part) -> list[np.ndarray]:
    """Read one part of a source; what is damaged is skipped, counted and named in the log.

    Returns:
        ``(H, W)`` uint8, uint16 or float32 counts.

    Raises:
        FileNotFoundError: the folder does not exist or holds neither images nor recordings.
        ValueError: a recording has no such topic, nothing of the training part is readable, or
            there are images beside the recordings.
    """
    root = data / source.folder
    recordings = find_recordings(root)
    if recordings:
        if loose := [p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES]:
            raise ValueError(
                f"{root} holds {len(recordings)} recordings and {len(loose)} images: "
                "make folders, and sources, of their own of them"
            )
        names = [path.relative_to(root).as_posix() for path in recordings]
        files = _part(recordings, names, source, part)
        images, skipped = read_recordings(files, source.topic, source.every)
    else:
        paths = list_images(root)
        names = sequence_names([path.relative_to(root) for path in paths])
        files = _part(paths, names, source, part)
        images, skipped = read_all(files)
    size = sum(image.nbytes for image in images) / 2**20
    log.info("%s: %d frames (%.0f MiB) for %s", root, len(images), size, part)
    if skipped:
        log.warning("%s: skipped %d that were damaged or not finite", root, len(skipped))
    if part == "train" and not images:
        raise ValueError(f"{root}: nothing to train on among {len(files)} files; see the log")
    return images


def list_images(folder: Path) -> list[Path]:
    """Image files in a folder and the folders below it, sorted by path.

    Raises:
        FileNotFoundError: the folder does not exist or holds no image.
    """
    if not Path(folder).exists():
        raise FileNotFoundError(f"no folder {folder}")
    paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"no images ({', '.join(sorted(SUFFIXES))}) in {folder}")
    return paths


def read_counts(path: Path) -> np.ndarray:
    """Read one image as ``(H, W)`` uint8, uint16 or float32 counts, as stored.

    A colour file gives the mean of its channels, uint8.

    Raises:
        OSError: the file is no image, or damaged; for some kinds of damage Pillow raises others.
        ValueError: integers beyond 16 bit, or colours of 16 bit, which Pillow cuts to 8.
    """
    with Image.open(path) as image:
        if _is_deep_colour(image):
            raise ValueError(f"{path}: 16-bit colour; write it as one 16-bit channel")
        try:
            image.load()
        except Exception as error:  # damaged files raise whatever their decoder raises
            raise OSError(f"{path}: {error}") from error
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


def _is_deep_colour(image: Image.Image) -> bool:
    """Whether Pillow will give 8 bit of a file's 16; known only before ``load``."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return False
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))
    codings = [tile[3] if isinstance(tile[3], tuple) else (tile[3],) for tile in image.tile]
    return max(bits) > 8 or any(_TWO_BYTES.search(str(coding[0])) for coding in codings if coding)


def read_all(paths: list[Path]) -> tuple[list[np.ndarray], list[Path]]:
    """Read images, skipping and naming those damaged or not finite: (images, skipped paths)."""
    images, skipped = [], []
    for path in paths:
        try:
            counts = read_counts(path)
            require_finite(counts)
            images.append(counts)
        except Exception as error:  # damaged files raise whatever their decoder raises
            log.warning("skipped damaged image %s: %s", path, error)
            skipped.append(path)
    return images, skipped


def crop_to_multiple(image: np.ndarray, multiple: int) -> np.ndarray:
    """Cut the bottom and right edge so that both sides are multiples of ``multiple``."""
    h, w = (side // multiple * multiple for side in image.shape)
    return image[:h, :w]


def pillow_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Antialiased bicubic resize; the dtype (uint8, uint16, float32) and its rounding are kept."""
    if image.dtype == np.uint8:
        return np.asarray(Image.fromarray(image).resize((width, height), Image.BICUBIC))
    resized = np.asarray(
        Image.fromarray(image.astype(np.float32)).resize((width, height), Image.BICUBIC)
    )
    if image.dtype == np.uint16:
        return resized.round().clip(0, 65535).astype(np.uint16)
    return resized


def _part(files: list[Path], names: list[str], source: ImageSource, part: Part) -> list[Path]:
    """The files of one part: whole sequences (``names``), never some frames of one."""
    count = max(0, len(files) - source.skip_last)
    held_out = validation_sequences(names[:count], source.val_share)
    return [
        file
        for file, name in zip(files[:count], names[:count], strict=True)
        if (name in held_out) == (part == "val")
    ]
