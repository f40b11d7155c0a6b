"""Child processes with their logs: started together, watched, stopped in order."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType

STOP_PATIENCE = 30.0  # seconds that a process may take to end after SIGINT
TAIL = 15  # lines of a log that an error shows


class ProcessFailed(RuntimeError):
    """A process of the demo ended before it should, or not as it should; says what it logged."""


class Processes:
    """Python modules run as processes; a context that leaves none behind.

    Inside the context SIGINT and SIGTERM only take effect in :meth:`wait_until`: never while a
    process is being started, which would then be nobody's.
    """

    def __init__(self, logs: Path, environment: dict[str, str]) -> None:
        self._logs = logs
        self._environment = environment
        self._running: dict[str, subprocess.Popen] = {}
        self._asked_to_stop = False

    def start(self, name: str, module: str, *arguments: str) -> None:
        """Run ``python -m module arguments``, logging to ``<logs>/<name>.log``."""
        with self.log(name).open("w") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def log(self, name: str) -> Path:
        """Log file of a process."""
        return self._logs / f"{name}.log"

    def pid(self, name: str) -> int:
        """Number of a running process."""
        return self._running[name].pid

    def wait_until(self, done: Callable[[], bool], patience: float, what: str) -> None:
        """Poll ``done`` while all processes live.

        Raises:
            ProcessFailed: one of them ended, or ``patience`` seconds are over.
            KeyboardInterrupt: SIGINT or SIGTERM came.
        """
        until = time.monotonic() + patience
        while not done():
            if self._asked_to_stop:
                raise KeyboardInterrupt
            for name, process in self._running.items():
                if process.poll() is not None:
                    raise self._failure(name, f"ended with exit code {process.returncode}")
            if time.monotonic() > until:
                raise ProcessFailed(f"{what}: nothing in {patience:.0f} s; logs in {self._logs}")
            time.sleep(0.1)

    def wait_for_end(self, name: str) -> None:
        """Wait until a process is done while the others live.

        Raises:
            ProcessFailed: another one ended, or this one with an exit code other than 0.
        """
        process = self._running.pop(name)
        try:
            self.wait_until(lambda: process.poll() is not None, float("inf"), name)
        except BaseException:
            self._running[name] = process
            raise
        if process.returncode:
            raise self._failure(name, f"ended with exit code {process.returncode}")

    def stop(self, name: str) -> None:
        """Ask a process to end by SIGINT.

        Raises:
            ProcessFailed: it does not end, or its exit code is not 0.
        """
        process = self._running[name]
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            raise self._failure(name, f"did not end in {STOP_PATIENCE:.0f} s") from None
        del self._running[name]
        if process.returncode:
            raise self._failure(name, f"ended with exit code {process.returncode}")

    def __enter__(self) -> Processes:
        self._handlers = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._asked_to_stop = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _failure(self, name: str, what: str) -> ProcessFailed:
        lines = self.log(name).read_text(errors="replace").splitlines()[-TAIL:]
        return ProcessFailed(
            "\n".join([f"the {name} process {what}; {self.log(name)} ends:", *lines])
        )
