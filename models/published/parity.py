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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor

from difiisr_models.diffusion import exponential_schedule
from difiisr_models.published import reference_names
from difiisr_models.published.convert import SCHEDULE, from_reference
from difiisr_models.published.sampler import PublishedModel
from difiisr_models.published.vq_autoencoder import VQAutoencoder, nearest_codes

TOLERANCE = 1e-4
TIE = 2e-5
"""Squared distances to the two nearest codes that differ by less are a tie in float32."""


class ParityRow(NamedTuple):
    """Largest absolute difference to one recorded output of the reference, ties settled."""

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
        values = rule_values(name, shape)
        if len(shape) > 1:
            values /= np.float32(math.sqrt(math.prod(shape[1:])))
        else:
            values *= np.float32(0.1)
            values += name.endswith("weight")
        is_buffer = reference_names.KNOWN_BUFFERS.search(name)
        state[name] = torch.zeros(shape) if is_buffer else torch.as_tensor(values)
    return state


@torch.inference_mode()
def run_parity(size: Literal["tiny", "full"], folder: Path) -> Iterator[ParityRow]:
    """Build the networks by the rule, run them and compare with what the reference gave.

    Args:
        size: ``tiny`` (seconds) or ``full`` (the published sizes: 700 MB, about a minute).
        folder: holds ``{size}_state_dict_shapes.json`` and ``{size}_expected.safetensors``.

    Yields:
        one row per recorded output that the folder has.
    """
    shapes = json.loads((folder / f"{size}_state_dict_shapes.json").read_text(encoding="utf-8"))
    expected = load_file(folder / f"{size}_expected.safetensors")
    unet, autoencoder = (
        from_reference(rule_state({name: tuple(n) for name, n in shapes[part].items()}), part)
        for part in ("unet", "autoencoder")
    )
    model = PublishedModel(unet, autoencoder, exponential_schedule(**SCHEDULE))
    noises = torch.from_numpy(rule_values("sample.noises", (16, 1, 3, 64, 64)))

    def image(name: str, *shape: int) -> Tensor:
        return torch.from_numpy(rule_values(name, shape)).clamp(-1.0, 1.0)

    def denoised(name: str, width: int, t: list[int]) -> Tensor:
        shape = (len(t), 3, 64, width)
        x = torch.from_numpy(rule_values(f"{name}.x", shape))
        return unet(x, torch.tensor(t), image(f"{name}.lq", *shape))

    def sampled(steps: int) -> Tensor:
        return model.sample_latent(image("sample.y", 1, 3, 64, 64), noises.__getitem__, steps)

    z = autoencoder.encode(image("vq.image", 1, 3, 128, 128))
    outputs: dict[str, Callable[[], Tensor]] = {
        "schedule.sqrt_etas": lambda: torch.from_numpy(np.sqrt(model.schedule.eta)),
        "unet.out": lambda: denoised("unet", 64, [14, 3]),
        "unet_wide.out": lambda: denoised("unet_wide", 128, [7]),
        "vq.z": lambda: z,
        "vq.decoded": lambda: z,
        "sample.one_step": lambda: sampled(1),
        "sample.steps15": lambda: sampled(15),
    }
    for name in filter(expected.__contains__, outputs):
        found, recorded = outputs[name](), torch.from_numpy(expected[name])
        if name == "vq.decoded" or name.startswith("sample."):  # of the latent, its image
            yield ParityRow(name, *compare_decoded(autoencoder, found, recorded))
        else:
            yield ParityRow(name, _max_abs_diff(found, recorded))


def _max_abs_diff(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference of two tensors of one shape; NaN if one holds NaN."""
    assert a.shape == b.shape, f"cannot compare {tuple(a.shape)} with {tuple(b.shape)}"
    return float((a.double() - b.double()).abs().max())


def compare_decoded(autoencoder: VQAutoencoder, z: Tensor, recorded: Tensor) -> tuple[float, int]:
    """Largest difference of the decoded ``z (1, Z, h, w)``, and how many ties had to be settled.

    Only pixels whose two nearest codes are a :data:`TIE` may take the second of them. ``recorded
    (1, 3, a, b)`` is the image or its upper left corner.
    """

    def decode(latent: Tensor) -> Tensor:
        return autoencoder.decode(latent)[..., : recorded.shape[-2], : recorded.shape[-1]]

    image = decode(z)
    codes = autoencoder.codebook
    pixels = z[0].flatten(1).T  # (h w, Z)
    near, index = torch.cdist(pixels.double(), codes.double()).square().topk(2, largest=False)
    ties = torch.nonzero(near[:, 1] - near[:, 0] < TIE)[:, 0].tolist()
    width, factor, settled = z.shape[-1], autoencoder.config.factor, 0
    while ties and _max_abs_diff(image, recorded) > TOLERANCE:
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
    return _max_abs_diff(image, recorded), settled
