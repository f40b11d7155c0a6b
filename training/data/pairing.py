"""Names of frames, and which boxes or labels belong to which frame: by path, or by unique name."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from difiisr_training.data.images import list_images

Value = TypeVar("Value")


def name_images(paths: Sequence[Path], folder: Path) -> list[str]:
    """Name of the frame that each image holds: its path below ``folder`` without suffix.

    Raises:
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

    Raises:
        FileNotFoundError: the folder is missing, or holds no image.
        ValueError: two images differ in their suffix alone.
    """
    paths = list_images(folder)
    return dict(zip(name_images(paths, folder), paths, strict=True))


def pair_names(names: Sequence[str], known: Mapping[str, Value]) -> dict[str, Value]:
    """What is known by each name; names by which nothing is are left out.

    Names are paths without suffix, joined by ``__``, as those of frames. A name belongs to its
    equal, else to the only one with the same last part: one side may lack folders.

    Raises:
        ValueError: several names have that last part, on either side.
    """
    ours, theirs = defaultdict(list), defaultdict(list)
    for found, given in ((ours, names), (theirs, known)):
        for name in given:
            found[_last_part(name)].append(name)
    pairs, taken = {}, set(names)
    for name in names:
        mine, others = ours[_last_part(name)], theirs[_last_part(name)]
        if name in known:
            pairs[name] = known[name]
        elif taken.issuperset(others):
            continue  # each of them belongs to its equal
        elif len(mine) > 1 or len(others) > 1:
            raise ValueError(
                f"{', '.join(mine)} cannot be told apart by the names {', '.join(others)}: "
                "folders and names of both sides must be equal"
            )
        else:
            pairs[name] = known[others[0]]
    return pairs


def _last_part(name: str) -> str:
    return name.rpartition("__")[2]
