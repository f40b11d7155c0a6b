"""Boxes of objects: COCO files, HIT-UAV's dialect of them, and folders of Pascal VOC files."""

from __future__ import annotations

import hashlib
import json
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from difiisr_models.weights import sha256_file
from difiisr_training.data.pairing import pair_names

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
        classes: names, in the order of their ids; those of Pascal VOC in the order of the alphabet.
        images: file name -> its objects; images without objects are among them.
    """

    classes: tuple[str, ...]
    images: Mapping[str, Boxes]

    def of_frames(self, frames: Sequence[str]) -> dict[str, Boxes]:
        """Objects of each annotated frame; see :func:`pair_names`.

        Raises:
            ValueError: two images have one name, or a frame could be one of several images.
        """
        images: dict[str, str] = {}
        for image in self.images:
            name = "__".join(Path(image).with_suffix("").parts)
            if name in images:
                raise ValueError(f"the images {images[name]} and {image} have one name: {name}")
            images[name] = image
        pairs = pair_names(frames, list(images))
        return {frame: self.images[images[name]] for frame, name in pairs.items()}


def read_annotations(path: Path) -> Annotations:
    """Read a COCO file, or a folder of Pascal VOC files (``*.xml``, one per image, as M3FD's).

    HIT-UAV's names of keys (``annotation``, ``filename``) are understood, ids may start anywhere,
    and boxes of the category DontCare or marked ``iscrowd`` or ``difficult`` are ignored regions.

    Raises:
        OSError: the file is not readable.
        ValueError: the file is of neither kind, or its parts contradict each other.
    """
    return _read_voc(Path(path)) if Path(path).is_dir() else _read_coco(Path(path))


def annotations_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, or of the names and bytes of a folder's Pascal VOC files."""
    if not Path(path).is_dir():
        return sha256_file(path)
    digest = hashlib.sha256()
    for file in sorted(Path(path).glob("*.xml")):
        digest.update(f"{file.name} {sha256_file(file)}\n".encode())
    return digest.hexdigest()


def _read_coco(path: Path) -> Annotations:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
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


def _read_voc(folder: Path) -> Annotations:
    files = sorted(folder.glob("*.xml"))
    if not files:
        raise ValueError(f"{folder} holds no Pascal VOC file (*.xml)")
    objects = {file.stem: _read_voc_file(file) for file in files}
    classes = tuple(sorted({name for rows in objects.values() for _, name, _ in rows}))
    return Annotations(
        classes,
        {
            image: _boxes([(box, classes.index(name), ignored) for box, name, ignored in rows])
            for image, rows in objects.items()
        },
    )


def _read_voc_file(path: Path) -> list[tuple[list[float], str, bool]]:
    """Box, class and whether it is ignored, of every object."""
    rows = []
    try:
        for thing in ET.fromstring(path.read_text(encoding="utf-8")).iter("object"):
            corners = (thing.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax"))
            left, top, right, bottom = map(float, corners)
            ignored = int(thing.findtext("difficult", "0")) != 0
            rows.append(([left, top, right - left, bottom - top], thing.findtext("name"), ignored))
            if rows[-1][1] is None:
                raise ValueError("an object without a name")
    except (ET.ParseError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no Pascal VOC file: {error}") from error
    return rows


def _either(mapping: Mapping[str, Any], first: str, second: str) -> Any:
    return mapping[first] if first in mapping else mapping[second]


def _boxes(rows: list[tuple[list[float], int, bool]]) -> Boxes:
    if not rows:
        return Boxes.none()
    xywh, classes, ignored = zip(*rows, strict=True)
    return Boxes(np.array(xywh, np.float64), np.array(classes), np.array(ignored))
