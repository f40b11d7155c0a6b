"""Image quality of one-channel images: PSNR, SSIM, LPIPS-squeeze, spectra, consistency, NIQE.

Images are ``(H, W)`` arrays of any real dtype in counts; ``data_range`` is the width of the scale
that they live on (255 for 8 bit). Everything is computed on whole images, no border is cut off.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difiisr_models.resample import SCALE, downsample, pack
from difiisr_training.data.images import pillow_resize
from difiisr_training.guidance.spectral_loss import spectral_loss

_SSIM_SIGMA, _SSIM_RADIUS, _K1, _K2 = 1.5, 5, 0.01, 0.03
_NIQE_BLOCK = 96


def psnr(sr: np.ndarray, hr: np.ndarray, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal images.

    Raises:
        ValueError: the shapes differ.
    """
    _check_pair(sr, hr)
    mse = np.square(sr.astype(np.float64) - hr.astype(np.float64)).mean()
    return float("inf") if mse == 0 else float(10 * np.log10(data_range**2 / mse))


def ssim(sr: np.ndarray, hr: np.ndarray, data_range: float) -> float:
    """Structural similarity (Wang et al. 2004), Gaussian window of sigma 1.5, population moments.

    Raises:
        ValueError: the shapes differ, or a side is shorter than the window of 11 pixels.
    """
    _check_pair(sr, hr)
    window = 2 * _SSIM_RADIUS + 1
    if min(sr.shape) < window:
        raise ValueError(f"SSIM needs at least {window}x{window} pixels, got {sr.shape}")
    x, y = (torch.from_numpy(image.astype(np.float64)) for image in (sr, hr))
    taps = torch.exp(
        -0.5 * (torch.arange(window) - _SSIM_RADIUS).double().square() / _SSIM_SIGMA**2
    )
    taps /= taps.sum()
    moments = torch.stack([x, y, x * x, y * y, x * y])[:, None]
    moments = F.conv2d(F.conv2d(moments, taps.view(1, 1, 1, -1)), taps.view(1, 1, -1, 1))[:, 0]
    mx, my, xx, yy, xy = moments
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    luminance = (2 * mx * my + c1) / (mx * mx + my * my + c1)
    structure = (2 * (xy - mx * my) + c2) / (xx - mx * mx + yy - my * my + c2)
    return float((luminance * structure).mean())


def spectral_distance(sr: np.ndarray, hr: np.ndarray, data_range: float) -> float:
    """L_visual of the paper (Eq. 10-11) between images scaled to [-1, 1]; 0 to 4, lower is better.

    Raises:
        ValueError: the shapes differ.
    """
    _check_pair(sr, hr)
    a, b = (
        torch.from_numpy(image.astype(np.float64) * (2 / data_range) - 1)[None, None]
        for image in (sr, hr)
    )
    return float(spectral_loss(a, b))


def consistency(sr: np.ndarray, lr: np.ndarray) -> np.ndarray:
    """|D(SR) - LR| in counts, ``(h, w)`` float64; D is antialiased bicubic /4.

    Rounding alone leaves some tenths of a count: ``sr`` is rounded, and ``lr`` may be.

    Args:
        sr: ``(4h, 4w)`` counts.
        lr: ``(h, w)`` counts.

    Raises:
        ValueError: the sizes do not fit.
    """
    if sr.shape != (lr.shape[0] * SCALE, lr.shape[1] * SCALE):
        raise ValueError(f"an image x{SCALE} of {lr.shape} is compared, got {sr.shape}")
    packed = pack(torch.from_numpy(sr.astype(np.float64))[None, None])
    return np.abs(downsample(packed)[0, 0].numpy() - lr)


class LpipsSqueeze(nn.Module):
    """LPIPS v0.1 on SqueezeNet 1.1 (Zhang et al. 2018); report it as "LPIPS-squeeze".

    The distance is the mean over pixels of the weighted squared difference of unit-length feature
    vectors, summed over seven layers. Not comparable with LPIPS on AlexNet or VGG.
    """

    def __init__(self, squeezenet_path: Path, lin_path: Path, device: str = "cpu") -> None:
        """Read local files.

        Args:
            squeezenet_path: torchvision's ``squeezenet1_1`` weights (whole, or ``features`` only).
            lin_path: the linear layers, ``weights/v0.1/squeeze.pth`` of the ``lpips`` package.
            device: where to compute.

        Raises:
            FileNotFoundError: a file is missing.
            RuntimeError: a file holds other weights.
        """
        super().__init__()
        self._net = _squeezenet_features()
        state = torch.load(squeezenet_path, map_location="cpu", weights_only=True)
        names = {name.removeprefix("features."): value for name, value in state.items()}
        self._net.load_state_dict(
            {k: v for k, v in names.items() if not k.startswith("classifier")}
        )
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
        _check_pair(sr, hr)
        return self.distance(self.features(sr, data_range), self.features(hr, data_range))

    @torch.inference_mode()
    def features(self, image: np.ndarray, data_range: float) -> list[Tensor]:
        """Unit-length features of the seven layers, to compare one image with many."""
        unit = torch.from_numpy(image.astype(np.float32) * (2.0 / data_range) - 1.0).to(
            self._device
        )
        shift = unit.new_tensor([-0.030, -0.088, -0.188])[:, None, None]
        scale = unit.new_tensor([0.458, 0.448, 0.450])[:, None, None]
        h, found = ((unit - shift) / scale)[None], []
        for index, layer in enumerate(self._net):
            h = layer(h)
            if index in _LPIPS_TAPS:
                found.append(h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    @torch.inference_mode()
    def distance(self, a: list[Tensor], b: list[Tensor]) -> float:
        """LPIPS of two results of :meth:`features`."""
        layers = zip(a, b, self._lin, strict=True)
        return float(sum(F.conv2d((x - y).square(), w).mean() for x, y, w in layers))


class Niqe:
    """Natural image quality evaluator (Mittal, Soundararajan, Bovik 2013); lower is more natural.

    Its pristine model was fitted to visible-light photographs: on thermal images compare values
    with each other and with that of the high-resolution frame, do not read them as absolute.
    """

    def __init__(self, path: Path) -> None:
        """Read the pristine model: ``mu_pris_param (1, 36)``, ``cov_pris_param (36, 36)``.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it holds no such arrays.
        """
        with np.load(path, allow_pickle=False) as arrays:
            shapes = {name: arrays[name].shape for name in arrays.files}
            wanted = {
                "mu_pris_param": (1, 36),
                "cov_pris_param": (36, 36),
                "gaussian_window": (7, 7),
            }
            if any(shapes.get(name) != shape for name, shape in wanted.items()):
                raise ValueError(f"{path} holds {shapes}, a NIQE model holds {wanted}")
            self._mean = arrays["mu_pris_param"].astype(np.float64)[0]
            self._covariance = arrays["cov_pris_param"].astype(np.float64)
            self._window = torch.from_numpy(arrays["gaussian_window"].astype(np.float64))[
                None, None
            ]

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
        scaled = (image[:h, :w].astype(np.float32) * (255.0 / data_range)).round()
        features = []
        for scale in (1, 2) if h and w else ():
            if scale == 2:
                scaled = pillow_resize(scaled, h // 2, w // 2)
            mscn = _local_contrast(torch.from_numpy(scaled.astype(np.float64)), self._window)
            features.append(_block_features(mscn.numpy(), _NIQE_BLOCK // scale))
        return np.concatenate(features, axis=1) if features else np.empty((0, 36))


def _check_pair(sr: np.ndarray, hr: np.ndarray) -> None:
    if sr.shape != hr.shape or sr.ndim != 2:
        raise ValueError(
            f"two images (H, W) of one size are compared, got {sr.shape} and {hr.shape}"
        )


class _Fire(nn.Module):
    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x), self.expand3x3(x)], 1).relu()


_LPIPS_TAPS = (1, 4, 7, 9, 10, 11, 12)


def _squeezenet_features() -> nn.Sequential:
    """The convolutional part of SqueezeNet 1.1 (Iandola 2016), numbered as in torchvision."""
    pool = {"kernel_size": 3, "stride": 2, "ceil_mode": True}
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), nn.MaxPool2d(**pool),
        _Fire(64, 16, 64), _Fire(128, 16, 64), nn.MaxPool2d(**pool),
        _Fire(128, 32, 128), _Fire(256, 32, 128), nn.MaxPool2d(**pool),
        _Fire(256, 48, 192), _Fire(384, 48, 192), _Fire(384, 64, 256), _Fire(512, 64, 256),
    )  # fmt: skip


def _local_contrast(image: Tensor, window: Tensor) -> Tensor:
    """Mean-subtracted, contrast-normalised coefficients: (i - mu) / (sigma + 1)."""
    padded = F.pad(image[None, None], (3, 3, 3, 3), mode="replicate")
    mu = F.conv2d(padded, window)
    sigma = (F.conv2d(padded.square(), window) - mu.square()).abs().sqrt()
    return ((image - mu) / (sigma + 1))[0, 0]


def _block_features(mscn: np.ndarray, block: int) -> np.ndarray:
    """18 features per block: the shape of the coefficients and of four products of neighbours."""
    h, w = mscn.shape
    blocks = mscn.reshape(h // block, block, w // block, block).swapaxes(1, 2)
    blocks = blocks.reshape(-1, block, block)
    alpha, left, right = _fit_asymmetric_gaussian(blocks)
    columns = [alpha, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        alpha, left, right = _fit_asymmetric_gaussian(blocks * np.roll(blocks, shift, axis=(1, 2)))
        mean = (right - left) * np.exp(_lgamma(2 / alpha) - _lgamma(1 / alpha))
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
    ratios = np.exp(2 * _lgamma(2 / shapes) - _lgamma(1 / shapes) - _lgamma(3 / shapes))
    alpha = shapes[np.abs(ratios - ratio[:, None]).argmin(axis=1)]
    spread = np.exp(0.5 * (_lgamma(1 / alpha) - _lgamma(3 / alpha)))
    return alpha, left * spread, right * spread


def _lgamma(x: np.ndarray) -> np.ndarray:
    return torch.from_numpy(x).lgamma().numpy()
