"""How busy a GPU is and how full, whatever process does it; None where nothing tells."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import threading

import torch

_PERIOD = 0.5  # seconds between two looks, each of which tells of about that long


class GpuLoad:
    """Watches a device while the context lasts; ``share`` is known after it."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = _gpu_name(device) if shutil.which("nvidia-smi") else ""
        self._found: list[float] = []
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._look_on, daemon=True)

    @property
    def share(self) -> float | None:
        """Mean share of the time in which it computed."""
        return statistics.fmean(self._found) if self._found else None

    def __enter__(self) -> GpuLoad:
        if self._gpu:
            self._watch.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._gpu:
            self._watch.join()

    def _look_on(self) -> None:
        query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not self._over.wait(_PERIOD):
            try:
                answer = subprocess.run(
                    ["nvidia-smi", "-i", self._gpu, *query],
                    capture_output=True,
                    text=True,
                    timeout=5.0,
                )
                self._found.append(float(answer.stdout) / 100)
            except (OSError, subprocess.TimeoutExpired, ValueError):  # "[N/A]", on some boards
                return


def free_mib(device: torch.device) -> float | None:
    """Free memory of a GPU."""
    return torch.cuda.mem_get_info(device)[0] / 2**20 if device.type == "cuda" else None


def _gpu_name(device: torch.device) -> str:
    """The name that nvidia-smi knows it by; indices differ where some are hidden."""
    if device.type != "cuda":
        return ""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"
