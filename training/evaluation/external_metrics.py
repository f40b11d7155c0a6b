"""Metrics of other libraries: LPIPS on AlexNet and VGG, CLIP-IQA, MUSIQ.

Their networks are read from files that the user has; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

LPIPS_BACKBONES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}
"""Torchvision's own names of the files."""
CLIP_FILE, MUSIQ_FILE = "RN50.pt", "musiq_koniq_ckpt-e95806b9.pth"


class LpipsPackage:
    """LPIPS v0.1 of the ``lpips`` package (Zhang et al. 2018); report it with its backbone."""

    def __init__(self, net: Literal["alex", "vgg"], backbone: Path, device: str = "cpu") -> None:
        """Read torchvision's ``alexnet`` or ``vgg16`` weights; the package brings the rest.

        Raises:
            FileNotFoundError: no such file.
            RuntimeError: it holds other weights.
            ModuleNotFoundError: the package is absent.
        """
        from lpips import LPIPS

        state = torch.load(backbone, map_location="cpu", weights_only=True)
        features = {
            name.removeprefix("features."): value
            for name, value in state.items()
            if name.startswith("features.")
        }
        self._model = LPIPS(net=net, pnet_rand=True, verbose=False).eval()
        for index in range(1, self._model.L + 1):
            part: nn.Module = getattr(self._model.net, f"slice{index}")
            part.load_state_dict({name: features[name] for name in part.state_dict()})
        self._model.requires_grad_(False).to(device)
        self._device = device

    @torch.inference_mode()
    def __call__(self, sr: np.ndarray, hr: np.ndarray, data_range: float) -> float:
        """Distance of two ``(H, W)`` images in counts; 0 for equal ones, larger is worse."""
        a, b = (_colours(image, data_range, self._device) * 2 - 1 for image in (sr, hr))
        return float(self._model(a, b))


class Iqa:
    """A network that rates one image without reference; higher is better."""

    def __init__(self, network: Callable[[Tensor], Tensor], device: str) -> None:
        """``network``: ``(1, 3, H, W)`` in [0, 1] -> one number."""
        self._network, self._device = network, device

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, data_range: float) -> float:
        """Score of one ``(H, W)`` image in counts."""
        return float(self._network(_colours(image, data_range, self._device).clamp(0, 1)))


def load_clip_iqa(clip: Path, device: str) -> Iqa:
    """CLIP-IQA (Wang et al., AAAI 2023) of the ``pyiqa`` package.

    Args:
        clip: OpenAI's ``RN50.pt``.
        device: where to compute.

    Raises:
        FileNotFoundError: no such file.
        ModuleNotFoundError: the package is absent.
    """
    if not clip.is_file():
        raise FileNotFoundError(f"no file {clip}")
    from pyiqa.archs.clipiqa_arch import CLIPIQA

    network = CLIPIQA(backbone=str(clip)).eval()
    return Iqa(network.to(device), device)


def load_musiq(weights: Path, device: str) -> Iqa:
    """MUSIQ (Ke et al., ICCV 2021) of the ``pyiqa`` package, trained on KonIQ-10k.

    Args:
        weights: ``musiq_koniq_ckpt-e95806b9.pth`` of that package.
        device: where to compute.

    Raises:
        FileNotFoundError: no such file.
        RuntimeError: it holds other weights.
        ModuleNotFoundError: the package is absent.
    """
    from pyiqa.archs.musiq_arch import MUSIQ

    state = torch.load(weights, map_location="cpu", weights_only=True)
    network = MUSIQ(pretrained=False).eval()
    network.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return Iqa(network.to(device), device)


def _colours(image: np.ndarray, data_range: float, device: str) -> Tensor:
    unit = torch.from_numpy(image.astype(np.float32) / np.float32(data_range)).to(device)
    return unit.expand(1, 3, -1, -1)
