"""Sensor noise: how much of it there is, and what a frame looks like without most of it.

Standard deviations are in the unit of the frame that is given.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import dct
from torch import Tensor

from difiisr_models.frame_statistics import RANGE_QUANTILES, thinned
from difiisr_models.resample import kept

_BLOCK = 8  # pixels on a side of the blocks that noise is looked for in
_BLOCKS = 2_000  # that are looked at
_LEAST_VALID, _MOST_VALID = 0.5, 0.75  # of a block that is judged; the quarter with fewest gaps
_FLATTEST = 0.02  # share of the blocks; in them the scene has least to add
_FLATTEST_OF_WHITE_NOISE = 0.69  # their deviation over that of the noise, by simulation
_LOW, _HIGH = 9, 11  # sums of two frequencies: up to, and from, in the upper half of the DCT
_FALLS = 0.8  # texture's power in the high ones over what it has more in the low ones
_TEXTURE = 0.005  # of the span: what the flattest blocks of clean frames show as noise all the same
_PATCH = 5  # pixels on a side of the patches that are denoised
_THRESHOLD = 2.7  # deviations below which a coefficient is taken for noise
_LAG = 6  # frames
_WHITE = 1.3  # times: differences of white noise do not grow with the lag
_EVERY = 4  # frames: noise changes slowly, and looking for it takes as long as bicubic
_RATE = 0.5  # share of such a frame in the tracked variance
_FAR, _FAR_OF_SPAN = 2.0, 0.01  # times, and share of what the frame spans: no fluctuation
_STRIP = 16_000  # pixels that a CPU denoises at a time: they stay in its cache


def scene_noise(frame: np.ndarray, invalid: np.ndarray | None = None) -> tuple[float, float]:
    """Standard deviation of the noise, from one frame.

    In the flattest places there is noise, and fine texture. Texture has more power at low
    frequencies than at high ones, noise as much: what that difference tells of texture is taken
    off, and 0.5 % of the span of the scene (0.2 to 99.8 % of its pixels), in the square. Weaker
    noise counts as none.

    Args:
        frame: ``(H, W)``, any unit, without gaps.
        invalid: ``(H, W)`` bool, pixels that were gaps: what fills them has its own noise.

    Returns:
        the noise, and what noise and texture have together, same unit.
    """
    lo, hi = np.quantile(thinned(frame, _BLOCKS), RANGE_QUANTILES)
    power, low, high = _flattest_power(frame, invalid)
    texture = _FALLS * max(0.0, low - high) + (_TEXTURE * float(hi - lo)) ** 2
    return float(np.sqrt(max(0.0, high - texture))), float(np.sqrt(power))


def difference_noise(
    frame: np.ndarray, before: np.ndarray, invalid: np.ndarray | None = None
) -> float:
    """Standard deviation of the noise, from two frames of one stream: what differs in still places.

    Args:
        frame: ``(H, W)``, any unit.
        before: the frame before it.
        invalid: as of :func:`scene_noise`.

    Returns:
        standard deviation of the noise of either, same unit; more, where nothing stands still.
    """
    return float(np.sqrt(_flattest_power(frame.astype(np.float32) - before, invalid)[0] / 2))


def _flattest_power(frame: np.ndarray, invalid: np.ndarray | None) -> tuple[float, ...]:
    """Variance of the noise by the upper half of the DCT, and by its lowest and highest part.

    Noise is white, a scene is not: in the flattest 2 % of all 8x8 blocks the upper half holds
    noise, and little else. Blocks with saturated pixels, or with more gaps, are left out.
    """
    stride = max(1, int((frame.size / _BLOCKS) ** 0.5))
    lowest, highest = float(frame.min()), float(frame.max())
    unit = max(highest - lowest, float(np.finfo(np.float32).tiny))
    values = (frame.astype(np.float32) - np.float32(lowest)) / np.float32(unit)
    if frame.dtype.kind in "iu":
        ends = np.iinfo(frame.dtype)
        values[(frame == ends.min) | (frame == ends.max)] = np.nan
    kernels, frequency = _upper_half()
    power = (torch.from_numpy(_blocks(values, stride)) @ kernels).square_().numpy()
    if invalid is not None:
        valid = _blocks(~invalid, stride).mean(axis=1, dtype=np.float32)[:, None]
        least = max(_LEAST_VALID, float(np.quantile(valid, _MOST_VALID)))
        power = np.where(valid >= least, power / valid.clip(least), np.nan)
    power = power[~np.isnan(power[:, 0])]
    if len(power) == 0:
        return 0.0, 0.0, 0.0
    count = max(1, int(_FLATTEST * len(power)))
    flattest = power[np.argpartition(power.sum(axis=1), count - 1)[:count]].mean(axis=0)
    parts = flattest, flattest[frequency <= _LOW], flattest[frequency >= _HIGH]
    scale = (unit / _FLATTEST_OF_WHITE_NOISE) ** 2
    return tuple(scale * float(part.mean()) for part in parts)


def _blocks(values: np.ndarray, stride: int) -> np.ndarray:
    """Of ``(H, W)`` every n-th window along both sides, ``(windows, 64)``."""
    windows = np.lib.stride_tricks.sliding_window_view(values, (_BLOCK, _BLOCK))
    return windows[::stride, ::stride].reshape(-1, _BLOCK * _BLOCK)


class NoiseTracker:
    """The noise of a stream over time.

    Every fourth frame is judged: by itself at first, from the seventh on by its difference to
    earlier ones. Where nothing moves, that holds noise and nothing else, be the scene as textured
    as it may. It is believed where the difference to the frame before is as large as to the one six
    before. If it is smaller, the camera filters over time (as a Lepton does), or all of the scene
    moves, and the frame by itself tells better.

    One frame spoils no other: far more noise than before is believed when the next frame has it
    too, far less when the frame before had.
    """

    def __init__(self, known: float = 0.0) -> None:
        """``known``: of the camera's earlier frames, counts; 0 where nobody knows."""
        self._frames = 0
        self._earlier: deque[np.ndarray] = deque(maxlen=_LAG)
        self._variance = known**2 or None
        self._is_unsure = False  # the next frame is judged, whatever its number

    @property
    def deviation(self) -> float:
        """The noise of the frames so far, counts; 0 before any."""
        return float(np.sqrt(self._variance or 0.0))

    def follow(self, gain: float, offset: float) -> None:
        """All counts are from now on ``gain`` times what they were, plus ``offset``."""
        self._variance = (self._variance or 0.0) * gain**2
        earlier = (np.float32(gain) * each + np.float32(offset) for each in self._earlier)
        self._earlier = deque(earlier, maxlen=_LAG)

    def update(self, counts: np.ndarray, invalid: np.ndarray | None = None) -> float:
        """Take in a frame ``(H, W)`` whose ``invalid`` pixels are filled; its noise, counts."""
        earlier = self._earlier
        if earlier and np.array_equal(earlier[-1], counts):
            return self.deviation
        is_due = self._frames % _EVERY == 0
        if is_due or self._is_unsure or self._frames == 2:
            sigma, with_texture = scene_noise(counts, invalid)
            if len(earlier) == _LAG:
                near, far = (difference_noise(counts, earlier[i], invalid) for i in (-1, 0))
                if far < with_texture and far <= _WHITE * near:
                    sigma = far
            known, far_off = self.deviation, _FAR_OF_SPAN * float(np.ptp(counts))
            is_rise, is_fall = (a > _FAR * b + far_off for a, b in ((sigma, known), (known, sigma)))
            is_sure = self._is_unsure or self._variance is None
            if is_fall and not is_sure:
                is_sure = known > _FAR * scene_noise(earlier[-1], invalid)[0] + far_off
            is_far = is_rise or is_fall
            if self._variance is None or (is_far and is_sure):
                self._is_unsure, self._variance = self._variance is None or is_rise, sigma**2
            else:
                self._is_unsure = is_far
                if is_due and not is_far:
                    self._variance = self._variance * (1 - _RATE) + _RATE * sigma**2
        self._frames += 1
        earlier.append(counts)
        return self.deviation


def denoise(frame: Tensor, sigma: float) -> Tensor:
    """The frame with most of its white noise taken off, for a network that knows clean frames.

    Two passes over the DCT of all overlapping 5x5 patches: small coefficients are set to zero, then
    an empirical Wiener filter takes that result for the signal (Yu & Sapiro, IPOL 2011; Dabov et
    al., 2007 without the grouping).

    Args:
        frame: ``(1, 1, h, w)`` float32, h and w above 8.
        sigma: standard deviation of its noise, same unit; 0 leaves it as it is.

    Returns:
        ``(1, 1, h, w)``.
    """
    if sigma <= 0:
        return frame
    height, width = frame.shape[-2:]
    rows = height if frame.is_cuda else max(_STRIP // width, 2 * _PATCH)
    margin = 2 * (_PATCH - 1)
    padded = F.pad(frame, (margin,) * 4, mode="reflect")
    strips = (
        padded[..., top : min(top + rows, height) + 2 * margin, :] for top in range(0, height, rows)
    )
    return torch.cat([_denoised(strip, sigma) for strip in strips], dim=2)


def _denoised(frame: Tensor, sigma: float) -> Tensor:
    """``(1, 1, h, w)`` but the outermost 8 pixels."""
    kernels = _patch_kernels(frame.device, frame.dtype)
    noisy = F.conv2d(frame, kernels)
    large = F.hardshrink(noisy, _THRESHOLD * sigma)
    large[:, 0] = noisy[:, 0]
    is_kept = (large / (_THRESHOLD * sigma)).square_().clamp_(max=1)  # faster than a comparison
    is_kept[:, 0] = 1
    first = _from_patches(large, 1 / is_kept.sum(1, keepdim=True), kernels)
    inside = slice(_PATCH - 1, 1 - _PATCH)
    gain = F.conv2d(first, kernels).square_()
    gain = gain.div_(gain + sigma * sigma)
    gain[:, 0] = 1
    noisy = noisy[..., inside, inside] * gain
    return _from_patches(noisy, 1 / gain.square_().sum(1, keepdim=True), kernels)


def _from_patches(coefficients: Tensor, weight: Tensor, kernels: Tensor) -> Tensor:
    """The weighted mean of overlapping patches where all 25 are known, ``(1, 1, h - 4, w - 4)``."""
    height, width = (n + _PATCH - 1 for n in weight.shape[-2:])
    patches = kernels.flatten(1).T @ (coefficients * weight).flatten(2)
    total = F.fold(patches, (height, width), _PATCH)
    inside = slice(_PATCH - 1, 1 - _PATCH)
    return total[..., inside, inside] / F.avg_pool2d(weight, _PATCH, 1, divisor_override=1)


@kept
def _upper_half() -> tuple[Tensor, np.ndarray]:
    """DCT-II kernels of the upper half for a block, ``(64, 28)``, and their frequencies' sums."""
    frequency = np.add.outer(np.arange(_BLOCK), np.arange(_BLOCK)).ravel()
    upper = frequency >= _BLOCK
    kernels = _dct_kernels(_BLOCK).reshape(_BLOCK * _BLOCK, -1)[upper]
    return torch.tensor(kernels.T, dtype=torch.float32), frequency[upper]


@kept
def _patch_kernels(device: torch.device, dtype: torch.dtype) -> Tensor:
    """The DCT of a patch as convolution kernels, ``(25, 1, 5, 5)``."""
    kernels = _dct_kernels(_PATCH).reshape(_PATCH * _PATCH, 1, _PATCH, _PATCH)
    return torch.tensor(kernels, device=device, dtype=dtype)


def _dct_kernels(n: int) -> np.ndarray:
    """The two-dimensional DCT-II of ``n`` x ``n`` pixels, orthonormal, ``(n, n, n, n)``."""
    axis = dct(np.eye(n), axis=0, norm="ortho")
    return np.einsum("ia,jb->ijab", axis, axis)
