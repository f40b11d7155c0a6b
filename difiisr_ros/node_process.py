"""The node as a child process, for demo, bench and tests: DDS settings, parameters, log, end."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from difiisr_models.weights import share_dir

START_PATIENCE = 180.0  # seconds for the node to be ready, loading a large model included
STOP_PATIENCE = 30.0  # seconds that it may take to end after a signal
TAIL = 15  # lines of its log that an error shows
LAST_DOMAIN = 101  # highest DDS domain whose ports are no ephemeral ports on Linux
_CLAIMS = 21_000  # a domain is taken by who listens on the TCP port of this plus its number
_claims: list[socket.socket] = []
_domain: int | None = None


class ProcessFailed(ChildProcessError):
    """The node ended before it should, or not as it should; says what it logged."""


def missing_ros() -> str:
    """Why there is no ROS in this Python, or "" where there is."""
    check = "import rclpy, sensor_msgs.msg, diagnostic_msgs.msg"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    return (result.stderr.strip() or "import failed").splitlines()[-1] if result.returncode else ""


def own_domain(wanted: int | None = None) -> int:
    """The DDS domain of this process, which no other that asks here has while this one lives.

    ``wanted``: it shall be that one, whoever else is in it.
    """
    global _domain
    if wanted is not None:
        _domain = wanted
    if _domain is None:
        _domain = _free_domain()
    return _domain


def _free_domain() -> int:
    for domain in random.sample(range(1, LAST_DOMAIN + 1), LAST_DOMAIN):
        with suppress(OSError):
            _claims.append(socket.create_server(("127.0.0.1", _CLAIMS + domain)))
            return domain
    raise OSError("all DDS domains of this machine are taken")


def dds_environment() -> dict[str, str]:
    """This process's environment with a DDS domain of its own, and a profile for large images."""
    old = os.environ.get("ROS_DISTRO") in ("humble", "iron", "jazzy")
    profile = f"{'FASTRTPS' if old else 'FASTDDS'}_DEFAULT_PROFILES_FILE"  # Kilted renamed it
    return {
        "AMENT_PREFIX_PATH": sys.prefix,  # the wheels' own; a sourced distribution's wins
        profile: str(share_dir() / "config" / "fastdds.xml"),
        **os.environ,
        "ROS_DOMAIN_ID": str(own_domain()),
    }


def ros_arguments(parameters: Mapping[str, object], remaps: Mapping[str, str]) -> list[str]:
    """The shipped configuration with other ``parameters`` and topics (name in the node -> name)."""
    return [
        "--params-file",
        str(share_dir() / "config" / "sr.yaml"),
        *(part for name, value in parameters.items() for part in ("-p", f"{name}:={value}")),
        *(part for name, value in remaps.items() for part in ("-r", f"{name}:={value}")),
    ]


class NodeProcess(subprocess.Popen):
    """``python -m difiisr_ros.sr_node`` in the environment of :func:`dds_environment`.

    Its context ends it.

    Args:
        path: file for its output.
        arguments: after ``--ros-args``; see :func:`ros_arguments`.
        module: that is run.
    """

    def __init__(self, path: Path, *arguments: str, module: str = "difiisr_ros.sr_node") -> None:
        self._path = path
        command = [sys.executable, "-m", module, "--ros-args", *arguments]
        streams: Any = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        with path.open("w") as output:
            super().__init__(command, env=dds_environment(), stdout=output, **streams)

    def __exit__(self, *_: object) -> None:
        for end in (self.terminate, self.kill):
            end()
            with suppress(subprocess.TimeoutExpired):
                self.wait(5.0)

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self._path.read_text(errors="replace")

    def check(self) -> None:
        """Raise :class:`ProcessFailed` unless it still runs."""
        if (code := self.poll()) is not None:
            raise self._failure(f"ended with exit code {code}")

    def wait_until(self, done: Callable[[], bool], patience: float, what: str) -> None:
        """Poll ``done`` for ``patience`` seconds.

        Raises:
            ProcessFailed: it ended, or time is over; ``what`` was waited for.
        """
        until = time.monotonic() + patience
        while not done():
            self.check()
            if time.monotonic() > until:
                raise self._failure(f"gave nothing in {patience:.0f} s of waiting for {what}")
            time.sleep(0.1)

    def wait_for_log(self, text: str) -> None:
        """Wait until it has written ``text``; raises as :meth:`wait_until`."""
        self.wait_until(lambda: text in self.log, START_PATIENCE, repr(text))

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send a signal and return the exit code.

        Raises:
            ProcessFailed: it does not end in time; it is killed then.
        """
        self.send_signal(number)
        try:
            return self.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise self._failure(f"did not end in {STOP_PATIENCE:.0f} s") from None

    def _failure(self, what: str) -> ProcessFailed:
        said = f"the node process {what}; {self._path} ends:"
        return ProcessFailed("\n".join([said, *self.log.splitlines()[-TAIL:]]))
