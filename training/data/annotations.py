"""What the frames of a set show, by their names: boxes (COCO, Pascal VOC) and label maps."""

from __future__ import annotations

import hashlib
import json
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from difiisr_models.files import read_text, sha256_file
from difiisr_training.data.images import list_images

Value = TypeVar("Value")

IGNORED = 255
"""Label of pixels that nobody judges."""

_MOST_COCO = 2**30  # bytes; that of the whole COCO has half of it
_DONT_CARE = "DontCare"  # HIT-UAV: regions in which a detection is neither right nor wrong


@dataclass(frozen=True)
class Boxes:
    """The objects of one image.

    Attributes:
        xywh: ``(N, 4)`` float64: left, top, width and height in pixels.
        classes: ``(N,)`` int64: places in ``Annotations.classes``; -1 means any class, and only
            ignored boxes have it.
        ignored: ``(N,)`` bool: neither to be found nor to be counted as a mistake (``iscrowd``).
    """

    xywh: np.ndarray
    classes: np.ndarray
    ignored: np.ndarray

    @classmethod
    def of(cls, rows: Iterable[tuple[Sequence[float], int, bool]]) -> Boxes:
        """From rows of box, class and whether it is ignored; there may be none."""
        xywh, classes, ignored = zip(*rows, strict=True) if (rows := list(rows)) else ((), (), ())
        return cls(
            np.array(xywh, np.float64).reshape(-1, 4),
            np.array(classes, np.int64),
            np.array(ignored, bool),
        )


@dataclass(frozen=True)
class Annotations:
    """The objects of a set.

    Attributes:
        classes: names, in the order of their ids; those of Pascal VOC in the order of the alphabet.
        images: name of the frame -> its objects; images without objects are among them.
    """

    classes: tuple[str, ...]
    images: Mapping[str, Boxes]


def read_annotations(path: Path) -> Annotations:
    """Read a COCO file, or a folder of Pascal VOC files (``*.xml``, one per image, as M3FD's).

    HIT-UAV's names of keys (``annotation``, ``filename``) are understood, ids may start anywhere,
    and boxes of the category DontCare or marked ``iscrowd`` or ``difficult`` are ignored regions.

    ValueError: the file is of neither kind, its parts contradict each other, or two images have one
    name.
    """
    path = Path(path)
    if not path.is_dir():
        return _read_coco(path)
    objects = {file.stem: _read_voc(file) for file in sorted(path.glob("*.xml"))}
    if not objects:
        raise ValueError(f"{path} holds no Pascal VOC file (*.xml)")
    classes = sorted({name for rows in objects.values() for _, name, _ in rows})
    images = {
        image: Boxes.of((box, classes.index(name), ignored) for box, name, ignored in rows)
        for image, rows in objects.items()
    }
    return Annotations(tuple(classes), images)


def annotations_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, or of the names and bytes of a folder's Pascal VOC files."""
    if not Path(path).is_dir():
        return sha256_file(path)
    files = sorted(Path(path).glob("*.xml"))
    lines = (f"{file.name} {sha256_file(file)}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_labels(path: Path) -> np.ndarray:
    """Read a label map ``(H, W)`` uint8 of class numbers; 255 marks pixels that nobody judges."""
    with Image.open(path) as image:
        if image.mode not in ("L", "P"):
            raise ValueError(
                f"{path} has the mode {image.mode}; a label map holds one class number per pixel "
                "(8-bit grey or palette)"
            )
        return np.array(image, np.uint8)


def name_images(paths: Sequence[Path], folder: Path) -> list[str]:
    """Name of the frame that each image holds: its path below ``folder`` without suffix.

    ValueError: two images differ in their suffix alone.
    """
    names = ["__".join(path.relative_to(folder).with_suffix("").parts) for path in paths]
    for name, count in Counter(names).items():
        if count > 1:
            same = (str(path) for path, other in zip(paths, names, strict=True) if other == name)
            raise ValueError(f"{' and '.join(same)} have one name; keep one of them")
    return names


def images_by_name(folder: Path) -> dict[str, Path]:
    """The images in a folder by the names of their frames, sorted by path.

    Raises as ``images.list_images`` and :func:`name_images` do.
    """
    paths = list_images(folder)
    return dict(zip(name_images(paths, folder), paths, strict=True))


def pair_names(names: Sequence[str], known: Mapping[str, Value]) -> dict[str, Value]:
    """What is known by each name; names by which nothing is are left out.

    Names are paths without suffix, joined by ``__``, as those of frames. A name belongs to its
    equal, else to the only one with the same last part: one side may lack folders. ValueError:
    several names have that last part, on either side.
    """
    ours, theirs = (defaultdict[str, list[str]](list) for _ in range(2))
    for found, given in ((ours, names), (theirs, known)):
        for name in given:
            found[name.rpartition("__")[2]].append(name)
    pairs, taken = {}, set(names)
    for name in names:
        mine, others = (found[name.rpartition("__")[2]] for found in (ours, theirs))
        if name in known:
            pairs[name] = known[name]
        elif not taken.issuperset(others):  # else each of them belongs to its equal
            if len(mine) > 1 or len(others) > 1:
                raise ValueError(
                    f"{', '.join(mine)} cannot be told apart by the names {', '.join(others)}: "
                    "folders and names of both sides must be equal"
                )
            pairs[name] = known[others[0]]
    return pairs


def pair_with_labels(images: Path, labels: Path) -> list[tuple[Path, Path]]:
    """Images and label maps of the same name (the suffix may differ), sorted; see pair_names.

    FileNotFoundError: a folder is missing or empty, or no image has a label map.
    """
    named = images_by_name(images)
    found = pair_names(list(named), images_by_name(labels))
    pairs = [(named[name], path) for name, path in found.items()]
    if not pairs:
        raise FileNotFoundError(f"no image in {images} has a label map of its name in {labels}")
    return pairs


def _read_coco(path: Path) -> Annotations:
    try:
        content = json.loads(read_text(path, _MOST_COCO))
        names = {category["id"]: category["name"] for category in content["categories"]}
        files = {
            image["id"]: image.get("file_name") or image["filename"] for image in content["images"]
        }
        classes = tuple(names[i] for i in sorted(names) if names[i] != _DONT_CARE)
        rows: dict[str, list] = {file: [] for file in files.values()}
        for entry in content["annotations" if "annotations" in content else "annotation"]:
            name = names[entry["category_id"]]
            any_class = name == _DONT_CARE
            place = -1 if any_class else classes.index(name)
            ignored = any_class or bool(entry.get("iscrowd", 0))
            rows[files[entry["image_id"]]].append((entry["bbox"], place, ignored))
        paths = [Path(file) for file in rows]
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no COCO annotation file (categories, images, annotations with bbox): "
            f"{type(error).__name__} {error}"
        ) from error
    frames = name_images([path.relative_to(path.anchor) for path in paths], Path())
    return Annotations(classes, dict(zip(frames, map(Boxes.of, rows.values()), strict=True)))


def _read_voc(path: Path) -> list[tuple[list[float], str, bool]]:
    """Box, class and whether it is ignored, of every object."""
    rows = []
    try:
        for thing in ET.fromstring(read_text(path)).iter("object"):
            ends = ("xmin", "ymin", "xmax", "ymax")
            left, top, right, bottom = (float(thing.findtext(f"bndbox/{end}", "")) for end in ends)
            ignored, name = int(thing.findtext("difficult", "0")) != 0, thing.findtext("name")
            if name is None:
                raise ValueError("an object has no name")
            rows.append(([left, top, right - left, bottom - top], name, ignored))
    except (ET.ParseError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no Pascal VOC file: {error}") from error
    return rows
