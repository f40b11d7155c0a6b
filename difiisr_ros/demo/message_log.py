"""Stamps and times of messages, handed from one process of the demo to another in a file."""

from __future__ import annotations

import time
from pathlib import Path


class MessageLog:
    """Appends one line for each message: header stamp (ns) and monotonic time (ns)."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", buffering=1)

    def add(self, stamp: int) -> None:
        """Note that the message with this header stamp passes now."""
        self._file.write(f"{stamp} {time.monotonic_ns()}\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_log(path: Path) -> list[tuple[int, int]]:
    """(header stamp, monotonic time) of each message, ns; [] before the process has begun.

    The monotonic clock of Linux is the same for all processes, so times of two logs compare.
    """
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    pairs = [line.split() for line in lines if line.endswith("\n")]
    return [(int(stamp), int(at)) for stamp, at in pairs]
