"""Proof of equality with the reference, without its weights.

The reference's outputs were recorded for networks whose parameters follow a rule on their names.
The same parameters, sent through our checkpoint conversion, must give the same outputs.

Quantisation makes one exception necessary. A latent pixel may lie as far from one code as from
another, and rounding, which differs between machines and thread counts, then picks one: the
reference does not reproduce its own record there. Such ties are settled as recorded, and counted.
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
from safetensors.numpy import load_file
from torch import Tensor

from difiisr_models import reference_names
from difiisr_models.checkpoint import SCHEDULE, autoencoder_from_reference, unet_from_reference
from difiisr_models.published import PublishedModel
from difiisr_models.schedule import exponential_schedule
from difiisr_models.vq_autoencoder import VQAutoencoder, nearest_codes

TOLERANCE = 1e-4
TIE = 2e-5
"""Squared distances to the two nearest codes that differ by less are a tie in float32."""


@dataclass(frozen=True)
class ParityRow:
    """Largest absolute difference to one recorded output of the reference.

    Attributes:
        name: the recorded output.
        max_abs_diff: over all its values, once ties are settled as recorded.
        ties_settled: latent pixels given the second of two equally near codes (0 but by chance).
    """

    name: str
    max_abs_diff: float
    ties_settled: int = 0

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
        return model.sample_latent(y, noises.__getitem__, steps)

    def encoded() -> Tensor:
        return autoencoder.encode(rule_image("vq.image", (1, 3, 128, 128)))

    outputs: dict[str, Callable[[], Tensor]] = {
        "schedule.sqrt_etas": lambda: torch.from_numpy(np.sqrt(model.schedule.eta)),
        "unet.out": lambda: denoised("unet", 2, 64, [14, 3]),
        "unet_wide.out": lambda: denoised("unet_wide", 1, 128, [7]),
        "vq.z": encoded,
    }
    latents: dict[str, Callable[[], Tensor]] = {
        "vq.decoded": encoded,
        "sample.one_step": lambda: sampled(1),
        "sample.steps15": lambda: sampled(15),
    }
    rows = []
    for name in [*outputs, *latents]:
        if name not in expected:
            continue
        if progress is not None:
            progress(name)
        recorded = torch.from_numpy(expected[name])
        if name in outputs:
            rows.append(ParityRow(name, max_abs_diff(outputs[name](), recorded)))
        else:
            rows.append(ParityRow(name, *compare_decoded(autoencoder, latents[name](), recorded)))
    return rows


def max_abs_diff(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference of two tensors of one shape; NaN if one holds NaN."""
    if a.shape != b.shape:
        raise ValueError(f"cannot compare {tuple(a.shape)} with {tuple(b.shape)}")
    return float((a.double() - b.double()).abs().max())


def compare_decoded(autoencoder: VQAutoencoder, z: Tensor, recorded: Tensor) -> tuple[float, int]:
    """Largest difference of the decoded ``z (1, Z, h, w)``, and how many ties had to be settled.

    Only pixels whose two nearest codes are a :data:`TIE` may take the second of them.

    Args:
        autoencoder: decodes.
        z: before quantisation.
        recorded: (1, 3, a, b), the image or its upper left corner.
    """

    def decode(latent: Tensor) -> Tensor:
        return autoencoder.decode(latent)[..., : recorded.shape[-2], : recorded.shape[-1]]

    image = decode(z)
    codes = autoencoder.codebook
    pixels = z[0].flatten(1).T  # (h w, Z)
    near, index = torch.cdist(pixels.double(), codes.double()).square().topk(2, largest=False)
    ties = torch.nonzero(near[:, 1] - near[:, 0] < TIE)[:, 0].tolist()
    width, factor = z.shape[-1], autoencoder.config.factor
    settled = 0
    while ties and max_abs_diff(image, recorded) > TOLERANCE:
        y, x = divmod(int((image - recorded).abs().amax(dim=(0, 1)).argmax()), image.shape[-1])
        row, column = y // factor, x // factor
        pixel = min(ties, key=lambda tie: (tie // width - row) ** 2 + (tie % width - column) ** 2)
        ties.remove(pixel)
        taken = nearest_codes(pixels[pixel : pixel + 1], codes)
        other = z.clone()
        other[0].flatten(1)[:, pixel] = codes[index[pixel][index[pixel] != taken][0]]
        candidate = decode(other)
        if (candidate - recorded).abs().sum() < (image - recorded).abs().sum():
            image, z, settled = candidate, other, settled + 1
    return max_abs_diff(image, recorded), settled
