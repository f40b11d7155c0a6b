"""A picture of what the network is trained on: scenes, and how each degradation leaves them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from difiisr_training.config import TrainConfig
from difiisr_training.data.crops import Frame, crop_side, draw_crop, prepare_frame
from difiisr_training.data.images import load_images
from difiisr_training.degradations.compression import to_eight_bit
from difiisr_training.degradations.mix import KINDS, DegradationConfig, Kind, degrade

_CELL = 256  # pixels on a side
_GAP = 8
_HEADER = 48
_LABEL = 28
_BACKGROUND, _INK, _FAINT = 24, 235, 150
_SCENES = 4
_TRIES = 16
_DRAWS = {"bicubic": 1, "thermal": 3, "second_order": 3}
_TITLES = {"bicubic": "bicubic", "thermal": "thermal camera", "second_order": "second order"}


def save_preview(config: TrainConfig, data: Path, out: Path) -> None:
    """Draw a grid: one row per scene; the scene itself and low-resolution samples of it.

    Low-resolution pixels are shown as squares. Grey values are those of the frame's 8-bit picture,
    so that stuck pixels and drift are seen as a camera's display shows them. Only degradations of
    a weight above 0 appear. The same configuration gives the same picture.

    Args:
        config: the run.
        data: folder that the configured sources lie in.
        out: image file to write, its type by its suffix; folders are made.

    Raises:
        ValueError: no frame is large enough for the configured crops.
        FileNotFoundError: as :func:`~difiisr_training.data.images.load_images`.
    """
    rng = np.random.Generator(np.random.Philox(config.seed))
    scenes = _choose_scenes(config, data, rng)
    weights = config.crops.degradation
    columns = [kind for kind in KINDS if getattr(weights, kind) > 0 for _ in range(_DRAWS[kind])]
    grid = _Grid(rows=len(scenes), columns=1 + len(columns))
    grid.title(0, 1, "scene")
    for kind in dict.fromkeys(columns):
        share = getattr(weights, kind) / sum(getattr(weights, k) for k in KINDS)
        title = f"{_TITLES[kind]}, {100 * share:.0f} % of samples"
        grid.title(1 + columns.index(kind), columns.count(kind), title)
    for row, (name, frame) in enumerate(scenes):
        crop = _busiest_crop(frame, crop_side(config.crops), rng)
        grid.picture(row, 0, to_eight_bit(crop, frame.shown), name)
        for column, kind in enumerate(columns):
            grid.picture(row, 1 + column, _low_resolution(kind, crop, frame, weights, rng), "")
    out.parent.mkdir(parents=True, exist_ok=True)
    grid.image.save(out)


def _choose_scenes(
    config: TrainConfig, data: Path, rng: np.random.Generator
) -> list[tuple[str, Frame]]:
    """Random frames of all sources in turn, of those that are large enough."""
    side = crop_side(config.crops)
    usable = []
    for source in config.sources:
        images = [i for i in load_images(source, data, "train") if min(i.shape) >= side]
        if images:
            usable.append((source.folder, images))
    if not usable:
        raise ValueError(
            f"no frame has {side} pixels on a side, which crops of {config.crops.lr_size} "
            "low-resolution pixels need; set crops: lr_size lower"
        )
    chosen = [usable[i % len(usable)] for i in range(max(_SCENES, len(usable)))]
    return [
        (name, prepare_frame(images[rng.integers(len(images))], 1.0, side))
        for name, images in chosen
    ]


def _busiest_crop(frame: Frame, side: int, rng: np.random.Generator) -> np.ndarray:
    """The one of the highest contrast of a few random crops: much of a frame is plain sky."""
    return max((draw_crop(frame.counts, side, rng) for _ in range(_TRIES)), key=np.std)


def _low_resolution(
    kind: Kind, crop: np.ndarray, frame: Frame, config: DegradationConfig, rng: np.random.Generator
) -> np.ndarray:
    lr, _ = degrade(kind, crop, frame.shown, config, rng)
    return to_eight_bit(lr, frame.shown)


class _Grid:
    """A picture with a title row over cells of equal size."""

    def __init__(self, rows: int, columns: int) -> None:
        size = (
            _GAP + columns * (_CELL + _GAP),
            _HEADER + rows * (_CELL + _LABEL) + _GAP,
        )
        self.image = Image.new("L", size, _BACKGROUND)
        self._draw = ImageDraw.Draw(self.image)

    def title(self, column: int, span: int, text: str) -> None:
        """Write above ``span`` columns, with a line under it."""
        left, right = _left(column), _left(column + span) - _GAP
        self._draw.line((left, _HEADER - 8, right, _HEADER - 8), fill=_FAINT)
        self._draw.text((left, 12), text, fill=_INK, font=ImageFont.load_default(20))

    def picture(self, row: int, column: int, pixels: np.ndarray, label: str) -> None:
        """Fill a cell with ``(H, W)`` uint8, pixels as squares, and write below it."""
        left, top = _left(column), _HEADER + row * (_CELL + _LABEL)
        shown = Image.fromarray(pixels).resize((_CELL, _CELL), Image.NEAREST)
        self.image.paste(shown, (left, top))
        font = ImageFont.load_default(15)
        self._draw.text((left, top + _CELL + 4), label, fill=_FAINT, font=font)


def _left(column: int) -> int:
    return _GAP + column * (_CELL + _GAP)
