"""Which images were taken one after the other, so that none of a sequence is used to judge it."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

LARGEST_GAP = 50
"""Numbers further apart than this belong to different sequences."""

_FEW = 8  # files of a folder, too few to tell that their numbers say nothing
_NEARLY_ALL = 0.9

_NUMBERED = re.compile(r"(.*?)(\d+)(\D*)")


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
    names = [""] * len(paths)
    streams: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
    for index, path in enumerate(paths):
        match = _NUMBERED.fullmatch(path.stem)
        if match is None:
            names[index] = path.as_posix()
            continue
        before, number, after = match.groups()
        stream = (path.parent.as_posix(), before, after)
        streams.setdefault(stream, []).append((int(number), index))
    for (folder, before, after), numbered in streams.items():
        previous = first = None
        for number, index in sorted(numbered):
            if previous is None or number - previous > LARGEST_GAP:
                first = number
            names[index] = f"{folder}/{before}{first}{after}"
            previous = number
    sizes, folders = Counter(names), [path.parent.as_posix() for path in paths]
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
