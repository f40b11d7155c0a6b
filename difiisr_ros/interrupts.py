"""Ctrl-C during imports, where a KeyboardInterrupt becomes an error of whatever is imported."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_before: dict[int, object] = {}


def end_at_once(code: int, *signals: int) -> None:
    """Let ``signals`` end this process with exit code ``code`` and no traceback.

    Call it before imports that take long, and :func:`as_before` after them. A signal that is
    ignored, or that somebody handles already, stays so.
    """
    for number in signals:
        handler = signal.getsignal(number)
        if handler in (signal.SIG_DFL, signal.default_int_handler):
            _before[number] = handler
            signal.signal(number, lambda *_: os._exit(code))


def as_before() -> None:
    """End what :func:`end_at_once` began."""
    while _before:
        signal.signal(*_before.popitem())


@contextmanager
def interrupts_noted() -> Iterator[list[int]]:
    """A list that each SIGINT is added to, before it raises KeyboardInterrupt as ever."""
    noted: list[int] = []

    def note(number: int, frame: object) -> None:
        noted.append(number)
        signal.default_int_handler(number, frame)

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
