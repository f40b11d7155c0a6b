"""Types of command-line arguments, and what is asked of them."""

from __future__ import annotations

import argparse
import math
import os
import re
from pathlib import Path

MOST_THREADS = 256
_LARGEST = 1_000_000
_LONGEST_SIDE = 16_384  # pixels


def image_size(text: str) -> tuple[int, int]:
    """``"120x160"`` -> (120, 160): height, then width, in pixels."""
    return _sides(text, "HEIGHTxWIDTH, as in 120x160")


def camera_size(text: str) -> tuple[int, int]:
    """``"640x512"`` -> (512, 640): written as cameras' sizes are."""
    width, height = _sides(text, "WIDTHxHEIGHT, as in 640x512")
    return height, width


def _sides(text: str, form: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", text)
    sides = tuple(map(int, found.groups())) if found else ()
    if not found or max(sides) > _LONGEST_SIDE:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size: write {form}, no side longer than {_LONGEST_SIDE}"
        )
    return sides


def threads(text: str) -> int:
    """A number of threads: from 1 to as many as the node takes."""
    count = positive(text)
    if count > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text} threads are too many: at most {MOST_THREADS}")
    return count


def positive(text: str) -> int:
    """A whole number from 1 up."""
    if not text.isdecimal() or not 1 <= int(text) <= _LARGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {_LARGEST}")
    return int(text)


def positive_number(text: str) -> float:
    """A finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def cuda_device(text: str) -> str:
    """``cuda`` or ``cuda:N``."""
    if not re.fullmatch(r"cuda(:\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not cuda or cuda:N")
    return text


def check_target(target: Path, force: bool) -> None:
    """Raise an OSError unless the file ``target`` may be written; call it before the work."""
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder: name a file")
    if (target.exists() or target.is_symlink()) and not force:
        raise FileExistsError(f"{target} exists; --force replaces it")
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise PermissionError(f"{target} cannot be written: {folder} is no folder to write in")
