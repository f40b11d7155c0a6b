"""How a process of ours behaves: signals end it and leave nothing over, freed memory is reused.

By default the C library gives large blocks back to the system as soon as they are freed, the pools
of all threads but the first among them, and gets new ones, page by page, for the next frame: for
2560x2048 images that costs more than all the copying.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_AGAIN = 0.05  # seconds

_before: dict[int, Any] = {}

# <malloc.h> of the GNU C library
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST = 1 << 30

_KERNELS = 128  # convolutions of one shape that are kept


class Interrupt(KeyboardInterrupt):
    """Of one signal, its number. (Python ends by SIGINT after any KeyboardInterrupt in an ``exec``,
    caught or not, but not after one of another class.)"""


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
    """A list that SIGINT, SIGTERM or SIGHUP is added to before it raises an :class:`Interrupt`.

    What comes after the first does not disturb the clearing up, but a second SIGINT, which ends at
    once. A signal that is ignored (``nohup``), or that somebody handles already, stays so.
    """
    noted: list[int] = []

    def note(number: int, _: object) -> None:
        noted.append(number)
        for other in before:
            signal.signal(other, signal.SIG_DFL if other == signal.SIGINT else signal.SIG_IGN)
        raise Interrupt(number)

    def again(lost: sys.UnraisableHookArgs) -> None:
        """A finalizer or a callback of an import has swallowed the interrupt: it comes again."""
        if not isinstance(lost.exc_value, Interrupt):
            hook(lost)
            return
        for number in before:
            signal.signal(number, note)
        threading.Timer(_AGAIN, os.kill, (os.getpid(), noted[0])).start()

    before, hook = {}, sys.unraisablehook
    if threading.current_thread() is threading.main_thread():
        found = {number: signal.getsignal(number) for number in _ENDING}
        usual = (signal.SIG_DFL, signal.default_int_handler)
        before = {number: handler for number, handler in found.items() if handler in usual}
    try:
        sys.unraisablehook = again
        for number in before:
            signal.signal(number, note)
        yield noted
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def keep_freed_memory() -> bool:
    """Let this process reuse the memory it frees, and not return it; False where it cannot.

    Call it once, before anything begins a thread: the import of rclpy does, and a thread that has a
    pool of its own keeps it for others after it. It needs the GNU C library. What torch keeps of
    frames of other sizes is bounded, too: 50 MB after some hundred sizes otherwise.
    """
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):  # read as torch begins
        os.environ.setdefault(name, str(_KERNELS))
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # In this order: a trim threshold alone would send every large block back at once.
    settings = {_M_MMAP_THRESHOLD: _LARGEST, _M_TRIM_THRESHOLD: _LARGEST, _M_ARENA_MAX: 1}
    return all(mallopt(name, value) for name, value in settings.items())


def return_freed_memory() -> None:
    """Give all that is free now back to the system, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
