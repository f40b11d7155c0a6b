"""Label maps: an image of class numbers for each frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from difiisr_models.resample import SCALE
from difiisr_training.data.images import list_images
from difiisr_training.data.pairing import pair_names
from difiisr_training.evaluation.inputs import name_images


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
        ValueError: the label map of an image could be one of several.
    """
    paths = list_images(images)
    named = dict(zip(name_images(paths, images), paths, strict=True))
    found = maps_of_frames(labels, list(named))
    if not found:
        raise FileNotFoundError(f"no image in {images} has a label map of its name in {labels}")
    return [(named[name], path) for name, path in found.items()]


def maps_of_frames(labels: Path, frames: Sequence[str]) -> dict[str, Path]:
    """Label map of each frame that has one; see :func:`pair_names`.

    Raises:
        FileNotFoundError: the folder is missing or empty.
        ValueError: two label maps have one name, or that of a frame could be one of several.
    """
    paths = list_images(labels)
    named = dict(zip(name_images(paths, labels), paths, strict=True))
    return {frame: named[name] for frame, name in pair_names(frames, list(named)).items()}


def fit_labels(
    labels: np.ndarray, size: tuple[int, int], path: Path, *, enlarge: bool
) -> np.ndarray:
    """Cut label maps ``(H, W)`` to their frame, of which less than four rows and columns were cut.

    Args:
        labels: as read from ``path``.
        size: ``(H, W)`` of the result that is judged.
        path: for the error.
        enlarge: labels may be those of low-resolution frames, which were never cut.

    Raises:
        ValueError: labels of another size.
    """
    if enlarge and (labels.shape[0] * SCALE, labels.shape[1] * SCALE) == size:
        return np.kron(labels, np.ones((SCALE, SCALE), labels.dtype))
    (height, width), (rows, columns) = labels.shape, size
    if not (0 <= height - rows < SCALE and 0 <= width - columns < SCALE):
        smaller = f" or {columns // SCALE}x{rows // SCALE}" if enlarge else ""
        raise ValueError(
            f"{path} is {width}x{height}, the results are {columns}x{rows}: label maps must be as "
            f"large as the frames, {columns}x{rows}{smaller} pixels"
        )
    return labels[:rows, :columns]
