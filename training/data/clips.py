"""Training clips: short sequences of high- and low-resolution crops, each a function of its number.

A clip is cut from a recording, or made of a sharp still: whole pixels of a pan are exact, turns and
zooms are resampled, and objects cut from other stills move by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
import torch
from annotated_types import Ge, Gt
from pydantic.dataclasses import dataclass
from torch import Tensor

from difiisr_models.motion import dense_flow, picture_for_motion
from difiisr_models.noise import denoise
from difiisr_models.radiometry import NETWORK_LIMIT, robust_range
from difiisr_models.resample import SCALE, downsample, pack
from difiisr_training.data.images import (
    ImageSource,
    LoadFrames,
    Share,
    list_images,
    read_counts,
)
from difiisr_training.degradations import random_jpeg, stripes

_TEXTURE = 0.018  # network units: a stream's tracker counts weaker noise as none, see noise.py
_STEPS = 8  # attempts to find a crop that is not flat


@dataclass(frozen=True, config={"extra": "forbid"})
class ClipConfig:
    """How clips are drawn; a share is that of the clips.

    Attributes:
        lr_size: side of the low-resolution crop, pixels.
        recorded_share: cut from recordings; the rest is made of stills.
        left_out: names of recordings that are not trained on.
        largest_stride: frames of a recording between two of a clip, at most.
        fastest: mean speed of a made pan, high-resolution pixels a frame, at most.
        turned_share: made clips that turn and zoom as well.
        object_share: made clips in which an object moves by itself.
        clean_share: clips without noise.
        noise: largest standard deviation, share of the span.
        whole_share: clips whose low resolution is in whole counts of their source.
        camera_share: clips with stripes, and of them half through 8 bit or JPEG.
    """

    lr_size: Annotated[int, Ge(16)] = 40
    recorded_share: Share = 0.55
    left_out: tuple[str, ...] = ()
    largest_stride: Annotated[int, Ge(1)] = 3
    fastest: Annotated[float, Gt(0)] = 8.0
    turned_share: Share = 0.3
    object_share: Share = 0.35
    clean_share: Share = 0.4
    noise: Share = 0.03
    whole_share: Share = 0.8
    camera_share: Share = 0.15


class Clip(NamedTuple):
    """A clip in network units.

    Attributes:
        hr: ``(T, 1, 4s, 4s)``.
        lr: ``(T, 1, s, s)``.
        flow: ``(T, 4s, 4s, 2)``, from each frame to the one before; zero for the first.
        sigma: what the network is told of the noise, ``(1,)``.
    """

    hr: Tensor
    lr: Tensor
    flow: Tensor
    sigma: Tensor


class Clips:
    """Clip ``i`` is the same in every run with the same seed."""

    def __init__(
        self,
        stills: Sequence[ImageSource],
        recordings: Sequence[Path],
        load: LoadFrames,
        config: ClipConfig,
        seed: int,
    ) -> None:
        """Read everything into memory.

        ``recordings``: folders whose folders hold the frames of one recording each, as images.
        """
        self._config, self._seed, self._side = config, seed, config.lr_size * SCALE
        self._stills, weights = [], []
        for source in stills:
            scaled = [_scaled(x, scale) for x in load(source, "train") for scale in source.scales]
            large = [still for still in scaled if min(still[0].shape) >= self._side + 8]
            self._stills += large
            weights += [source.weight / max(1, len(large))] * len(large)
        self._shares, self._recordings = np.array(weights) / sum(weights), []
        for folder in sorted(path for root in recordings for path in root.iterdir()):
            if folder.is_dir() and folder.name not in config.left_out:
                frames = np.stack([read_counts(path) for path in list_images(folder)])
                if min(frames.shape[1:]) >= self._side:
                    self._recordings.append(frames)

    def draw(self, number: int, length: int) -> Clip:
        """Clip ``number`` of ``length`` frames."""
        # The order of the draws is part of every seeded run.
        rng = np.random.Generator(np.random.Philox(key=[self._seed, number]))
        is_recorded = rng.random() < self._config.recorded_share
        hr, count = (self._recorded if is_recorded else self._made)(rng, length)
        hr = np.rot90(hr, int(rng.integers(4)), axes=(1, 2))
        hr = hr[:, :, ::-1] if rng.random() < 0.5 else hr
        gain = rng.choice((-1, 1)) * 1.4 ** rng.uniform(-1, 1)
        hr = hr * np.float32(gain) + np.float32(rng.uniform(-0.2, 0.2))
        hr = np.ascontiguousarray(hr.clip(-NETWORK_LIMIT, NETWORK_LIMIT))
        large = torch.from_numpy(hr)[:, None]
        lr, sigma = self._measured(downsample(pack(large)), rng)
        if rng.random() < self._config.whole_share:
            unit = abs(float(gain)) * count
            lr = (lr / unit).round() * unit
        quiet = (denoise(frame, sigma)[0, 0].numpy() for frame in lr.split(1))
        pictures = [picture_for_motion(frame, sigma) for frame in quiet]
        pairs = zip(pictures[1:], pictures, strict=False)
        flows = [dense_flow(now, before, sigma) for now, before in pairs]
        flow = np.stack([np.zeros((self._side, self._side, 2), np.float32), *flows])
        return Clip(large, lr, torch.from_numpy(flow), torch.tensor([sigma], dtype=torch.float32))

    def _recorded(self, rng: np.random.Generator, length: int) -> tuple[np.ndarray, float]:
        """``(T, H, W)`` of a recording, forwards or backwards, in network units; and one count."""
        frames = self._recordings[rng.integers(len(self._recordings))]
        most = max(1, min(self._config.largest_stride, (len(frames) - 1) // (length - 1)))
        stride = int(rng.integers(1, most + 1))
        first = rng.integers(len(frames) - stride * (length - 1))
        chosen = frames[first : first + stride * (length - 1) + 1 : stride]
        chosen = chosen[::-1] if rng.random() < 0.5 else chosen
        shown = robust_range(chosen[0])
        for _ in range(_STEPS):
            top, left = (rng.integers(n - self._side + 1) for n in chosen.shape[1:])
            crop = chosen[:, top : top + self._side, left : left + self._side]
            contrast = crop[0].std()
            if contrast > 0.1 * shown.span or contrast > rng.uniform(0, 0.1) * shown.span:
                break
        return shown.normalise(crop), shown.gain

    def _made(self, rng: np.random.Generator, length: int) -> tuple[np.ndarray, float]:
        """``(T, H, W)`` of a still that is panned over, in network units; and one count."""
        config, side = self._config, self._side
        numbers = rng.choice(len(self._stills), 2, p=self._shares)
        (still, count), (other, _) = (self._stills[k] for k in numbers)
        path = _path(rng, length, config.fastest)
        room = [n - side for n in still.shape]
        path = _folded(path + rng.integers(0, np.array(room) + 1), room)
        turns = rng.random() < config.turned_share
        steps = rng.normal(0, 0.4, (2, 1)) * np.ones((2, length)) + rng.normal(0, 0.1, (2, length))
        angle, zoom = np.cumsum(steps, 1)
        frames = np.stack([still[top : top + side, left : left + side] for top, left in path])
        for k, (top, left) in enumerate(path if turns else ()):
            centre = (float(left + side / 2), float(top + side / 2))
            matrix = cv2.getRotationMatrix2D(centre, float(angle[k]), 1 + 0.01 * float(zoom[k]))
            matrix[:, 2] -= (left, top)
            how: Any = {"flags": cv2.INTER_LANCZOS4, "borderMode": cv2.BORDER_REFLECT}
            frames[k] = cv2.warpAffine(still, matrix, (side, side), **how)
        if rng.random() < config.object_share:
            frames = _with_object(frames, other, rng, config.fastest)
        return frames, count

    def _measured(self, lr: Tensor, rng: np.random.Generator) -> tuple[Tensor, float]:
        """The frames ``(T, 1, s, s)`` as a camera gives them, and the noise that one is told of."""
        config = self._config
        true = 0.0 if rng.random() < config.clean_share else 2 * config.noise * rng.random()
        is_camera, jpeg = rng.random() < config.camera_share, rng.random() < 0.5
        noise = rng.normal(0, 1, lr.shape).astype(np.float32)
        lr = lr + torch.from_numpy(noise * np.float32(true))
        if is_camera:
            pattern = stripes(lr.shape[-2:], 0.3 * true + 0.004, 0.5 * true + 0.004, rng)
            frames = (lr.numpy() + pattern).clip(-2, 2)
            if jpeg:
                frames = np.stack([_through_jpeg(x[0], rng) for x in frames])[:, None]
            lr = torch.from_numpy(np.ascontiguousarray(frames, dtype=np.float32))
        # A stream's tracker errs, and takes off what texture might be.
        told = max(0.0, true**2 - (_TEXTURE * rng.choice((0, 1)) * rng.random()) ** 2) ** 0.5
        return lr, float(told * np.exp(rng.normal(0, 0.12)))


def _scaled(counts: np.ndarray, scale: float) -> tuple[np.ndarray, float]:
    """A still in network units, and what one count of it is there."""
    shown = robust_range(counts)
    image = shown.normalise(counts)
    if scale != 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return image, shown.gain


def _path(rng: np.random.Generator, length: int, fastest: float) -> np.ndarray:
    """Whole pixels (down, right) of each frame, ``(T, 2)``; a quarter of the paths stands still."""
    if rng.random() < 0.25:
        return np.zeros((length, 2), int)
    speed = fastest ** rng.uniform(-0.5, 1)
    angle = rng.uniform(0, 2 * np.pi)
    mean = speed * np.array((np.sin(angle), np.cos(angle)))
    steps = mean + rng.normal(0, 0.25 * speed, (length, 2)) * (rng.random() < 0.5)
    return np.rint(np.cumsum(steps, axis=0)).astype(int)


def _folded(path: np.ndarray, room: Sequence[int]) -> np.ndarray:
    """The path, reflected where it would leave 0..room."""
    period = 2 * np.maximum(room, 1)
    there = path % period
    return np.where(there > room, period - there, there).clip(0, room)


def _with_object(
    frames: np.ndarray, other: np.ndarray, rng: np.random.Generator, fastest: float
) -> np.ndarray:
    """A soft-edged piece of another still, lighter or hotter, on a path of its own."""
    side = frames.shape[1]
    h, w = rng.integers(8, side // 2, 2)
    top, left = (rng.integers(0, n - m + 1) for n, m in zip(other.shape, (h, w), strict=True))
    piece = other[top : top + h, left : left + w] * np.float32(rng.uniform(0, 1))
    piece = piece + np.float32(rng.uniform(-1, 1.5))
    y, x = np.ogrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    mask = ((1 - np.hypot(y, x)) * min(h, w) / 4).clip(0, 1).astype(np.float32)
    path, margin = _path(rng, len(frames), fastest) + rng.integers(-8, side - 8, 2), max(h, w)
    canvas = np.pad(frames, ((0, 0), (margin, margin), (margin, margin)))
    for frame, (down, right) in zip(canvas, path.clip(-margin, side) + margin, strict=True):
        place = frame[down : down + h, right : right + w]
        place += mask * (piece - place)
    return canvas[:, margin:-margin, margin:-margin]


def _through_jpeg(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    picture = np.rint((frame + 2) * (255 / 4)).astype(np.uint8)
    picture = random_jpeg(picture, (75, 98), rng) if rng.random() < 0.7 else picture
    return picture * np.float32(4 / 255) - 2
