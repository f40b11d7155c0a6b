"""Types of command-line arguments."""

from __future__ import annotations

import argparse
import re

MOST_THREADS = 256


def image_size(text: str) -> tuple[int, int]:
    """``"120x160"`` -> (120, 160): height, then width, in pixels."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write HEIGHTxWIDTH, as in 120x160")
    return int(found[1]), int(found[2])


def threads(text: str) -> int:
    """A number of threads: from 1 to as many as the node takes."""
    count = positive(text)
    if count > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text} threads are too many: at most {MOST_THREADS}")
    return count


def positive(text: str) -> int:
    """A whole number from 1 up."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)
