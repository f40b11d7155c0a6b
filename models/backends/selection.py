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


def resolve_precision(name: str, device: torch.device) -> torch.dtype | None:
    """``"fp32"`` is no autocast; ``"bf16"`` and ``"fp16"`` are its dtype.

    Raises:
        ValueError: an unknown precision, or one that the device does not compute in.
    """
    dtypes = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    if name not in dtypes:
        raise ValueError(f"precision {name!r} is not one of {', '.join(dtypes)}")
    if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ValueError(f"{torch.cuda.get_device_name(device)} has no bf16; use fp16 or fp32")
    return dtypes[name]
