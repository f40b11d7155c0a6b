"""Training samples: pairs of low- and high-resolution crops, each a pure function of its number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from difiisr_models.radiometry import NETWORK_LIMIT, robust_range
from difiisr_models.resample import SCALE
from difiisr_training.images import crop_to_multiple, pillow_resize
from torch import Tensor
from torch.utils.data import Dataset

_MARGIN = 4  # low-resolution pixels cut off again, so that no crop shows a border of its own


@dataclass(frozen=True)
class CropConfig:
    """How samples are drawn.

    Attributes:
        lr_size: side of the low-resolution crop, pixels.
        noisy_share: share of samples whose low-resolution crop gets sensor noise.
        max_noise: its largest standard deviation, as a share of the frame's span.
        gain_jitter: the normalised contrast is multiplied by up to this factor, or divided by it.
        offset_jitter: the normalised level is shifted by up to this much.
    """

    lr_size: int = 32
    noisy_share: float = 0.15
    max_noise: float = 0.02
    gain_jitter: float = 1.5
    offset_jitter: float = 0.3


@dataclass(frozen=True)
class Frame:
    """One high-resolution training frame in counts, with the range that normalises it."""

    counts: np.ndarray
    lo: float
    span: float


def prepare_frame(counts: np.ndarray, scale: float, min_side: int) -> Frame | None:
    """Resize a frame to ``scale`` and find its range; ``None`` when it is smaller than ``min_side``."""
    h, w = (round(side * scale) for side in counts.shape)
    if min(h, w) < min_side:
        return None
    resized = counts if scale == 1.0 else pillow_resize(counts, h, w)
    found = robust_range(resized)
    return Frame(crop_to_multiple(resized, SCALE), found.lo, found.span)


class CropDataset(Dataset):
    """Sample ``i`` is the same in every run with the same seed, whatever worker draws it.

    ``dataset[i]`` -> ``(lr, hr)``: float32 ``(1, s, s)`` and ``(1, 4s, 4s)`` in network units.
    """

    def __init__(
        self, groups: list[tuple[float, list[Frame]]], config: CropConfig, seed: int, length: int
    ) -> None:
        """``groups``: (weight, frames) per source; ``length``: number of samples of the whole run."""
        weights = np.array([weight for weight, _ in groups], dtype=np.float64)
        self._groups = [frames for _, frames in groups]
        self._probability = weights / weights.sum()
        self._config, self._seed, self._length = config, seed, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.Generator(np.random.Philox(key=[self._seed, index]))
        frames = self._groups[rng.choice(len(self._groups), p=self._probability)]
        frame = frames[rng.integers(len(frames))]
        lr, hr = _draw_pair(frame, self._config, rng)
        return torch.from_numpy(lr)[None], torch.from_numpy(hr)[None]


def crop_side(config: CropConfig) -> int:
    """High-resolution pixels on a side that a frame must have to be drawn from."""
    return (config.lr_size + 2 * _MARGIN) * SCALE


def _draw_pair(
    frame: Frame, config: CropConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    side, margin = crop_side(config), _MARGIN * SCALE
    top, left = (rng.integers(0, n - side + 1) for n in frame.counts.shape)
    hr = frame.counts[top : top + side, left : left + side]
    hr = np.rot90(hr, rng.integers(4))
    hr = np.ascontiguousarray(hr[:, ::-1] if rng.random() < 0.5 else hr)
    lr = pillow_resize(hr, side // SCALE, side // SCALE).astype(np.float32)
    if rng.random() < config.noisy_share:
        sigma = rng.uniform(0.0, config.max_noise) * frame.span
        lr = lr + rng.normal(0.0, sigma, lr.shape).astype(np.float32)
    polarity = 1.0 if rng.random() < 0.5 else -1.0  # white-hot or black-hot
    gain = polarity * config.gain_jitter ** rng.uniform(-1.0, 1.0)
    offset = rng.uniform(-config.offset_jitter, config.offset_jitter)

    def to_network(counts: np.ndarray) -> np.ndarray:
        n = gain * (2.0 * (counts.astype(np.float32) - frame.lo) / frame.span - 1.0) + offset
        return n.clip(-NETWORK_LIMIT, NETWORK_LIMIT).astype(np.float32)

    cut = slice(_MARGIN, -_MARGIN)
    cut_hr = slice(margin, -margin)
    return to_network(lr[cut, cut]), to_network(hr[cut_hr, cut_hr])
