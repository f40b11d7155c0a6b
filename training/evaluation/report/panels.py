"""Panels: the same place of a frame as every model shows it, chosen where they differ most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
    """One picture of a panel: who made it, the result, and an error map if it has one."""

    role: Literal["input", "model", "reference"]
    name: str
    picture: Picture
    error: Picture | None


@dataclass(frozen=True)
class Panel:
    """One frame, side by side.

    Attributes:
        frame: its name.
        context: the whole frame.
        window: where the crop lies, in percent of the frame: left, top, width, height.
        place: the same in pixels, and its disagreement, in words.
        side: of the crop, pixels; of a whole frame its height.
        shown: counts that are black and white.
        limit: counts at the ends of the error maps' colours.
        tiles: input, models, reference.
    """

    frame: str
    context: Picture
    window: tuple[float, float, float, float]
    place: str
    side: int
    shown: GrayRange
    limit: float
    tiles: Sequence[Tile]


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
    """Crops of one window, one gray scale for all, and error maps with one colour scale."""
    scale = images.scale
    low = Window(window.top // scale, window.left // scale, window.side // scale, window.score)
    reference = images.interpolated() if images.hr is None else images.hr
    shown = gray_range(window.cut(reference))
    place_of_error = window if images.hr is not None else low
    errors = {name: place_of_error.cut(error) for name, error in images.errors().items()}
    limit = _limit(errors)
    tiles = [Tile("input", "", exact_picture(to_gray(low.cut(images.lr), shown)), None)]
    tiles += [
        Tile(
            "model",
            name,
            exact_picture(to_gray(window.cut(sr), shown)),
            exact_picture(to_signed_colour(errors[name], limit)),
        )
        for name, sr in images.results.items()
    ]
    if images.hr is not None:
        tiles.append(
            Tile("reference", "", exact_picture(to_gray(window.cut(images.hr), shown)), None)
        )
    height, width = reference.shape
    return Panel(
        images.name,
        compact_picture(to_gray(reference, gray_range(reference))),
        (
            100 * window.left / width,
            100 * window.top / height,
            100 * window.side / width,
            100 * window.side / height,
        ),
        f"{window.side}×{window.side} pixels at column {window.left}, row {window.top}; "
        f"spread {window.score:.3g} counts",
        window.side,
        shown,
        limit,
        tiles,
    )


def whole_frames(images: FrameImages) -> Panel:
    """The whole frame as every model shows it, with whole error maps."""
    reference = images.interpolated() if images.hr is None else images.hr
    shown = gray_range(reference)
    errors = images.errors()
    limit = _limit(errors)
    tiles = [
        Tile("input", "", compact_picture(to_gray(images.lr, shown)), None),
        *(
            Tile(
                "model",
                name,
                compact_picture(to_gray(sr, shown)),
                compact_picture(to_signed_colour(errors[name], limit)),
            )
            for name, sr in images.results.items()
        ),
    ]
    if images.hr is not None:
        tiles.append(Tile("reference", "", compact_picture(to_gray(images.hr, shown)), None))
    whole = (0.0, 0.0, 100.0, 100.0)
    return Panel(
        images.name, tiles[-1].picture, whole, "whole frame", len(reference), shown, limit, tiles
    )


def _limit(errors: Mapping[str, np.ndarray]) -> float:
    """99th percentile of all models' absolute errors: the common end of the colours."""
    limit = float(np.quantile(np.concatenate([np.abs(e).ravel() for e in errors.values()]), 0.99))
    return limit if limit > 0 else 1.0
