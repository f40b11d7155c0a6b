"""Pictures of frames side by side: what a network is trained on, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from difiisr_training.config import TrainConfig
from difiisr_training.data.images import LoadFrames
from difiisr_training.data.training_pairs import crop_side, draw_crop, prepare_frame
from difiisr_training.degradations.mix import degrade
from difiisr_training.degradations.thermal_camera import to_eight_bit

_SCENES = 4
_TRIES = 16
_COLUMNS = {
    "bicubic": ("bicubic", 1),
    "thermal": ("thermal camera", 3),
    "second_order": ("second order", 3),
}


def save_panel(
    titles: Sequence[str],
    rows: Sequence[Sequence[np.ndarray]],
    out: Path,
    labels: Sequence[str] = (),
) -> None:
    """Draw ``(H, W)`` images, pixels as squares: one row per scene, one column per result.

    Args:
        titles: of the columns.
        rows: as many images each as there are titles. 8-bit ones are shown as they are; of others
            in counts the last of a row sets that row's grey scale.
        out: picture to write, its type by its suffix; folders are made.
        labels: of the rows.
    """
    figure = Figure(figsize=(2.6 * len(titles), 2.6 * len(rows) + 0.3), layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for row, places in zip(rows, axes, strict=True):
        low, high = (0, 255) if row[-1].dtype == np.uint8 else np.percentile(row[-1], (0.5, 99.5))
        for image, place in zip(row, places, strict=True):
            shades = {"cmap": "gray", "vmin": low, "vmax": max(high, low + 1e-6)}
            place.imshow(image, interpolation="nearest", **shades)
            place.set(xticks=[], yticks=[])
    for title, place in zip(titles, axes[0], strict=True):
        place.set_title(title, fontsize=9)
    for label, place in zip(labels, axes[:, 0], strict=False):
        place.set_ylabel(label, fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def save_preview(config: TrainConfig, load: LoadFrames, out: Path) -> None:
    """Draw a grid: one row per scene; the scene itself and low-resolution samples of it.

    Grey values are those of the frame's 8-bit picture, so that stuck pixels and drift are seen as a
    camera's display shows them. Only degradations of a weight above 0 appear. The same
    configuration gives the same picture.

    Args:
        config: the run.
        load: gives the frames of its sources.
        out: image file to write, its type by its suffix; folders are made.

    Raises:
        ValueError: no frame is large enough for the configured crops.
    """
    rng = np.random.Generator(np.random.Philox(config.seed))
    mix, side = config.crops.degradation, crop_side(config.crops)
    sources = {
        source.folder: [i for i in load(source, part="train") if min(i.shape) >= side]
        for source in config.sources
    }
    usable = [name for name, images in sources.items() if images]
    if not usable:
        raise ValueError(
            f"no frame has {side} pixels on a side, which crops of {config.crops.lr_size} "
            "low-resolution pixels need; set crops: lr_size lower"
        )
    names = [usable[i % len(usable)] for i in range(max(_SCENES, len(usable)))]
    chosen = [sources[name][rng.integers(len(sources[name]))] for name in names]
    shares = mix.shares()
    kinds = [kind for kind, share in shares.items() if share for _ in range(_COLUMNS[kind][1])]
    titles = [f"{_COLUMNS[kind][0]}, {100 * shares[kind]:.0f} %" for kind in kinds]
    rows = []
    for counts in chosen:
        frame = prepare_frame(counts, 1.0, side)
        # The busiest of a few crops: much of a frame is plain sky.
        crop = max((draw_crop(frame.counts, side, rng) for _ in range(_TRIES)), key=np.std)
        samples = [degrade(kind, crop, frame.shown, mix, rng)[0] for kind in kinds]
        rows.append([to_eight_bit(image, frame.shown) for image in (crop, *samples)])
    save_panel(["scene", *titles], rows, out, names)
