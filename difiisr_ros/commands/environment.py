"""What numbers and times were taken with, for what verbs write."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

_PACKAGES = (
    "difiisr_ros", "lpips", "numpy", "onnxruntime", "pillow", "pycocotools", "pyiqa", "ros-rclpy",
    "rosbags", "scikit-image", "spandrel", "tensorrt", "tensorrt-rtx", "torch", "transformers",
)  # fmt: skip


def environment(device: str) -> dict[str, Any]:
    """What the numbers and times were taken with; packages that are absent are left out."""
    versions = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    named = f"{platform.processor() or platform.machine()}, {platform.system()}"
    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else named,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
    }
