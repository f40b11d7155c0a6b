"""Training samples: pairs of low- and high-resolution crops, each a pure function of its number."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from difiisr_models.radiometry import NETWORK_LIMIT, CountRange, robust_range
from difiisr_models.resample import SCALE
from difiisr_training.data.images import ImageSource, crop_to_multiple, load_images, pillow_resize
from difiisr_training.degradations.compression import agc_range
from difiisr_training.degradations.mix import DegradationConfig, choose_kind, degrade
from difiisr_training.ranges import require

log = logging.getLogger(__name__)

_MARGIN = 4  # low-resolution pixels cut off again, so that no crop shows a border of its own


@dataclass(frozen=True)
class CropConfig:
    """How samples are drawn.

    Attributes:
        lr_size: side of the low-resolution crop, pixels.
        gain_jitter: the normalised contrast is multiplied by up to this factor, or divided by it.
        offset_jitter: the normalised level is shifted by up to this much.
        inverted_share: share of samples whose counts are turned over, white-hot to black-hot.
        rotated: crops are turned by quarters as well as mirrored.
        degradation: how the low-resolution crop is made of the high-resolution one.
    """

    lr_size: int = 32
    gain_jitter: float = 1.5
    offset_jitter: float = 0.3
    inverted_share: float = 0.5
    rotated: bool = True
    degradation: DegradationConfig = field(default_factory=DegradationConfig)

    def __post_init__(self) -> None:
        require(self, lr_size=(1, math.inf), gain_jitter=(1, math.inf))
        require(self, offset_jitter=(0, math.inf), inverted_share=(0, 1))


@dataclass(frozen=True)
class Frame:
    """One high-resolution training frame.

    Attributes:
        counts: ``(H, W)`` uint8, uint16 or float32; sides are multiples of 4.
        normal: the range that the network sees as -1..1.
        shown: the range that an 8-bit picture of it shows.
    """

    counts: np.ndarray
    normal: CountRange
    shown: CountRange


def prepare_frame(counts: np.ndarray, scale: float, min_side: int) -> Frame | None:
    """Resize a frame to ``scale`` and find its ranges; ``None`` if smaller than ``min_side``."""
    h, w = (round(side * scale) for side in counts.shape)
    if min(h, w) < min_side:
        return None
    resized = counts if scale == 1.0 else pillow_resize(counts, h, w)
    return Frame(crop_to_multiple(resized, SCALE), robust_range(resized), agc_range(resized))


class CropDataset(Dataset):
    """Sample ``i`` is the same in every run with the same seed, whatever worker draws it.

    ``dataset[i]`` -> ``(lr, hr, clean)``: float32 ``(1, s, s)``, ``(1, 4s, 4s)`` in network units,
    and whether ``lr`` is the plain bicubic /4 of ``hr``.
    """

    def __init__(
        self, groups: list[tuple[float, list[Frame]]], config: CropConfig, seed: int, length: int
    ) -> None:
        """``groups``: (weight, frames) per source; ``length``: samples of the whole run.

        Raises:
            ValueError: a source without frames; the text says which, counted from 0.
        """
        if empty := [i for i, (_, frames) in enumerate(groups) if not frames]:
            raise ValueError(
                f"no frame of sources {empty} has {crop_side(config)} pixels on a side, which "
                f"crops of {config.lr_size} low-resolution pixels need; set crops: lr_size lower"
            )
        weights = np.array([weight for weight, _ in groups], dtype=np.float64)
        self._groups = [frames for _, frames in groups]
        self._probability = weights / weights.sum()
        self._config, self._seed, self._length = config, seed, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, bool]:
        rng = np.random.Generator(np.random.Philox(key=[self._seed, index]))
        frames = self._groups[rng.choice(len(self._groups), p=self._probability)]
        frame = frames[rng.integers(len(frames))]
        lr, hr, clean = _draw_pair(frame, self._config, rng)
        return torch.from_numpy(lr)[None], torch.from_numpy(hr)[None], clean


def open_crops(
    sources: Sequence[ImageSource], data: Path, config: CropConfig, seed: int, length: int
) -> CropDataset:
    """Samples of the training parts of ``sources``, which lie in the folder ``data``."""
    groups, side = [], crop_side(config)
    for source in sources:
        images = load_images(source, data, "train")
        found = [prepare_frame(image, scale, side) for image in images for scale in source.scales]
        frames = [frame for frame in found if frame is not None]
        if len(frames) < len(found):
            log.warning(
                "%s: %d of %d frames, at all scales, have less than %d pixels on a side and are "
                "not used", source.folder, len(found) - len(frames), len(found), side,
            )  # fmt: skip
        groups.append((source.weight, frames))
    return CropDataset(groups, config, seed, length)


def crop_side(config: CropConfig) -> int:
    """High-resolution pixels on a side that a frame must have to be drawn from."""
    return (config.lr_size + 2 * _MARGIN) * SCALE


def draw_crop(counts: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """A random square ``(side, side)`` of a frame."""
    top, left = (rng.integers(0, n - side + 1) for n in counts.shape)
    return counts[top : top + side, left : left + side]


def _turn(crop: np.ndarray, rotated: bool, rng: np.random.Generator) -> np.ndarray:
    """One of the eight ways to turn and mirror a square, of the two to mirror one if not
    ``rotated``.
    """
    if rotated:
        crop = np.rot90(crop, rng.integers(4))
    return np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop)


def _draw_pair(
    frame: Frame, config: CropConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, bool]:
    side = crop_side(config)
    crop = _turn(draw_crop(frame.counts, side, rng), config.rotated, rng)
    kind = choose_kind(config.degradation, rng)
    lr, hr = degrade(kind, crop, frame.shown, config.degradation, rng)
    # White-hot, or black-hot.
    polarity = 1.0 if rng.random() < 1 - config.inverted_share else -1.0
    gain = np.float32(polarity * config.gain_jitter ** rng.uniform(-1.0, 1.0))
    offset = np.float32(rng.uniform(-config.offset_jitter, config.offset_jitter))

    def to_network(counts: np.ndarray, margin: int) -> np.ndarray:
        inner = counts[margin:-margin, margin:-margin]
        return (gain * frame.normal.normalise(inner) + offset).clip(-NETWORK_LIMIT, NETWORK_LIMIT)

    return to_network(lr, _MARGIN), to_network(hr, _MARGIN * SCALE), kind == "bicubic"
