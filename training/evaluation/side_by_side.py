"""The same place of a frame as every model shows it, chosen where they differ most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from difiisr_models.resample import SCALE
from difiisr_training.degradations.mix import pillow_resize
from difiisr_training.evaluation.figures import (
    Picture,
    compact_picture,
    exact_picture,
    gray_range,
    to_gray,
    to_signed_colour,
)
from difiisr_training.evaluation.inputs import evenly
from difiisr_training.evaluation.results import (
    HR_FOLDER,
    LR_FOLDER,
    SetResult,
    frames_folder,
    read_frame,
)

CROP_SIDE = 64
MOST_LOOKED_AT = 48


class Window(NamedTuple):
    """A square of a high-resolution frame, pixels, and the mean disagreement in it, counts."""

    top: int
    left: int
    side: int
    score: float

    def cut(self, image: np.ndarray, scale: int = 1) -> np.ndarray:
        """The window of ``image (H, W)``, which is ``scale`` times smaller."""
        top, left, side = (n // scale for n in self[:3])
        return image[top : top + side, left : left + side]


class FrameImages(NamedTuple):
    """A frame as all see it, ``(H, W)`` counts.

    Attributes:
        name: of the frame.
        lr: what the models saw.
        hr: what they should have made of it; ``None`` in camera mode.
        results: per model's name.
        errors: per model result minus ``hr``; without it, downsampled result minus ``lr``.
    """

    name: str
    lr: np.ndarray
    hr: np.ndarray | None
    results: dict[str, np.ndarray]
    errors: dict[str, np.ndarray]

    def interpolated(self) -> np.ndarray:
        """``lr`` at the size of the results, bicubic."""
        height, width = self.lr.shape
        return pillow_resize(self.lr, SCALE * height, SCALE * width)

    def cut(self, window: Window) -> FrameImages:
        """What lies in ``window``."""
        of_errors = SCALE if self.hr is None else 1
        return FrameImages(
            self.name,
            window.cut(self.lr, SCALE),
            None if self.hr is None else window.cut(self.hr),
            {name: window.cut(sr) for name, sr in self.results.items()},
            {name: window.cut(error, of_errors) for name, error in self.errors.items()},
        )


def read_images(out: Path, chosen: SetResult, frame: str) -> FrameImages:
    """All pictures of a frame; FileNotFoundError where one is missing."""
    hr_folder = frames_folder(out, chosen.name, HR_FOLDER)
    lr = read_frame(frames_folder(out, chosen.name, LR_FOLDER), frame)
    hr = read_frame(hr_folder, frame) if hr_folder.is_dir() else None
    names = [model.name for model in chosen.models]
    results = {name: read_frame(frames_folder(out, chosen.name, name), frame) for name in names}
    errors = {
        name: (pillow_resize(sr, *lr.shape) if hr is None else sr)
        - (lr if hr is None else hr).astype(np.float64)
        for name, sr in results.items()
    }
    return FrameImages(frame, lr, hr, results, errors)


def choose_window(images: Sequence[np.ndarray], side: int, step: int) -> Window:
    """The square in which images differ most: the largest mean standard deviation over them.

    Args:
        images: two or more ``(H, W)`` arrays of one shape: results, and the reference if known.
        side: of the square, pixels; at most the frame's own sides.
        step: rows and columns start at multiples of it.
    """
    score = np.std(np.stack([image.astype(np.float64) for image in images]), axis=0)
    side = min(side, *score.shape) // step * step
    sums = np.pad(score, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    inside = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    inside = inside[::step, ::step]
    row, column = np.unravel_index(np.argmax(inside), inside.shape)
    return Window(int(row) * step, int(column) * step, side, float(inside[row, column]) / side**2)


def choose_frames(out: Path, chosen: SetResult, most: int) -> list[tuple[str, Window]]:
    """The frames whose window differs most, relative to the frame's own range; worst first.

    A single result without reference is compared with the interpolated input.
    """
    found = []
    for frame in evenly(sorted(chosen.frame_names), MOST_LOOKED_AT):
        images = read_images(out, chosen, frame)
        compared = [*images.results.values(), *([] if images.hr is None else [images.hr])]
        if len(compared) < 2:
            compared.append(images.interpolated())
        window = choose_window(compared, CROP_SIDE, SCALE)
        low, high = gray_range(images.lr)
        found.append((-window.score / (high - low), frame, window))
    return [(frame, window) for _, frame, window in sorted(found)[:most]]


def panel(images: FrameImages, window: Window) -> dict[str, Any]:
    """What lies in ``window``, in exact pixels; gray scale and colours are those of the window."""
    whole = images.interpolated() if images.hr is None else images.hr
    height, width = whole.shape
    return {
        "context": compact_picture(to_gray(whole)),
        "percent": [
            100 * window.left / width, 100 * window.top / height,
            100 * window.side / width, 100 * window.side / height,
        ],
        "window": window,
        "tiles": side_by_side(images.cut(window), exact_picture),
    }  # fmt: skip


def side_by_side(images: FrameImages, encode: Callable[[np.ndarray], Picture]) -> dict[str, Any]:
    """One place as all see it, in one gray scale, and error maps in one colour scale.

    The colours end at the 99th percentile of all models' absolute errors.
    """
    shown = gray_range(images.lr if images.hr is None else images.hr)
    limit = float(np.quantile(np.abs(list(images.errors.values())), 0.99)) or 1.0
    return {
        "frame": images.name,
        "shown": shown,
        "limit": limit,
        "input": encode(to_gray(images.lr, shown)),
        "results": [
            (
                name,
                encode(to_gray(sr, shown)),
                encode(to_signed_colour(images.errors[name], limit)),
            )
            for name, sr in images.results.items()
        ],
        "reference": None if images.hr is None else encode(to_gray(images.hr, shown)),
    }
