"""Signals that end a command: nothing is left over, and imports make no errors of them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

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
    """A list that SIGINT, SIGTERM or SIGHUP is added to before it raises KeyboardInterrupt(number).

    What comes after the first does not disturb the clearing up, but a second SIGINT, which ends at
    once. A signal that is ignored (``nohup``), or that somebody handles already, stays so.
    """
    noted: list[int] = []

    def note(number: int, _: object) -> None:
        noted.append(number)
        for other in before:
            signal.signal(other, signal.SIG_DFL if other == signal.SIGINT else signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        found = {number: signal.getsignal(number) for number in _ENDING}
        usual = (signal.SIG_DFL, signal.default_int_handler)
        before = {number: handler for number, handler in found.items() if handler in usual}
    try:
        for number in before:
            signal.signal(number, note)
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
