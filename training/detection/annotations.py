"""Boxes of objects: COCO files, and HIT-UAV's dialect of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

DONT_CARE = "DontCare"
"""HIT-UAV's category of regions in which a detection is neither right nor wrong."""


@dataclass(frozen=True)
class Boxes:
    """The objects of one image.

    Attributes:
        xywh: ``(N, 4)`` float64: left, top, width and height in pixels.
        classes: ``(N,)`` int64: places in :attr:`Annotations.classes`; -1 means any class, and
            only ignored boxes have it.
        ignored: ``(N,)`` bool: neither to be found nor to be counted as a mistake (``iscrowd``).
    """

    xywh: np.ndarray
    classes: np.ndarray
    ignored: np.ndarray

    @classmethod
    def none(cls) -> Boxes:
        """An image without objects."""
        return cls(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool))


@dataclass(frozen=True)
class Annotations:
    """The objects of a set.

    Attributes:
        classes: names, in the order of their ids in the file.
        images: file name -> its objects; images without objects are among them.
    """

    classes: tuple[str, ...]
    images: Mapping[str, Boxes]


def read_annotations(path: Path) -> Annotations:
    """Read a COCO file.

    HIT-UAV's names of keys (``annotation``, ``filename``) are understood, ids may start anywhere,
    and boxes of the category DontCare or marked ``iscrowd`` are ignored regions.

    Raises:
        OSError: the file is not readable.
        ValueError: the file is no COCO file, or its parts contradict each other.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        names = {category["id"]: category["name"] for category in content["categories"]}
        files = {
            image["id"]: _either(image, "file_name", "filename") for image in content["images"]
        }
        entries = _either(content, "annotations", "annotation")
        classes = tuple(names[i] for i in sorted(names) if names[i] != DONT_CARE)
        found: dict[str, list[tuple[list[float], int, bool]]] = {f: [] for f in files.values()}
        for entry in entries:
            name = names[entry["category_id"]]
            ignored = name == DONT_CARE or bool(entry.get("iscrowd", 0))
            place = -1 if name == DONT_CARE else classes.index(name)
            found[files[entry["image_id"]]].append((entry["bbox"], place, ignored))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is no COCO annotation file (categories, images, annotations with bbox): "
            f"{type(error).__name__} {error}"
        ) from error
    return Annotations(classes, {name: _boxes(rows) for name, rows in found.items()})


def _either(mapping: Mapping[str, Any], first: str, second: str) -> Any:
    return mapping[first] if first in mapping else mapping[second]


def _boxes(rows: list[tuple[list[float], int, bool]]) -> Boxes:
    if not rows:
        return Boxes.none()
    xywh, classes, ignored = zip(*rows, strict=True)
    return Boxes(np.array(xywh, np.float64), np.array(classes), np.array(ignored))
