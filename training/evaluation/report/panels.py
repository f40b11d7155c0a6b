"""Panels: the same place of a frame as every model shows it, chosen where they differ most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from difiisr_training.data.images import pillow_resize
from difiisr_training.evaluation.report.crops import Window, choose_window, disagreement
from difiisr_training.evaluation.report.pictures import (
    GrayRange,
    Picture,
    compact_picture,
    exact_picture,
    gray_range,
    to_gray,
    to_signed_colour,
)
from difiisr_training.evaluation.results import (
    HR_FOLDER,
    LR_FOLDER,
    SetResult,
    frame_names,
    frames_folder,
    read_frame,
)

CROP_SIDE = 64
MOST_LOOKED_AT = 48


@dataclass(frozen=True)
class FrameImages:
    """A frame as all see it, ``(H, W)`` counts.

    Attributes:
        name: of the frame.
        lr: what the models saw.
        hr: what they should have made of it; ``None`` in camera mode.
        results: per model's name.
    """

    name: str
    lr: np.ndarray
    hr: np.ndarray | None
    results: Mapping[str, np.ndarray]

    @property
    def scale(self) -> int:
        """How many times larger the results are."""
        return next(iter(self.results.values())).shape[0] // self.lr.shape[0]

    def interpolated(self) -> np.ndarray:
        """``lr`` at the size of the results, bicubic."""
        height, width = self.lr.shape
        return pillow_resize(self.lr, height * self.scale, width * self.scale)

    def errors(self) -> dict[str, np.ndarray]:
        """Per model: result minus ``hr``; without it, downsampled result minus ``lr``; counts."""
        if self.hr is not None:
            return {name: sr - self.hr.astype(np.float64) for name, sr in self.results.items()}
        return {
            name: pillow_resize(sr, *self.lr.shape) - self.lr.astype(np.float64)
            for name, sr in self.results.items()
        }


@dataclass(frozen=True)
class Tile:
    """What a model made, and its error map."""

    name: str
    picture: Picture
    error: Picture


@dataclass(frozen=True)
class SideBySide:
    """One place as all see it, in one gray scale, and error maps in one colour scale.

    Attributes:
        frame: its name.
        shown: counts that are black and white.
        limit: counts at the ends of the error maps' colours.
        input: what the models saw.
        results: what they made of it.
        reference: what they should have made of it, if known.
    """

    frame: str
    shown: GrayRange
    limit: float
    input: Picture
    results: Sequence[Tile]
    reference: Picture | None


@dataclass(frozen=True)
class Panel:
    """A crop, and where it lies.

    Attributes:
        context: the whole frame.
        percent: the crop's left, top, width and height in percent of the frame.
        window: the same in pixels.
        tiles: the crop.
    """

    context: Picture
    percent: tuple[float, float, float, float]
    window: Window
    tiles: SideBySide


def read_images(out: Path, chosen: SetResult, frame: str) -> FrameImages:
    """All pictures of a frame.

    Raises:
        FileNotFoundError: one is missing.
    """
    hr_folder = frames_folder(out, chosen.name, HR_FOLDER)
    return FrameImages(
        frame,
        read_frame(frames_folder(out, chosen.name, LR_FOLDER), frame),
        read_frame(hr_folder, frame) if hr_folder.is_dir() else None,
        {m.name: read_frame(frames_folder(out, chosen.name, m.name), frame) for m in chosen.models},
    )


def list_frames(out: Path, chosen: SetResult) -> list[str]:
    """Names of a set's frames, sorted."""
    return frame_names(frames_folder(out, chosen.name, LR_FOLDER))


def evenly(names: Sequence[str], count: int) -> list[str]:
    """At most ``count`` of ``names``, evenly spaced."""
    if len(names) <= count:
        return list(names)
    return [names[i] for i in np.linspace(0, len(names) - 1, count).round().astype(int)]


def find_window(images: FrameImages, side: int = CROP_SIDE) -> Window:
    """Where results, and the reference if known, differ most in this frame.

    A single result without reference is compared with the interpolated input.
    """
    compared = list(images.results.values())
    if images.hr is not None:
        compared.append(images.hr)
    if len(compared) < 2:
        compared.append(images.interpolated())
    return choose_window(disagreement(compared), side, images.scale)


def choose_frames(out: Path, chosen: SetResult, most: int) -> list[tuple[str, Window]]:
    """The frames whose window differs most, relative to the frame's own range; worst first.

    At most :data:`MOST_LOOKED_AT` frames, evenly spaced, are looked at.
    """
    found = []
    for frame in evenly(list_frames(out, chosen), MOST_LOOKED_AT):
        images = read_images(out, chosen, frame)
        window = find_window(images)
        shown = gray_range(images.lr)
        found.append((window.score / (shown.high - shown.low), frame, window))
    found.sort(key=lambda entry: (-entry[0], entry[1]))
    return [(frame, window) for _, frame, window in found[:most]]


def make_panel(images: FrameImages, window: Window) -> Panel:
    """What lies in ``window``, in exact pixels; gray scale and colours are those of the window."""
    scale = images.scale
    low = Window(window.top // scale, window.left // scale, window.side // scale, window.score)
    cropped = FrameImages(
        images.name,
        low.cut(images.lr),
        None if images.hr is None else window.cut(images.hr),
        {name: window.cut(sr) for name, sr in images.results.items()},
    )
    of_errors = low if images.hr is None else window
    errors = {name: of_errors.cut(error) for name, error in images.errors().items()}
    whole = images.interpolated() if images.hr is None else images.hr
    height, width = whole.shape
    return Panel(
        compact_picture(to_gray(whole, gray_range(whole))),
        (
            100 * window.left / width,
            100 * window.top / height,
            100 * window.side / width,
            100 * window.side / height,
        ),
        window,
        _side_by_side(cropped, errors, exact_picture),
    )


def whole_frames(images: FrameImages) -> SideBySide:
    """The whole frame, stored with a little loss."""
    return _side_by_side(images, images.errors(), compact_picture)


def _side_by_side(
    images: FrameImages, errors: Mapping[str, np.ndarray], encode: Callable[[np.ndarray], Picture]
) -> SideBySide:
    shown = gray_range(images.lr if images.hr is None else images.hr)
    limit = _limit(errors)
    return SideBySide(
        images.name,
        shown,
        limit,
        encode(to_gray(images.lr, shown)),
        [
            Tile(name, encode(to_gray(sr, shown)), encode(to_signed_colour(errors[name], limit)))
            for name, sr in images.results.items()
        ],
        None if images.hr is None else encode(to_gray(images.hr, shown)),
    )


def _limit(errors: Mapping[str, np.ndarray]) -> float:
    """99th percentile of all models' absolute errors: the common end of the colours."""
    limit = float(np.quantile(np.concatenate([np.abs(e).ravel() for e in errors.values()]), 0.99))
    return limit if limit > 0 else 1.0
