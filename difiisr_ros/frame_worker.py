"""One worker thread behind a mailbox of one frame: the newest waiting frame wins."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

THREAD_NAME = "frame_worker"


class Stopped(Exception):
    """The worker was stopped before the frame was delivered."""


Frame = TypeVar("Frame")
Result = TypeVar("Result")


class FrameWorker(Generic[Frame, Result]):
    """Computes frames one at a time; while one is computed, at most one waits.

    `compute` runs in the worker thread, then `deliver` with its result. An exception of either goes
    to `failed`, and the thread goes on with the next frame; so does :class:`Stopped`, of each frame
    that `stop` was called before.

    Attributes:
        computing_since: monotonic seconds, None while it waits.
    """

    def __init__(
        self,
        compute: Callable[[Frame], Result],
        deliver: Callable[[Result], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._compute = compute
        self._deliver = deliver
        self._failed = failed
        self.computing_since: float | None = None
        self._waiting: Frame | None = None
        self._stopping = False
        self._changed = threading.Condition()
        # A daemon, so that a frame of minutes cannot keep a process from ending.
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
        self._thread.start()

    def submit(self, frame: Frame) -> bool:
        """Hand over a frame without waiting; True if it replaced one that was still waiting."""
        with self._changed:
            replaced = self._waiting is not None
            self._waiting = frame
            self._changed.notify()
        return replaced

    def stop(self, timeout: float) -> bool:
        """Forget the waiting frame, end the thread; False if it still computes after `timeout` s.

        Nothing is delivered after `stop` returned True; after False, the frame being computed is
        dropped when it is done.
        """
        with self._changed:
            self._stopping = True
            waiting, self._waiting = self._waiting, None
            self._changed.notify()
        if waiting is not None:
            self._failed(Stopped())
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._waiting is not None)
                if self._stopping:
                    return
                frame: Any = self._waiting
                self._waiting = None
            self.computing_since = time.monotonic()
            try:
                result: Any = self._compute(frame)
                if self._stopping:
                    raise Stopped
                self._deliver(result)
            except Exception as error:
                self._failed(error)
            self.computing_since = None
            # Hold no frame while waiting for the next one.
            frame = result = None


def any_computing() -> bool:
    """Whether any worker of this process, stopped or not, is still alive."""
    return any(thread.name == THREAD_NAME for thread in threading.enumerate())
