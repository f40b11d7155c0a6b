"""The header stamp of a serialised ROS 2 message, read without knowing its type."""

from __future__ import annotations

import struct


def stamp_of(raw: bytes) -> int:
    """Header stamp in nanoseconds of the CDR bytes of any message that begins with a header.

    Raises:
        ValueError: there are too few bytes for a stamp.
    """
    if len(raw) < 12:
        raise ValueError(f"{len(raw)} bytes are too few for a message with a header")
    seconds, nanoseconds = struct.unpack_from("<iI" if raw[1] & 1 else ">iI", raw, 4)
    return seconds * 1_000_000_000 + nanoseconds
