"""Training samples: pairs of low- and high-resolution crops, each a pure function of its number."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import field
from typing import Annotated, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Le
from PIL import Image
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.utils.data import Dataset

from difiisr_models.radiometry import NETWORK_LIMIT, CountRange, robust_range
from difiisr_models.resample import SCALE
from difiisr_training.data.images import ImageSource, LoadFrames, crop_to_multiple
from difiisr_training.degradations import (
    DegradationConfig,
    agc_range,
    choose_kind,
    degrade,
    pillow_resize,
)

log = logging.getLogger(__name__)

_MARGIN = 4  # low-resolution pixels cut off again, so that no crop shows a border of its own


@dataclass(frozen=True, config={"extra": "forbid"})
class CropConfig:
    """How samples are drawn.

    Attributes:
        lr_size: side of the low-resolution crop, pixels.
        gain_jitter: the normalised contrast is multiplied by up to this factor, or divided by it.
        offset_jitter: the normalised level is shifted by up to this much.
        inverted_share: share of samples whose counts are turned over, white-hot to black-hot.
        rescaled: a sample is the largest square of the frame, scaled down to the crop's size by
            area (``rescale_gt`` of the public reference); else it is cut at full resolution.
        rotated: crops are turned by quarters as well as mirrored.
        degradation: how the low-resolution crop is made of the high-resolution one.
    """

    lr_size: Annotated[int, Ge(1)] = 32
    gain_jitter: Annotated[float, Ge(1)] = 1.5
    offset_jitter: Annotated[float, Ge(0)] = 0.3
    inverted_share: Annotated[float, Ge(0), Le(1)] = 0.5
    rescaled: bool = False
    rotated: bool = True
    degradation: DegradationConfig = field(default_factory=DegradationConfig)


class _Frame(NamedTuple):
    """One high-resolution training frame: ``(H, W)`` counts whose sides are multiples of 4."""

    counts: np.ndarray
    normal: CountRange  # what the network sees as -1..1
    shown: CountRange  # what an 8-bit picture of it shows


def _prepare(counts: np.ndarray, scale: float, min_side: int, tail: float) -> _Frame | None:
    """Resize a frame to ``scale`` and find its ranges; ``None`` if smaller than ``min_side``."""
    h, w = (round(side * scale) for side in counts.shape)
    if min(h, w) < min_side:
        return None
    resized = counts if scale == 1.0 else pillow_resize(counts, h, w)
    return _Frame(crop_to_multiple(resized, SCALE), robust_range(resized), agc_range(resized, tail))


class CropDataset(Dataset):
    """Sample ``i`` is the same in every run with the same seed, whatever worker draws it.

    ``dataset[i]`` -> ``(lr, hr)``: float32 ``(1, s, s)`` and ``(1, 4s, 4s)`` in network units.
    """

    def __init__(
        self,
        sources: Sequence[ImageSource],
        load: LoadFrames,
        config: CropConfig,
        seed: int,
        length: int,
    ) -> None:
        """Read the training parts of ``sources``, whose frames ``load`` gives.

        ``length``: samples of the whole run. Frames too small for a crop are counted in the log;
        ValueError if a source has no larger ones.
        """
        self._frames, side = [], _crop_side(config)
        tail = config.degradation.shown_tail
        for source in sources:
            given = itertools.product(load(source, "train"), source.scales)
            found = [_prepare(image, scale, side, tail) for image, scale in given]
            frames = [frame for frame in found if frame is not None]
            if not frames:
                raise ValueError(
                    f"no frame of source {source.folder} has {side} pixels on a side, which crops "
                    f"of {config.lr_size} low-resolution pixels need; set crops: lr_size lower"
                )
            if small := len(found) - len(frames):
                log.warning(
                    "%s: %d of %d frames, at all scales, have less than %d pixels on a side and "
                    "are not used", source.folder, small, len(found), side,
                )  # fmt: skip
            self._frames.append(frames)
        weights = np.array([source.weight for source in sources], dtype=np.float64)
        self._probability = weights / weights.sum()
        self._config, self._seed, self._length = config, seed, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.Generator(np.random.Philox(key=[self._seed, index]))
        frames = self._frames[rng.choice(len(self._frames), p=self._probability)]
        frame = frames[rng.integers(len(frames))]
        return _draw_pair(frame, self._config, rng)


def _crop_side(config: CropConfig) -> int:
    """High-resolution pixels on a side that a frame must have to be drawn from."""
    return (config.lr_size + 2 * _MARGIN) * SCALE


def _draw_pair(
    frame: _Frame, config: CropConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    # The order of the draws is part of every seeded run.
    side = _crop_side(config)
    cut = min(frame.counts.shape) if config.rescaled else side
    top, left = (rng.integers(0, n - cut + 1) for n in frame.counts.shape)
    crop = frame.counts[top : top + cut, left : left + cut]
    if cut != side:
        crop = pillow_resize(crop, side, side, Image.Resampling.BOX)
    if config.rotated:
        crop = np.rot90(crop, int(rng.integers(4)))
    crop = np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop)
    pair = degrade(choose_kind(config.degradation, rng), crop, frame.shown, config.degradation, rng)
    # White-hot, or black-hot.
    polarity = 1.0 if rng.random() < 1 - config.inverted_share else -1.0
    gain = np.float32(polarity * config.gain_jitter ** rng.uniform(-1.0, 1.0))
    offset = np.float32(rng.uniform(-config.offset_jitter, config.offset_jitter))
    shown = []
    for counts, margin in zip(pair, (_MARGIN, _MARGIN * SCALE), strict=True):
        inner = frame.normal.normalise(counts[margin:-margin, margin:-margin])
        shown.append((gain * inner + offset).clip(-NETWORK_LIMIT, NETWORK_LIMIT))
    lr, hr = (torch.from_numpy(image)[None] for image in shown)
    return lr, hr
