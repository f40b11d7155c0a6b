"""Image quality of one-channel images, each a number; and how sure their mean over frames is.

Images are ``(H, W)`` arrays of any real dtype in counts; ``data_range`` is the width of the scale
that they live on (255 for 8 bit). Everything is computed on whole images, no border is cut off;
ValueError: two images differ in size.
Networks are read from files that the user has; nothing is downloaded: FileNotFoundError without
them, RuntimeError for other weights, ModuleNotFoundError without a network's package.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import bootstrap
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn

from difiisr_models.resample import SCALE, downsample, pack
from difiisr_training.guidance import spectral_loss

_LPIPS_TAPS = (1, 4, 7, 9, 10, 11, 12)


def mean_and_interval(values: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Mean over frames ``(N,)``, and its 95 % percentile interval of 2000 resamples (Efron 1979).

    Frames of one film resemble each other, so that the interval holds for these scenes and is too
    narrow for others. The seed is fixed. NaN = no value, left out; all NaN without any value, and
    the mean alone, twice, for one frame; an infinite value gives an interval of NaN.
    """
    values = values[~np.isnan(values)]
    mean = float(values.mean()) if values.size else math.nan
    if not math.isfinite(mean):
        return mean, (math.nan, math.nan)
    if len(values) == 1:
        return mean, (mean, mean)
    drawn = bootstrap(
        (values,), np.mean, n_resamples=2000, batch=100, method="percentile",
        rng=np.random.default_rng(0),
    )  # fmt: skip
    low, high = map(float, drawn.confidence_interval)
    return mean, (low, high)


def psnr(sr: np.ndarray, hr: np.ndarray, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal images."""
    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(*_doubles(hr, sr), data_range=data_range))


def ssim(sr: np.ndarray, hr: np.ndarray, data_range: float) -> float:
    """Structural similarity (Wang et al. 2004), Gaussian window of sigma 1.5, population moments.

    ValueError: a side is shorter than the window of 11 pixels.
    """
    return float(
        structural_similarity(
            *_doubles(sr, hr), data_range=data_range, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )
    )  # fmt: skip


def spectral_distance(sr: np.ndarray, hr: np.ndarray, data_range: float) -> float:
    """L_visual of the paper (Eq. 10-11) of images scaled to [-1, 1]; 0 to 4, lower is better."""
    a, b = (torch.from_numpy(i * (2 / data_range) - 1)[None, None] for i in _doubles(sr, hr))
    return float(spectral_loss(a, b))


def consistency(sr: np.ndarray, lr: np.ndarray) -> np.ndarray:
    """|D(SR) - LR| of ``(4h, 4w)`` and ``(h, w)`` counts, float64; D is antialiased bicubic /4.

    Rounding alone leaves some tenths of a count: ``sr`` is rounded, and ``lr`` may be.
    """
    if sr.shape != (lr.shape[0] * SCALE, lr.shape[1] * SCALE):
        raise ValueError(f"an image x{SCALE} of {lr.shape} is compared, got {sr.shape}")
    packed = pack(torch.from_numpy(sr.astype(np.float64))[None, None])
    return np.abs(downsample(packed)[0, 0].numpy() - lr)


class LpipsSqueeze(nn.Module):
    """LPIPS v0.1 on SqueezeNet 1.1 (Zhang et al. 2018); report it as "LPIPS-squeeze".

    The distance is the mean over pixels of the weighted squared difference of unit-length feature
    vectors, summed over seven layers. Not comparable with LPIPS on AlexNet or VGG. The ``lpips``
    package needs a torchvision that fits torch; training and its checks must run without.
    """

    def __init__(self, squeezenet_path: Path, lin_path: Path, device: str = "cpu") -> None:
        """Read torchvision's ``squeezenet1_1`` weights, whole or ``features`` only, and the linear
        layers, ``weights/v0.1/squeeze.pth`` of the ``lpips`` package."""
        super().__init__()
        pool: dict[str, Any] = {"kernel_size": 3, "stride": 2, "ceil_mode": True}
        self._net = nn.Sequential(  # SqueezeNet 1.1 (Iandola 2016), numbered as in torchvision
            nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), nn.MaxPool2d(**pool),
            _Fire(64, 16, 64), _Fire(128, 16, 64), nn.MaxPool2d(**pool),
            _Fire(128, 32, 128), _Fire(256, 32, 128), nn.MaxPool2d(**pool),
            _Fire(256, 48, 192), _Fire(384, 48, 192), _Fire(384, 64, 256), _Fire(512, 64, 256),
        )  # fmt: skip
        self._net.load_state_dict(_features(squeezenet_path))
        lin = torch.load(lin_path, map_location="cpu", weights_only=True)
        try:
            self._lin = [lin[f"lin{i}.model.1.weight"].to(device) for i in range(len(_LPIPS_TAPS))]
        except KeyError as error:
            raise RuntimeError(f"{lin_path} holds no LPIPS-squeeze weights: no {error}") from error
        self.requires_grad_(False).eval().to(device)
        self._device = device

    @torch.inference_mode()
    def forward(self, sr: np.ndarray, hr: np.ndarray, data_range: float) -> float:
        """Distance of two images in counts; 0 for equal images, larger is worse."""
        h = torch.cat([_colours(image, data_range, self._device) * 2 - 1 for image in (sr, hr)])
        shift = h.new_tensor([-0.030, -0.088, -0.188])[:, None, None]
        scale = h.new_tensor([0.458, 0.448, 0.450])[:, None, None]
        h, total, lin = (h - shift) / scale, 0.0, iter(self._lin)
        for index, layer in enumerate(self._net):
            h = layer(h)
            if index in _LPIPS_TAPS:
                a, b = h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10)
                total += float(F.conv2d((a - b).square()[None], next(lin)).mean())
        return total


class _Fire(nn.Module):
    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x), self.expand3x3(x)], 1).relu()


def load_lpips(
    net: Literal["alex", "vgg"], backbone: Path, device: str = "cpu"
) -> Callable[[np.ndarray, np.ndarray, float], float]:
    """LPIPS v0.1 of the ``lpips`` package (Zhang et al. 2018); report it with its backbone.

    ``backbone``: torchvision's ``alexnet`` or ``vgg16`` weights; the package brings the rest. Gives
    the distance of two ``(H, W)`` images in counts, as :class:`LpipsSqueeze`.
    """
    from lpips import LPIPS

    features = _features(backbone)
    model = LPIPS(net=net, pnet_rand=True, verbose=False).eval().requires_grad_(False)
    for index in range(1, model.L + 1):
        part: nn.Module = getattr(model.net, f"slice{index}")
        part.load_state_dict({name: features[name] for name in part.state_dict()})
    model.to(device)

    @torch.inference_mode()
    def distance(sr: np.ndarray, hr: np.ndarray, data_range: float) -> float:
        return float(model(*(_colours(image, data_range, device) * 2 - 1 for image in (sr, hr))))

    return distance


def load_clip_iqa(clip: Path, device: str) -> Callable[[np.ndarray, float], float]:
    """CLIP-IQA (Wang et al., AAAI 2023) of the ``pyiqa`` package, by OpenAI's ``RN50.pt``."""
    from pyiqa.archs.clipiqa_arch import CLIPIQA

    return _rating(CLIPIQA(backbone=str(clip)), device)


def load_musiq(weights: Path, device: str) -> Callable[[np.ndarray, float], float]:
    """MUSIQ (Ke et al., ICCV 2021) of ``pyiqa``, by its weights for KonIQ-10k."""
    from pyiqa.archs.musiq_arch import MUSIQ

    state = torch.load(weights, map_location="cpu", weights_only=True)
    network = MUSIQ(pretrained=False)
    network.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return _rating(network, device)


def _doubles(*images: np.ndarray) -> list[np.ndarray]:
    if len({image.shape for image in images}) > 1:
        raise ValueError(f"images of one size are compared, got {[i.shape for i in images]}")
    return [image.astype(np.float64) for image in images]


def _colours(image: np.ndarray, data_range: float, device: str) -> Tensor:
    """``(1, 3, H, W)`` float32, three equal channels in [0, 1]."""
    unit = torch.from_numpy(image.astype(np.float32) / np.float32(data_range)).to(device)
    return unit.expand(1, 3, -1, -1)


def _features(path: Path) -> dict[str, Tensor]:
    """The convolutions of a torchvision classifier's weights."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    names = {name.removeprefix("features."): value for name, value in state.items()}
    return {name: value for name, value in names.items() if not name.startswith("classifier")}


def _rating(network: nn.Module, device: str) -> Callable[[np.ndarray, float], float]:
    """Score of one ``(H, W)`` image in counts by a network that sees colours in [0, 1]."""
    network.eval().to(device)

    @torch.inference_mode()
    def rate(image: np.ndarray, data_range: float) -> float:
        return float(network(_colours(image, data_range, device).clamp(0, 1)))

    return rate
