"""Infrared images on disk: finding, reading, splitting."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageSource:
    """A folder of high-resolution images and how it is used.

    Attributes:
        folder: relative to the data root.
        weight: how often its crops are drawn, relative to the other sources.
        skip_last: images at the end of the sorted list that training never sees.
        scales: side lengths at which its frames are used, relative to the file (1 = as stored). A
            frame downsampled by 2 is cleaner and sharper than the stored one.
    """

    folder: str
    weight: float = 1.0
    skip_last: int = 0
    scales: tuple[float, ...] = (1.0,)


def list_images(folder: Path) -> list[Path]:
    """Image files of a folder, sorted by name.

    Raises:
        FileNotFoundError: the folder does not exist or holds no image.
    """
    paths = sorted(p for p in Path(folder).glob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"no images ({', '.join(sorted(SUFFIXES))}) in {folder}")
    return paths


def read_counts(path: Path) -> np.ndarray:
    """Read one image as ``(H, W)`` uint8 or uint16 counts; a colour file gives its mean channel.

    Raises:
        OSError: the file is no image, or damaged.
    """
    with Image.open(path) as image:
        image.load()
        if image.mode in ("I;16", "I;16B", "I"):
            return np.asarray(image).astype(np.uint16)
        if image.mode == "L":
            return np.asarray(image)
        return np.asarray(image.convert("RGB")).mean(axis=-1).round().astype(np.uint8)


def read_all(paths: list[Path]) -> tuple[list[np.ndarray], list[Path]]:
    """Read images, skipping and naming the damaged ones: (images, skipped paths)."""
    images, skipped = [], []
    for path in paths:
        try:
            images.append(read_counts(path))
        except (OSError, ValueError, SyntaxError) as error:
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
