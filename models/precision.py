"""Half precision as a property of a network's layers, the same in torch and in exported graphs."""

from __future__ import annotations

import copy

import torch
from torch import nn

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Of convolutions and matrix products; None leaves them in float32, as all else always is."""


def with_precision(module: nn.Module, precision: str) -> nn.Module:
    """A copy whose convolutions and linear layers hold and compute half; fp32 copies as it is.

    Each such layer casts what it is given; all else computes in what reaches it, and the networks
    cast to float32 by themselves where they must (norms, softmax, code distances). The module's
    own result is float32.
    """
    dtype = PRECISIONS[precision]
    module = copy.deepcopy(module)
    if dtype is None:
        return module
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.to(dtype)
            layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype),))
    module.register_forward_hook(lambda _, inputs, output: output.float())
    return module
