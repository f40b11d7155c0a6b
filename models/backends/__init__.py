"""What runs a network: torch, ONNX Runtime or TensorRT, each behind :data:`NetworkRunner`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

NetworkRunner = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Runs a compact network: the arguments and the result of ``CompactNetwork.forward``."""
