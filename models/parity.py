"""Proof of equality with the reference, without its weights.

The reference's outputs were recorded for networks whose parameters follow a rule on their names.
The same parameters, sent through our checkpoint conversion, must give the same outputs.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from difiisr_models import reference_names
from difiisr_models.checkpoint import SCHEDULE, autoencoder_from_reference, unet_from_reference
from difiisr_models.published import PublishedModel
from difiisr_models.schedule import exponential_schedule
from safetensors.numpy import load_file
from torch import Tensor

TOLERANCE = 1e-4


@dataclass(frozen=True)
class ParityRow:
    """Largest absolute difference to one recorded output of the reference."""

    name: str
    max_abs_diff: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within :data:`TOLERANCE` (false for NaN)."""
        return self.max_abs_diff <= TOLERANCE


def rule_values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 values that depend on the name alone (Philox keyed by its CRC-32)."""
    generator = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode())))
    return generator.standard_normal(size=shape, dtype=np.float32)


def rule_state(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A reference state dict by the rule: unit-gain weights, scales near 1, small biases.

    Buffers are zeros: our networks compute their own.
    """
    state = {}
    for name, shape in shapes.items():
        if reference_names.KNOWN_BUFFERS.search(name):
            state[name] = torch.zeros(shape)
            continue
        values = rule_values(name, shape)
        if len(shape) > 1:
            values /= np.float32(math.sqrt(math.prod(shape[1:])))
        else:
            values *= np.float32(0.1)
            values += name.endswith("weight")
        state[name] = torch.from_numpy(values)
    return state


def rule_image(name: str, shape: tuple[int, ...]) -> Tensor:
    """Image input by the rule, clamped to [-1, 1]."""
    return torch.from_numpy(rule_values(name, shape)).clamp(-1.0, 1.0)


@torch.inference_mode()
def run_parity(
    size: Literal["tiny", "full"],
    folder: Path,
    progress: Callable[[str], None] | None = None,
) -> list[ParityRow]:
    """Build the networks by the rule, run them and compare with what the reference gave.

    Args:
        size: ``tiny`` (seconds) or ``full`` (the published sizes: 700 MB, about a minute).
        folder: holds ``{size}_state_dict_shapes.json`` and ``{size}_expected.safetensors``.
        progress: told the name of each comparison as it begins.

    Returns:
        One row per recorded output that the folder has.

    Raises:
        FileNotFoundError: a file is not there.
    """
    folder = Path(folder)
    shapes = json.loads((folder / f"{size}_state_dict_shapes.json").read_text(encoding="utf-8"))
    expected = load_file(folder / f"{size}_expected.safetensors")

    def state(part: str) -> dict[str, Tensor]:
        return rule_state({name: tuple(shape) for name, shape in shapes[part].items()})

    unet = unet_from_reference(state("unet"))
    autoencoder = autoencoder_from_reference(state("autoencoder"))
    model = PublishedModel(unet, autoencoder, exponential_schedule(**SCHEDULE))
    noises = torch.from_numpy(rule_values("sample.noises", (16, 1, 3, 64, 64)))

    def denoised(name: str, batch: int, width: int, t: list[int]) -> Tensor:
        shape = (batch, 3, 64, width)
        x = torch.from_numpy(rule_values(f"{name}.x", shape))
        return unet(x, torch.tensor(t), rule_image(f"{name}.lq", shape))

    def sampled(steps: int) -> Tensor:
        y = rule_image("sample.y", (1, 3, 64, 64))
        return model.sample(y, lambda k, _: noises[k], steps, autocast=None)

    def encoded() -> Tensor:
        return autoencoder.encode(rule_image("vq.image", (1, 3, 128, 128)))

    outputs: dict[str, Callable[[], Tensor]] = {
        "schedule.sqrt_etas": lambda: torch.from_numpy(np.sqrt(model.schedule.eta)),
        "unet.out": lambda: denoised("unet", 2, 64, [14, 3]),
        "unet_wide.out": lambda: denoised("unet_wide", 1, 128, [7]),
        "vq.z": encoded,
        "vq.decoded": lambda: autoencoder.decode(encoded()),
        "sample.one_step": lambda: sampled(1),
        "sample.steps15": lambda: sampled(15),
    }
    rows = []
    for name, compute in outputs.items():
        if name not in expected:
            continue
        if progress is not None:
            progress(name)
        rows.append(ParityRow(name, float(np.abs(compute().numpy() - expected[name]).max())))
    return rows
