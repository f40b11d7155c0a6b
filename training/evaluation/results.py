"""What an evaluation leaves behind: ``results.json``, ``per_frame.csv`` and all frames.

::

    OUT/results.json                        means, intervals and all that is needed to repeat them
    OUT/per_frame.csv                       set, frame, model, one column per metric, seconds
    OUT/frames/SET/lr/FRAME.png             what the models saw
    OUT/frames/SET/hr/FRAME.png             what they should have made of it (with reference)
    OUT/frames/SET/MODEL/FRAME.png          what they made of it
    OUT/finished/SET/MODEL.json             a model that need not run again

SET and MODEL are the :func:`slug` of their names. Frames are 8 or 16 bit PNG, or float32 ``.npy``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from PIL import Image

from difiisr_models.files import replaced, write_json
from difiisr_training.data.images import read_counts
from difiisr_training.evaluation.measures import MetricInfo, Mode

RESULTS_FILE, PER_FRAME_FILE = "results.json", "per_frame.csv"
FRAMES_FOLDER, FINISHED_FOLDER = "frames", "finished"
LR_FOLDER, HR_FOLDER = "lr", "hr"

Interval = tuple[float, float]


@dataclass(frozen=True)
class ModelResult:
    """One model on one set, means and bootstrap 95 % intervals of each metric over the frames.

    Frames without a value (NaN: the first has no flicker, a flat one no PSNR) are left out of mean
    and interval. The PSNR of equal images is infinite.
    """

    name: str  # as asked for
    title: str  # for tables and captions
    weights_sha256: str  # or of the images of a folder of outputs; "" without
    parameters: int | None  # trained values; None for a folder of outputs
    seconds_per_frame: float  # NaN for a folder of outputs
    mean: dict[str, float]
    interval: dict[str, Interval]
    difference_to_bicubic: dict[str, dict[str, Any]]  # "mean", "interval", paired; {} without it
    values: pd.DataFrame = field(repr=False)  # a row per frame; not in results.json


@dataclass(frozen=True)
class SetResult:
    """All models on one set."""

    name: str  # as asked for
    path: str
    kind: Literal["images", "bag"]
    topic: str | None  # of a bag
    frames: int  # that were judged
    sha256: str  # of the frames' names, dtypes, shapes and pixels, as read
    models: list[ModelResult]

    @property
    def frame_names(self) -> list[str]:
        """Of the frames, in order."""
        return list(self.models[0].values.index)


@dataclass
class Results:
    """The content of ``results.json``."""

    command: list[str]
    environment: dict[str, Any]  # device, threads, versions
    mode: Mode
    degradation: str | None  # how low resolution was made; None in camera mode
    metrics: dict[str, MetricInfo]  # that were measured, in the order of the columns
    not_run: dict[str, str]  # and why
    sets: list[SetResult]
    left_out: int = 0  # frames that could not be read, or hold NaN; not_run names them
    metric_files: dict[str, str] = field(default_factory=dict)  # SHA-256 of the metrics' networks
    detection: dict[str, Any] | None = None  # see task_scores.judge_detection
    segmentation: dict[str, Any] | None = None  # see judge_segmentation
    version: int = 1  # of this layout


def short_names(given: Sequence[str]) -> list[str]:
    """Titles of sets: their names; of absolute paths as many last parts as tell them apart."""
    names = list(given)
    for place, text in enumerate(given):
        parts = Path(text).parts
        for count in range(1, len(parts)):
            name = "/".join(parts[-count:])
            if Path(text).is_absolute() and name not in names:
                names[place] = name
                break
    return names


def slug(name: str) -> str:
    """A set's or model's name as the name of a folder: ``runs/a@0.5`` -> ``runs-a@0.5``."""
    return re.sub(r"[^A-Za-z0-9._@=+-]+", "-", name).strip("-.") or "unnamed"


def frames_folder(out: Path, set_name: str, series: str) -> Path:
    """Folder of frames; ``series``: a model's name, :data:`LR_FOLDER` or :data:`HR_FOLDER`."""
    return out / FRAMES_FOLDER / slug(set_name) / slug(series)


def write_frame(folder: Path, frame: str, counts: np.ndarray) -> None:
    """Write ``(H, W)`` uint8 or uint16 as PNG, float32 as ``.npy``."""
    folder.mkdir(parents=True, exist_ok=True)
    if counts.dtype == np.float32:
        np.save(folder / f"{frame}.npy", counts, allow_pickle=False)
    else:
        Image.fromarray(counts).save(folder / f"{frame}.png", compress_level=1)


def read_frame(folder: Path, frame: str) -> np.ndarray:
    """Read what :func:`write_frame` wrote; FileNotFoundError: there is no such frame."""
    as_array = folder / f"{frame}.npy"
    if as_array.is_file():
        return np.load(as_array, allow_pickle=False)
    return read_counts(folder / f"{frame}.png")


def frame_names(folder: Path) -> list[str]:
    """Names of the frames in a folder, sorted."""
    return sorted(path.stem for path in folder.iterdir() if path.suffix in (".png", ".npy"))


def write_results(results: Results, out: Path) -> dict[str, Any]:
    """Write ``per_frame.csv`` and ``results.json``, and return what the latter holds.

    There ``null`` is what is not finite.
    """
    tables = {
        (chosen.name, model.name): model.values[[*results.metrics, "seconds"]]
        for chosen in results.sets
        for model in chosen.models
    }
    rows = pd.concat(tables, names=["set", "model", "frame"]).reset_index()
    rows.insert(1, "frame", rows.pop("frame"))
    with replaced(out / PER_FRAME_FILE) as beside:
        rows.to_csv(beside, index=False)
    content = asdict(results)
    for model in (model for chosen in content["sets"] for model in chosen["models"]):
        del model["values"]
    write_json(out / RESULTS_FILE, content)
    return content
