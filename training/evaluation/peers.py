"""Models to compare with: ours, published peers and bicubic, all as counts in, counts out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from difiisr_models import load_upscaler
from difiisr_models.resample import SCALE
from difiisr_training.data.images import pillow_resize
from difiisr_training.evaluation.peer_networks import Rlfn, Safmn

Upscale = Callable[[np.ndarray], np.ndarray]
"""``(H, W)`` uint8, uint16 or float32 counts -> ``(4H, 4W)`` of the same dtype and unit."""

_PUBLISHED: dict[str, tuple[str, Callable[[dict[str, Tensor]], nn.Module], float]] = {
    # name -> file, network, value of white in its input
    "safmn": ("safmn_ntire23_x4.pth", lambda state: _fill(Safmn(), state), 1.0),
    "rlfn": ("rlfn_x4.pth", lambda state: _fill(Rlfn(), state), 255.0),
    "realesrgan": ("realesr_general_x4v3_decoded_torch.pth", lambda state: _spandrel(state), 1.0),
}
PUBLISHED_NAMES = tuple(_PUBLISHED)


@dataclass(frozen=True)
class Contestant:
    """A model under evaluation.

    Attributes:
        name: as asked for, e.g. ``"safmn"`` or ``"runs/a@0.5"``.
        upscale: see :data:`Upscale`; every call is a stream of its own.
        weights_sha256: hash of its weights, "" without any.
        parameter_count: number of trained values.
    """

    name: str
    upscale: Upscale
    weights_sha256: str
    parameter_count: int


def load_contestant(name: str, weights: Path | None, device: str) -> Contestant:
    """Load one model.

    Args:
        name: ``"bicubic"`` (plain interpolation); ``"safmn"``, ``"rlfn"`` or ``"realesrgan"``;
            or a shipped model or weights folder, with ``@F`` to set its fidelity to F.
        weights: folder of the published peers' files; only they need it.
        device: ``"cpu"``, ``"cuda"``, ...

    Raises:
        FileNotFoundError: no such model or file.
        ValueError: a peer without ``weights``, or a fidelity outside 0..1.
        ModuleNotFoundError: ``spandrel`` is needed and absent.
    """
    if name == "bicubic":
        return Contestant(name, _bicubic, "", 0)
    if name in _PUBLISHED:
        if weights is None:
            raise ValueError(f"{name} needs the folder that holds {_PUBLISHED[name][0]}")
        return _load_published(name, weights, device)
    with_fidelity = re.fullmatch(r"(.+)@(\d*\.?\d+)", name)
    folder = with_fidelity[1] if with_fidelity else name
    settings = {"fidelity": float(with_fidelity[2])} if with_fidelity else {}
    up = load_upscaler(folder, device=device, **settings)

    def upscale(counts: np.ndarray) -> np.ndarray:
        up.reset()
        return up(counts)

    return Contestant(name, upscale, up.weights_sha256, up.parameter_count)


def _bicubic(counts: np.ndarray) -> np.ndarray:
    return pillow_resize(counts, counts.shape[0] * SCALE, counts.shape[1] * SCALE)


def load_image_teacher(
    name: str, weights: Path, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """A published peer as a function of images ``(B, 1, h, w)`` in any unit.

    Returns ``(B, 1, 4h, 4w)`` in that unit. Every image is shown to the peer from its own black to
    its own white: outside the range that it was trained on, its result may be anything.

    Raises:
        FileNotFoundError: the folder ``weights`` does not hold its file.
    """
    network, white = _published_network(name, weights, device)

    def teach(lr: Tensor) -> Tensor:
        lo, hi = lr.amin(dim=(1, 2, 3), keepdim=True), lr.amax(dim=(1, 2, 3), keepdim=True)
        span = (hi - lo).clamp(min=1e-6)
        colours = network(((lr - lo) * (white / span)).expand(-1, 3, -1, -1))
        return colours.mean(dim=1, keepdim=True) * (span / white) + lo

    return teach


def _published_network(
    name: str, weights: Path, device: str | torch.device
) -> tuple[nn.Module, float]:
    file, build, white = _PUBLISHED[name]
    state = torch.load(Path(weights) / file, map_location="cpu", weights_only=True)
    network = build(state.get("params", state)).eval().requires_grad_(False).to(device)
    return network, white


def _load_published(name: str, weights: Path, device: str) -> Contestant:
    network, white = _published_network(name, weights, device)
    path = Path(weights) / _PUBLISHED[name][0]

    def upscale(counts: np.ndarray) -> np.ndarray:
        lo, span = full_range(counts)
        unit = torch.from_numpy((counts.astype(np.float32) - lo) * (white / span)).to(device)
        with torch.inference_mode():
            colours = network(unit.expand(1, 3, -1, -1))
        grey = colours[0].mean(0).cpu().numpy() * (span / white) + lo
        if counts.dtype == np.float32:
            return grey
        limits = np.iinfo(counts.dtype)
        return np.rint(grey).clip(limits.min, limits.max).astype(counts.dtype)

    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Contestant(name, upscale, sha256, sum(p.numel() for p in network.parameters()))


def full_range(counts: np.ndarray) -> tuple[float, float]:
    """Black level and span that a photographic network is shown: 0..255, or the frame's own."""
    if counts.dtype == np.uint8:
        return 0.0, 255.0
    lo, hi = float(counts.min()), float(counts.max())
    return lo, max(hi - lo, 1e-6)


def _fill(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    network.load_state_dict(state)
    return network


def _spandrel(state: dict[str, Tensor]) -> nn.Module:
    try:
        from spandrel import ModelLoader
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"spandrel loads this peer and needs {error.name}: pip install 'difiisr_ros[eval]'"
        ) from error
    return ModelLoader("cpu").load_from_state_dict(state).model
