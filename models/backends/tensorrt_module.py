"""The one TensorRT that is installed, and its log."""

from __future__ import annotations

import functools
import logging
from collections import deque
from types import ModuleType
from typing import Any

_LOG = logging.getLogger(__name__)
_REMEMBERED = 8  # complaints; more would not fit an error's text


def import_tensorrt() -> ModuleType:
    """``tensorrt``, or ``tensorrt_rtx`` where only that is installed; both have the same API.

    Raises:
        ModuleNotFoundError: neither is installed.
    """
    try:
        import tensorrt
    except ModuleNotFoundError:
        try:
            import tensorrt_rtx as tensorrt
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "neither tensorrt nor tensorrt_rtx is installed: see docs/platforms.md for the "
                "packages of each platform, or pip install tensorrt-rtx on an RTX GPU"
            ) from error
    return tensorrt


class Complaints:
    """The last errors that TensorRT logged: what it raises none for it returns None or False."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_REMEMBERED)

    def add(self, line: str) -> None:
        """Remember a line of the log."""
        self._lines.append(line)

    def take(self) -> str:
        """All of them, to end an error's text with; they are forgotten."""
        text = "; ".join(self._lines)
        self._lines.clear()
        return f" TensorRT says: {text}" if text else " TensorRT says nothing about it."


@functools.cache
def tensorrt_logger() -> tuple[Any, Complaints]:
    """The process's TensorRT logger (TensorRT keeps the first that it is given) and what it kept.

    Everything goes to Python's logging: errors and warnings as such, the rest as debug output.
    """
    trt = import_tensorrt()
    complaints = Complaints()
    levels = {
        trt.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.Severity.ERROR: logging.ERROR,
        trt.ILogger.Severity.WARNING: logging.WARNING,
    }

    class PythonLogger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, logging.DEBUG)
            if level == logging.ERROR:
                complaints.add(message)
            _LOG.log(level, "TensorRT: %s", message)

    return PythonLogger(), complaints
