"""Half precision as a property of a network's layers, the same in torch and in exported graphs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Of convolutions and matrix products; None leaves them in float32, as all else always is."""


@contextmanager
def tf32_products(allowed: bool) -> Iterator[None]:
    """Whether a GPU may round the factors of float32 matrix products to TF32, while this lasts.

    It is a switch of the process, which any library or the environment may have set.
    """
    switch = torch.backends.cuda.matmul
    # From torch 2.9 on there are two names for it: writing the old one sets both, reading it fails
    # where they differ.
    newer = hasattr(switch, "fp32_precision")
    before = switch.fp32_precision == "tf32" if newer else switch.allow_tf32
    switch.allow_tf32 = allowed
    try:
        yield
    finally:
        switch.allow_tf32 = before


def with_precision(module: nn.Module, precision: str) -> nn.Module:
    """A copy whose convolutions and linear layers hold and compute half; fp32 copies as it is.

    Each such layer casts what it is given; all else computes in what reaches it, and the networks
    cast to float32 by themselves where they must (norms, softmax, code distances). The module's
    own result is float32.
    """
    dtype, module = PRECISIONS[precision], copy.deepcopy(module)
    if dtype is not None:
        for layer in module.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.to(dtype)
                layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype),))
        module.register_forward_hook(lambda _, inputs, output: output.float())
    return module
