"""Models to compare: ours, published peers and bicubic, all as counts in, counts out.

The networks of SAFMN (NTIRE 2023), RLFN and a small Real-ESRGAN are written from the papers and the
shapes of the published weights; their names follow those weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from difiisr_models import load_upscaler
from difiisr_models.compact import parameter_count
from difiisr_models.files import sha256_file
from difiisr_models.resample import SCALE, pack, unpack
from difiisr_models.settings import AskedPrecision
from difiisr_models.tiling import Tiling
from difiisr_models.weights import MANIFEST_NAME
from difiisr_training.checkpoints import read_checkpoint, refuse_bomb
from difiisr_training.data.annotations import images_by_name
from difiisr_training.degradations import bicubic
from difiisr_training.evaluation.inputs import full_range, to_dtype
from difiisr_training.evaluation.results import slug
from difiisr_training.perceptual import with_torchvision

PEER_SUFFIXES = (".pth", ".ckpt", ".safetensors")

_PRECISIONS = get_args(AskedPrecision)
_TILE, _OVERLAP = 256, 32  # larger frames are cut, as by our own upscaler: transformers need it


@dataclass(frozen=True, eq=False)
class Peer:
    """A model under comparison.

    ``upscale`` makes ``(4H, 4W)`` of ``(H, W)`` uint8, uint16 or float32 counts, of the same dtype
    and unit; the calls since the last ``reset`` are one stream.
    """

    name: str  # as asked for, e.g. "safmn" or "runs/a@0.5"
    upscale: Callable[[np.ndarray], np.ndarray]
    weights_sha256: str = ""  # or of the images of a folder of outputs
    parameters: int | None = 0  # trained values
    reset: Callable[[], None] = lambda: None
    is_recurrent: bool = False  # told of the frames before
    outputs: Mapping[str, Path] = field(default_factory=dict)  # of one that is not run, by frame

    @property
    def title(self) -> str:
        """The name without folders, and without the suffix of a file."""
        path = Path(self.name)
        if self.outputs:
            return self.name
        return path.stem if path.suffix in PEER_SUFFIXES else path.name


@dataclass(frozen=True)
class OutputFolder:
    """Output images of a method that does not run here: ``--outputs NAME=DIR``.

    ``folder`` holds an image per frame, named as the frame is (as the files of
    ``OUT/frames/SET/lr``); those of a set may lie in a folder of its name.
    """

    name: str
    folder: Path

    @classmethod
    def parse(cls, text: str) -> OutputFolder:
        """Read ``"CoRPLE=results/corple"``; ValueError: no name or no folder in it."""
        name, _, folder = text.partition("=")
        if not (name and folder):
            raise ValueError(f"{text!r}: write --outputs NAME=DIR")
        return cls(name, Path(folder).expanduser())

    def peer(self, set_name: str, sizes: dict[str, tuple[int, int]]) -> Peer:
        """What stands for a model of a set: the image of each frame.

        ``sizes``: of its low-resolution frames by their names, ``(h, w)``.

        Raises:
            FileNotFoundError: no such folder, or frames without an image.
            ValueError: an image that is not four times as large as its frame.
        """
        own = self.folder / slug(set_name)
        folder = own if own.is_dir() else self.folder
        found = images_by_name(folder)
        if missing := [name for name in sizes if name not in found]:
            raise FileNotFoundError(
                f"{self.name}: {folder} has no image for {len(missing)} of {len(sizes)} frames of "
                f"{set_name}: {', '.join(missing[:5])}; it has {', '.join(sorted(found)[:5])}"
            )
        for name, (height, width) in sizes.items():
            with Image.open(found[name]) as image:
                if image.size != (width * SCALE, height * SCALE):
                    raise ValueError(
                        f"{self.name}: {found[name]} is {image.width}x{image.height}, wanted "
                        f"{width * SCALE}x{height * SCALE}"
                    )
        sha256 = hashlib.sha256()
        for name in sizes:
            sha256.update(found[name].read_bytes())
        outputs = {name: found[name] for name in sizes}
        return Peer(self.name, _not_run, sha256.hexdigest(), None, outputs=outputs)


def _not_run(_: np.ndarray) -> np.ndarray:
    raise NotImplementedError("the images of a folder are read")


def load_peer(name: str, weights: Path | None, device: str, backend: str = "auto") -> Peer:
    """Load one model.

    Args:
        name: ``"bicubic"`` (plain interpolation, Pillow's); ``"safmn"``, ``"rlfn"`` or
            ``"realesrgan"``; what :func:`difiisr_models.load_upscaler` knows, as a shipped model,
            a weights folder or ``"bicubic-consistent"``, with :func:`split_settings`; or a file
            (.pth, .safetensors) of a published network that spandrel knows, or of one of the three
            by its published name.
        weights: folder of the three published peers' files; only they need it.
        device: ``"cpu"``, ``"cuda"``, ...
        backend: of what ``load_upscaler`` loads.

    Raises:
        FileNotFoundError: no such model or file.
        ValueError: a peer without ``weights``, a peer's file that is not safe to read or no x4
            network of one or three channels, or a setting out of range.
        ModuleNotFoundError: ``spandrel`` is needed and absent.
    """
    if name == "bicubic":  # what Pillow makes, bit by bit, of frames of any size
        return Peer(name, bicubic)
    path = Path(name).expanduser()
    if name in PUBLISHED_FILES:
        if weights is None:
            raise ValueError(f"{name} needs the folder that holds {PUBLISHED_FILES[name]}")
        path = weights / PUBLISHED_FILES[name]
    for published, file in PUBLISHED_FILES.items():
        if path.name == file:  # also one that was trained on
            network, white = load_published_network(published, path.parent, device)
            return _photographic(name, path, network, network, 3, white)
    if path.suffix in PEER_SUFFIXES and not (path.parent / MANIFEST_NAME).is_file():
        found = _spandrel_model(path).to(torch.device(device))
        return _photographic(name, path, found, found.model, found.input_channels, 1.0)
    model, settings = split_settings(name)
    if model == "bicubic":
        if settings.keys() != {"consistency"}:
            raise ValueError(f"{name}: the one setting of bicubic is @consistency=F, 0 to 1")
        model = "bicubic-consistent"
    up = load_upscaler(model, device=device, backend=backend, **settings)
    return Peer(name, up, up.weights_sha256, up.parameter_count, up.reset, up.is_recurrent)


def split_settings(name: str) -> tuple[str, dict[str, Any]]:
    """``"runs/a@0.5@steps=4"`` -> ``("runs/a", {"fidelity": 0.5, "steps": 4})``, else ValueError.

    ``@pipeline=published`` is the authors' own way of reading a frame, ``@precision=int8`` that of
    a robot's CPU.
    """
    model, settings = name, dict[str, Any]()
    while "@" in Path(model).name and not Path(model).expanduser().exists():
        model, _, setting = model.rpartition("@")
        key, _, value = setting.rpartition("=")
        key = key or "fidelity"
        try:
            read = {"fidelity": float, "consistency": float, "steps": int, "seed": int}
            words = {"consistency": ("auto",), "pipeline": ("published",), "precision": _PRECISIONS}
            is_word = value in words.get(key, ())
            settings.setdefault(key, value if is_word else read[key](value))
        except (KeyError, ValueError):
            raise ValueError(
                f"{name}: no setting {setting!r}; there are @FIDELITY, @fidelity=F, @steps=N, "
                "@consistency=F, @consistency=auto, @seed=N, @pipeline=published and @precision=P"
            ) from None
    return model, settings


def load_published_network(
    name: str, weights: Path, device: str | torch.device
) -> tuple[nn.Module, float]:
    """The bare network of a published peer, three channels, and the value of white in its input.

    Raises:
        FileNotFoundError: the folder ``weights`` does not hold its file.
    """
    file, build, white = _PUBLISHED[name]
    state, network = read_checkpoint(weights / file), build()
    try:
        network.load_state_dict(state.get("params", state))
    except (AttributeError, RuntimeError, TypeError) as error:
        raise ValueError(f"{weights / file} holds no {name}: {error}") from error
    network.eval().requires_grad_(False)
    # As our own run.
    return network.to(device, memory_format=torch.channels_last), white  # type: ignore[call-overload]  # not in its stubs


def _spandrel_model(path: Path) -> Any:
    """An x4 network of one or three channels by a file that holds tensors alone."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    with with_torchvision("spandrel"):
        from spandrel import ModelLoader
    try:
        refuse_bomb(path)
        found = ModelLoader("cpu").load_from_file(path).eval()
    except Exception as error:  # of a class that only the library knows
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: spandrel knows no such network: {reason}") from error
    channels = (found.input_channels, found.output_channels)
    if found.scale != SCALE or channels not in ((1, 1), (3, 3)):
        raise ValueError(
            f"{path}: {found.architecture.name} x{found.scale} with {channels[0]} channels in and "
            f"{channels[1]} out; x{SCALE} with 1 or 3 channels is compared here"
        )
    return found


def _photographic(
    name: str,
    path: Path,
    run: Callable[[Tensor], Tensor],
    network: nn.Module,
    channels: int,
    white: float,
) -> Peer:
    """A network for photographs: it is shown 8-bit frames as they are, others from their own
    black to their own white, in all its channels alike; its result is their mean."""
    device = next(network.parameters()).device

    @torch.inference_mode()
    def upscale(counts: np.ndarray) -> np.ndarray:
        lo, span = full_range(counts)
        shown = torch.from_numpy((counts.astype(np.float32) - lo) * (white / span)).to(device)
        tiling = Tiling(counts.shape, _TILE, _OVERLAP, batch=1)
        for places in tiling.batches():
            tile = places[0].cut(shown[None, None]).expand(-1, channels, -1, -1)
            tiling.add(places, pack(run(tile).mean(1, keepdim=True)))
        grey = unpack(tiling.result())[0, 0].cpu().numpy() * (span / white) + lo
        return to_dtype(grey, counts.dtype)

    return Peer(name, upscale, sha256_file(path), parameter_count(network))


class Safmn(nn.Module):
    """SAFMN as entered in the NTIRE 2023 efficiency challenge (Sun et al., ICCV 2023).

    ``(B, 3, h, w)`` in [0, 1] -> ``(B, 3, 4h, 4w)``; sides of at least 16 pixels.
    """

    def __init__(self, channels: int = 36, blocks: int = 8) -> None:
        super().__init__()
        self.to_feat = nn.Conv2d(3, channels, 3, padding=1)
        self.norm = _GlobalResponseNorm(channels)
        self.feats = nn.Sequential(*(_SafmnBlock(channels) for _ in range(blocks)))
        self.to_img = nn.Sequential(nn.Conv2d(channels, 48, 3, padding=1), nn.PixelShuffle(4))

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve a batch."""
        features = self.feats(self.norm(self.to_feat(x)))
        return self.to_img(features) + F.interpolate(x, scale_factor=4, mode="bilinear")


class Rlfn(nn.Module):
    """RLFN (Kong et al., CVPR workshops 2022).

    ``(B, 3, h, w)`` in [0, 255] -> ``(B, 3, 4h, 4w)``; sides of at least 15 pixels.
    """

    def __init__(self, channels: int = 52, blocks: int = 6) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(3, channels, 3, padding=1)
        self._names = [f"block_{i + 1}" for i in range(blocks)]
        for name in self._names:
            self.add_module(name, _RlfnBlock(channels))
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.upsampler = nn.Sequential(nn.Conv2d(channels, 48, 3, padding=1), nn.PixelShuffle(4))

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve a batch."""
        shallow = deep = self.conv_1(x)
        for name in self._names:
            deep = self.get_submodule(name)(deep)
        return self.upsampler(self.conv_2(deep) + shallow)


class Realesrgan(nn.Module):
    """realesr-general-x4v3 (Wang et al., ICCV workshops 2021; its repository calls it SRVGG).

    ``(B, 3, h, w)`` in [0, 1] -> ``(B, 3, 4h, 4w)``.
    """

    def __init__(self, channels: int = 64, convolutions: int = 32) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, channels, 3, padding=1), nn.PReLU(channels)]
        for _ in range(convolutions):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.PReLU(channels)]
        self.body = nn.Sequential(*layers, nn.Conv2d(channels, 48, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve a batch."""
        return F.pixel_shuffle(self.body(x), 4) + F.interpolate(x, scale_factor=4)


class _GlobalResponseNorm(nn.Module):
    """x + beta + gamma x n, with n a channel's spatial norm over the mean norm of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        norm = x.square().sum((2, 3), keepdim=True).sqrt()
        return x + self.beta + self.gamma * x * norm / (norm.mean(1, keepdim=True) + 1e-6)


class _SafmnBlock(nn.Module):
    """Multi-scale modulation, then a convolutional channel mixer, both residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.safm = _Modulation(channels)
        self.ccm = nn.ModuleDict({"ccm": nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False),
            nn.GELU(),
            nn.Conv2d(2 * channels, channels, 1, bias=False),
        )})  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.safm(x)
        return x + self.ccm["ccm"](x)


class _Modulation(nn.Module):
    """A quarter of the channels each at scale 1, 1/4, 1/8 and 1/16; their mix scales the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        part = channels // 4
        self.mfr = nn.ModuleList(
            nn.Conv2d(part, part, 3, padding=1, groups=part, bias=False) for _ in range(4)
        )
        self.aggr = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        parts = []
        for part, conv, shrink in zip(x.chunk(4, 1), self.mfr, (1, 4, 8, 16), strict=True):
            if h % shrink or w % shrink:
                part = F.adaptive_max_pool2d(part, (h // shrink, w // shrink))
            elif shrink > 1:  # the same, in an operator that exports
                part = F.max_pool2d(part, shrink)
            parts.append(F.interpolate(conv(part), size=(h, w), mode="nearest"))
        return F.gelu(self.aggr(torch.cat(parts, 1))) * x


class _RlfnBlock(nn.Module):
    """Three convolutions with a residual, then spatial attention."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.c1_r, self.c2_r, self.c3_r = (
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3)
        )
        self.c5 = nn.Conv2d(channels, channels, 1)
        self.esa = _SpatialAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for conv in (self.c1_r, self.c2_r, self.c3_r):
            h = F.leaky_relu(conv(h), 0.05)
        return self.esa(self.c5(h + x))


class _SpatialAttention(nn.Module):
    def __init__(self, channels: int, narrow: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, narrow, 1)
        self.conv_f = nn.Conv2d(narrow, narrow, 1)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, stride=2)
        self.conv3 = nn.Conv2d(narrow, narrow, 3, padding=1)
        self.conv4 = nn.Conv2d(narrow, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.conv1(x)
        wide = self.conv3(F.max_pool2d(self.conv2(narrow), 7, stride=3))
        wide = F.interpolate(wide, x.shape[-2:], mode="bilinear")
        return x * self.conv4(wide + self.conv_f(narrow)).sigmoid()


_PUBLISHED: dict[str, tuple[str, type[nn.Module], float]] = {
    # name -> file, network, value of white in its input
    "safmn": ("safmn_ntire23_x4.pth", Safmn, 1.0),
    "rlfn": ("rlfn_x4.pth", Rlfn, 255.0),
    "realesrgan": ("realesr_general_x4v3_decoded_torch.pth", Realesrgan, 1.0),
}
PUBLISHED_FILES = {name: file for name, (file, _, _) in _PUBLISHED.items()}
"""Files of published weights by the peers' names."""
