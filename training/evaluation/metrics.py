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
from scipy.ndimage import correlate
from scipy.special import gammaln
from scipy.stats import bootstrap
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn

from difiisr_models.resample import SCALE, downsample, pack
from difiisr_training.checkpoints import read_checkpoint
from difiisr_training.degradations import pillow_resize
from difiisr_training.guidance import spectral_loss
from difiisr_training.perceptual import read_features

_NIQE_BLOCK = 96
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
        self._net.load_state_dict(read_features(squeezenet_path))
        lin = read_checkpoint(lin_path)
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

    features = read_features(backbone)
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

    state = read_checkpoint(weights)
    network = MUSIQ(pretrained=False)
    network.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return _rating(network, device)


class Niqe:
    """Natural image quality evaluator (Mittal, Soundararajan, Bovik 2013); lower is more natural.

    Its pristine model was fitted to visible-light photographs: on thermal images compare values
    with each other and with that of the high-resolution frame, do not read them as absolute.
    """

    def __init__(self, path: Path) -> None:
        """Read the pristine model, arrays ``mu_pris_param (1, 36)``, ``cov_pris_param (36, 36)``
        and ``gaussian_window (7, 7)``; KeyError: the file holds no such arrays."""
        with np.load(path, allow_pickle=False) as arrays:
            names = ("mu_pris_param", "cov_pris_param", "gaussian_window")
            mean, self._covariance, self._window = (arrays[n].astype(np.float64) for n in names)
        self._mean = mean[0]

    def __call__(self, image: np.ndarray, data_range: float) -> float:
        """Score of one image, cut to whole blocks of 96 x 96 pixels.

        Raises:
            ValueError: too few blocks with any texture to fit a model to.
        """
        table = self.features(image, data_range)
        table = table[np.isfinite(table).all(axis=1)]
        if len(table) < 2:
            raise ValueError(
                f"NIQE needs at least two textured blocks of {_NIQE_BLOCK}x{_NIQE_BLOCK} pixels, "
                f"an image of {image.shape} has {len(table)}"
            )
        difference = self._mean - table.mean(axis=0)
        pooled = (self._covariance + np.cov(table, rowvar=False)) / 2
        return float(np.sqrt(difference @ np.linalg.pinv(pooled) @ difference))

    def features(self, image: np.ndarray, data_range: float) -> np.ndarray:
        """``(blocks, 36)``: 18 features of each block at full, then at half resolution."""
        h, w = (side // _NIQE_BLOCK * _NIQE_BLOCK for side in image.shape)
        if not (h and w):
            return np.empty((0, 36))
        whole = (image[:h, :w].astype(np.float32) * (255.0 / data_range)).round()
        half = pillow_resize(whole, h // 2, w // 2)
        columns = []
        for scaled, block in ((whole, _NIQE_BLOCK), (half, _NIQE_BLOCK // 2)):
            scaled = scaled.astype(np.float64)
            mu = correlate(scaled, self._window, mode="nearest")
            spread = correlate(scaled**2, self._window, mode="nearest") - mu**2
            columns.append(_block_features((scaled - mu) / (np.sqrt(np.abs(spread)) + 1), block))
        return np.concatenate(columns, axis=1)


def _block_features(mscn: np.ndarray, block: int) -> np.ndarray:
    """18 features per block: the shape of the coefficients and of four products of neighbours."""
    h, w = mscn.shape
    grid = mscn.reshape(h // block, block, w // block, block).swapaxes(1, 2)
    blocks = grid.reshape(-1, block, block)
    alpha, left, right = _fit_asymmetric_gaussian(blocks)
    columns = [alpha, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        alpha, left, right = _fit_asymmetric_gaussian(blocks * np.roll(blocks, shift, axis=(1, 2)))
        mean = (right - left) * np.exp(gammaln(2 / alpha) - gammaln(1 / alpha))
        columns += [alpha, mean, left, right]
    return np.stack(columns, axis=1)


def _fit_asymmetric_gaussian(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Moment matching of a generalised Gaussian per block (Lasmar 2009): shape, left, right."""
    flat = blocks.reshape(len(blocks), -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        left, right = (
            np.sqrt((flat**2 * side).sum(1) / side.sum(1)) for side in (flat < 0, flat > 0)
        )
        skew = left / right
        ratio = np.abs(flat).mean(1) ** 2 / (flat**2).mean(1)
        ratio = ratio * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    shapes = np.arange(0.2, 10.001, 0.001)
    ratios = np.exp(2 * gammaln(2 / shapes) - gammaln(1 / shapes) - gammaln(3 / shapes))
    alpha = shapes[np.abs(ratios - ratio[:, None]).argmin(axis=1)]
    spread = np.exp(0.5 * (gammaln(1 / alpha) - gammaln(3 / alpha)))
    return alpha, left * spread, right * spread


def _doubles(*images: np.ndarray) -> list[np.ndarray]:
    if len({image.shape for image in images}) > 1:
        raise ValueError(f"images of one size are compared, got {[i.shape for i in images]}")
    return [image.astype(np.float64) for image in images]


def _colours(image: np.ndarray, data_range: float, device: str) -> Tensor:
    """``(1, 3, H, W)`` float32, three equal channels in [0, 1]."""
    unit = torch.from_numpy(image.astype(np.float32) / np.float32(data_range)).to(device)
    return unit.expand(1, 3, -1, -1)


def _rating(network: nn.Module, device: str) -> Callable[[np.ndarray, float], float]:
    """Score of one ``(H, W)`` image in counts by a network that sees colours in [0, 1]."""
    network.eval().to(device)

    @torch.inference_mode()
    def rate(image: np.ndarray, data_range: float) -> float:
        return float(network(_colours(image, data_range, device).clamp(0, 1)))

    return rate
