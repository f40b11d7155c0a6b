"""What can run a network here, and where."""

from __future__ import annotations

import torch

BACKENDS = ("auto", "torch")


def resolve_device(name: str) -> torch.device:
    """``"auto"`` takes a CUDA GPU when there is one.

    Raises:
        ValueError: not a device that torch knows, or a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is not auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is not auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name!r} asked for, but torch sees {torch.cuda.device_count()} CUDA devices"
        )
    return device


def resolve_backend(name: str) -> str:
    """``"auto"`` takes the best that is present.

    Raises:
        ValueError: an unknown backend.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r} is not one of {', '.join(BACKENDS)}")
    return "torch"
