"""Label maps: an image of class numbers for each frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from difiisr_training.data.images import list_images


def read_labels(path: Path) -> np.ndarray:
    """Read a label map ``(H, W)`` uint8; 255 marks pixels that nobody judges.

    Raises:
        OSError: the file is no image.
        ValueError: an image of colours: their classes are not known.
    """
    with Image.open(path) as image:
        if image.mode not in ("L", "P"):
            raise ValueError(
                f"{path} has the mode {image.mode}; a label map holds one class number per pixel "
                "(8-bit grey or palette)"
            )
        return np.array(image, np.uint8)


def pair_with_labels(images: Path, labels: Path) -> list[tuple[Path, Path]]:
    """Images and label maps of the same name (the suffix may differ), sorted.

    For FMB these are the folders ``Infrared`` and ``Label`` of ``train`` and ``test``.

    Raises:
        FileNotFoundError: a folder is missing or empty, or no image has a label map.
    """
    by_stem = {path.stem: path for path in list_images(labels)}
    pairs = [(path, by_stem[path.stem]) for path in list_images(images) if path.stem in by_stem]
    if not pairs:
        raise FileNotFoundError(f"no image in {images} has a label map of its name in {labels}")
    return pairs
