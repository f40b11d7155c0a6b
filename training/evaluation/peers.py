"""Models to compare with: ours, published peers and bicubic, all as counts in, counts out."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from difiisr_models import load_upscaler
from difiisr_models.checkpoint_reader import read_checkpoint
from difiisr_models.resample import SCALE, pack, unpack
from difiisr_models.tiling import Tile, plan_tiles, process_tiles
from difiisr_models.weights import MANIFEST_NAME, sha256_file
from difiisr_training.data.images import pillow_resize
from difiisr_training.evaluation.pairs import to_dtype
from difiisr_training.evaluation.peer_networks import Rlfn, Safmn

if TYPE_CHECKING:
    from spandrel import ModelLoader

Upscale = Callable[[np.ndarray], np.ndarray]
"""``(H, W)`` uint8, uint16 or float32 counts -> ``(4H, 4W)`` of the same dtype and unit."""

_PUBLISHED: dict[str, tuple[str, Callable[[dict[str, Tensor]], nn.Module], float]] = {
    # name -> file, network, value of white in its input
    "safmn": ("safmn_ntire23_x4.pth", lambda state: _fill(Safmn(), state), 1.0),
    "rlfn": ("rlfn_x4.pth", lambda state: _fill(Rlfn(), state), 255.0),
    "realesrgan": ("realesr_general_x4v3_decoded_torch.pth", lambda state: _spandrel(state), 1.0),
}
PUBLISHED_NAMES = tuple(_PUBLISHED)
PEER_SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")

_TILE, _OVERLAP = 256, 32  # larger frames are cut, as by our own upscaler: transformers need it
_SETTING = re.compile(
    r"(?P<model>.+)@(?:(?P<key>fidelity|steps|consistency|seed)=)?(?P<value>\d*\.?\d+)"
)
_WHOLE = ("steps", "seed")


@dataclass(frozen=True)
class Contestant:
    """A model under evaluation.

    Attributes:
        name: as asked for, e.g. ``"safmn"`` or ``"runs/a@0.5"``.
        upscale: see :data:`Upscale`; the calls since the last ``reset`` are one stream.
        weights_sha256: hash of its weights, "" without any.
        parameter_count: number of trained values.
        reset: forget the stream seen so far.
    """

    name: str
    upscale: Upscale
    weights_sha256: str
    parameter_count: int
    reset: Callable[[], None] = lambda: None

    @property
    def title(self) -> str:
        """The name without folders, and without the suffix of a file."""
        path = Path(self.name)
        return path.stem if path.suffix in PEER_SUFFIXES else path.name


def load_contestant(name: str, weights: Path | None, device: str) -> Contestant:
    """Load one model.

    Args:
        name: ``"bicubic"`` (plain interpolation); ``"safmn"``, ``"rlfn"`` or ``"realesrgan"``; a
            shipped model or weights folder; or a file (.pth, .safetensors) of a published network
            that spandrel knows. Ours and converted ones take settings: ``@0.5`` for the fidelity,
            ``@steps=15``, ``@consistency=0``, ``@seed=3``, one after the other.
        weights: folder of the three published peers' files; only they need it.
        device: ``"cpu"``, ``"cuda"``, ...

    Raises:
        FileNotFoundError: no such model or file.
        ValueError: a peer without ``weights``, a peer's file that is not safe to read or no x4
            network of one or three channels, or a setting out of range.
        ModuleNotFoundError: ``spandrel`` is needed and absent.
    """
    if name == "bicubic":
        return Contestant(name, _bicubic, "", 0)
    if name in _PUBLISHED:
        if weights is None:
            raise ValueError(f"{name} needs the folder that holds {_PUBLISHED[name][0]}")
        return _load_published(name, weights, device)
    path = Path(name).expanduser()
    if path.suffix in PEER_SUFFIXES and not (path.parent / MANIFEST_NAME).is_file():
        return _load_peer_file(name, path, device)
    model, settings = _split_settings(name)
    if model == "bicubic" and set(settings) != {"consistency"}:
        raise ValueError(f"{name}: the one setting of bicubic is @consistency=F, 0 to 1")
    up = load_upscaler(model, device=device, **settings)
    return Contestant(name, up, up.weights_sha256, up.parameter_count, up.reset)


def _split_settings(name: str) -> tuple[str, dict[str, float]]:
    """``"runs/a@0.5@steps=4"`` -> ``("runs/a", {"fidelity": 0.5, "steps": 4})``."""
    settings: dict[str, float] = {}
    while found := _SETTING.fullmatch(name):
        key = found["key"] or "fidelity"
        settings[key] = int(found["value"]) if key in _WHOLE else float(found["value"])
        name = found["model"]
    if "@" in Path(name).name and not Path(name).expanduser().exists():
        wrong = name.rpartition("@")[2]
        raise ValueError(
            f"{name}: no setting {wrong!r}; there are @FIDELITY, @fidelity=F, @steps=N, "
            "@consistency=F and @seed=N"
        )
    return name, settings


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
    network, white = load_published_network(name, weights, device)

    def teach(lr: Tensor) -> Tensor:
        lo, hi = lr.amin(dim=(1, 2, 3), keepdim=True), lr.amax(dim=(1, 2, 3), keepdim=True)
        span = (hi - lo).clamp(min=1e-6)
        colours = network(((lr - lo) * (white / span)).expand(-1, 3, -1, -1))
        return colours.mean(dim=1, keepdim=True) * (span / white) + lo

    return teach


def load_published_network(
    name: str, weights: Path, device: str | torch.device
) -> tuple[nn.Module, float]:
    """The bare network of a published peer, three channels, and the value of white in its input.

    Raises:
        FileNotFoundError: the folder ``weights`` does not hold its file.
    """
    file, build, white = _PUBLISHED[name]
    state = torch.load(Path(weights) / file, map_location="cpu", weights_only=True)
    network = build(state.get("params", state)).eval().requires_grad_(False)
    return network.to(device, memory_format=torch.channels_last), white  # as our own run


def _load_published(name: str, weights: Path, device: str) -> Contestant:
    network, white = load_published_network(name, weights, device)
    path = Path(weights) / _PUBLISHED[name][0]
    return _photographic(name, path, network, network, 3, white, device)


def _load_peer_file(name: str, path: Path, device: str) -> Contestant:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    loader = _spandrel_loader()
    try:
        found = loader.load_from_state_dict(_read_state(path))
    except Exception as error:  # of a class that only the library knows
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: spandrel knows no such network: {reason}") from error
    channels = (found.input_channels, found.output_channels)
    if found.scale != SCALE or channels not in ((1, 1), (3, 3)):
        raise ValueError(
            f"{path}: {found.architecture.name} x{found.scale} with {channels[0]} channels in and "
            f"{channels[1]} out; x{SCALE} with 1 or 3 channels is compared here"
        )
    found.to(torch.device(device)).eval()
    return _photographic(name, path, found, found.model, channels[0], 1.0, device)


def _photographic(
    name: str,
    path: Path,
    run: Callable[[Tensor], Tensor],
    network: nn.Module,
    channels: int,
    white: float,
    device: str,
) -> Contestant:
    """A network for photographs: it is shown 8-bit frames as they are, others from their own
    black to their own white, in all its channels alike; its result is their mean."""

    def process(lr: Tensor, _: list[Tile]) -> Tensor:
        return pack(run(lr.expand(-1, channels, -1, -1)).mean(1, keepdim=True))

    def upscale(counts: np.ndarray) -> np.ndarray:
        lo, span = full_range(counts)
        shown = torch.from_numpy((counts.astype(np.float32) - lo) * (white / span)).to(device)
        tiles = plan_tiles(*counts.shape, _TILE, _OVERLAP, balanced=True)
        with torch.inference_mode():
            packed = process_tiles(shown[None, None], tiles, process, 1, _OVERLAP)
        grey = unpack(packed)[0, 0].cpu().numpy() * (span / white) + lo
        return to_dtype(grey, counts.dtype)

    return Contestant(
        name, upscale, sha256_file(path), sum(p.numel() for p in network.parameters())
    )


def _read_state(path: Path) -> dict[str, Tensor]:
    """Parameters of a stranger's file; nothing in it is run."""
    if path.suffix == ".safetensors":
        return load_file(path)
    if zipfile.is_zipfile(path):
        return read_checkpoint(path)
    state = torch.load(path, map_location="cpu", weights_only=True)  # written by torch < 1.6
    return state.get("params_ema", state.get("params", state))


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
    return _spandrel_loader().load_from_state_dict(state).model


def _spandrel_loader() -> ModelLoader:
    try:
        from spandrel import ModelLoader
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"spandrel loads this peer and needs {error.name}: pip install {error.name}"
        ) from error
    except RuntimeError as error:  # torchvision's operators, of another build of torch
        raise ModuleNotFoundError(
            f"spandrel loads this peer and cannot be imported ({error}): install a torchvision "
            f"that fits torch {torch.__version__}, both for CPUs or both for CUDA"
        ) from error
    return ModelLoader("cpu")
