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

import csv
import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from difiisr_training.data.images import read_counts

VERSION = 1
RESULTS_FILE, PER_FRAME_FILE = "results.json", "per_frame.csv"
FRAMES_FOLDER, FINISHED_FOLDER = "frames", "finished"
LR_FOLDER, HR_FOLDER = "lr", "hr"

Mode = Literal["reference", "camera"]
Interval = tuple[float | None, float | None]


@dataclass(frozen=True)
class MetricInfo:
    """How a metric is shown.

    Attributes:
        label: exact name, e.g. ``"LPIPS-squeeze"``.
        unit: e.g. ``"dB"``; "" for a pure number.
        better: ``"higher"``, ``"lower"``, or ``"zero"`` where either sign is an error.
    """

    label: str
    unit: str
    better: Literal["higher", "lower", "zero"]


@dataclass(frozen=True)
class Difference:
    """Mean over frames of a model's value minus bicubic's, and its 95 % interval."""

    mean: float | None
    interval: Interval


@dataclass(frozen=True)
class ModelResult:
    """One model on one set.

    A value is NaN where no frame has one, and infinite for the PSNR of equal images; written and
    read again, both are ``None``, and ``per_frame.csv`` tells them apart. Frames without a value
    (the first has no flicker, a flat one no PSNR) are left out of mean and interval.

    Attributes:
        name: as asked for.
        title: for tables and captions.
        weights_sha256: hash of the weights, or of the images of a folder of outputs; "" without.
        parameters: number of trained values; ``None`` for a folder of outputs.
        seconds_per_frame: mean time to super-resolve; ``None`` for a folder of outputs.
        mean: per metric, over the frames.
        interval: per metric, bootstrap 95 % interval of that mean.
        difference_to_bicubic: per metric; empty where bicubic was not asked for.
    """

    name: str
    title: str
    weights_sha256: str
    parameters: int | None
    seconds_per_frame: float | None
    mean: Mapping[str, float | None]
    interval: Mapping[str, Interval]
    difference_to_bicubic: Mapping[str, Difference]


@dataclass(frozen=True)
class BinError:
    """Error of one model in one temperature bin, kelvin: mean, and 95th percentile of |error|."""

    bias: float
    p95: float


@dataclass(frozen=True)
class TemperatureBin:
    """High-resolution pixels of ``low <= kelvin < high``; the end bins take what lies beyond."""

    low: float
    high: float
    pixels: int
    models: Mapping[str, BinError]


@dataclass(frozen=True)
class SetResult:
    """All models on one set.

    Attributes:
        name: as asked for.
        path: folder or recording.
        kind: ``"images"`` or ``"bag"``.
        topic: of a bag.
        frames: number of frames that were judged.
        sha256: of the frames' names, dtypes, shapes and pixels, as read.
        models: in the order asked for.
        temperature_bins: with reference and a radiometry, else ``None``.
    """

    name: str
    path: str
    kind: Literal["images", "bag"]
    topic: str | None
    frames: int
    sha256: str
    models: Sequence[ModelResult]
    temperature_bins: Sequence[TemperatureBin] | None


@dataclass(frozen=True)
class Results:
    """The content of ``results.json``.

    Attributes:
        command: the command line's arguments.
        environment: device, threads, versions.
        mode: with reference, or of the camera's own frames.
        degradation: how low resolution was made; ``None`` in camera mode.
        metrics: what was measured, in the order of the columns.
        not_run: what was not, and why.
        sets: in the order asked for.
        metric_files: SHA-256 of the metrics' networks, by the name of their file.
        detection: content of ``detection.json``, where a detector judged.
        segmentation: content of ``segmentation.json``, where a segmenter judged.
        version: of this layout.
    """

    command: Sequence[str]
    environment: Mapping[str, Any]
    mode: Mode
    degradation: str | None
    metrics: Mapping[str, MetricInfo]
    not_run: Mapping[str, str]
    sets: Sequence[SetResult]
    metric_files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    detection: Mapping[str, Any] | None = None
    segmentation: Mapping[str, Any] | None = None
    version: int = VERSION


@dataclass(frozen=True)
class FrameRow:
    """One line of ``per_frame.csv``; NaN = no value, infinite = PSNR of equal images."""

    set_name: str
    frame: str
    model: str
    values: Mapping[str, float]
    seconds: float


def slug(name: str) -> str:
    """A set's or model's name as the name of a folder: ``runs/a@0.5`` -> ``runs-a@0.5``."""
    return re.sub(r"[^A-Za-z0-9._@=+-]+", "-", name).strip("-.") or "unnamed"


def frames_folder(out: Path, set_name: str, series: str) -> Path:
    """Folder of frames; ``series``: a model's name, :data:`LR_FOLDER` or :data:`HR_FOLDER`."""
    return out / FRAMES_FOLDER / slug(set_name) / slug(series)


def write_frame(folder: Path, frame: str, counts: np.ndarray) -> Path:
    """Write ``(H, W)`` uint8 or uint16 as PNG, float32 as ``.npy``; returns the path."""
    folder.mkdir(parents=True, exist_ok=True)
    if counts.dtype == np.float32:
        path = folder / f"{frame}.npy"
        np.save(path, counts, allow_pickle=False)
        return path
    path = folder / f"{frame}.png"
    Image.fromarray(counts).save(path, compress_level=1)
    return path


def read_frame(folder: Path, frame: str) -> np.ndarray:
    """Read what :func:`write_frame` wrote.

    Raises:
        FileNotFoundError: there is no such frame.
    """
    as_array = folder / f"{frame}.npy"
    if as_array.is_file():
        return np.load(as_array, allow_pickle=False)
    return read_counts(folder / f"{frame}.png")


def frame_names(folder: Path) -> list[str]:
    """Names of the frames in a folder, sorted."""
    return sorted(path.stem for path in folder.iterdir() if path.suffix in (".png", ".npy"))


def write_results(results: Results, out: Path) -> Path:
    """Write ``results.json``; numbers that are not finite become ``null``."""
    path = out / RESULTS_FILE
    content = _without_infinities(dataclasses.asdict(results))
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def read_results(out: Path) -> Results:
    """Read ``results.json`` of a folder.

    Raises:
        FileNotFoundError: nothing was evaluated into that folder.
        ValueError: written by another version.
    """
    content = json.loads((out / RESULTS_FILE).read_text(encoding="utf-8"))
    if content.get("version") != VERSION:
        raise ValueError(
            f"{out / RESULTS_FILE} has version {content.get('version')}, this package reads "
            f"{VERSION}; evaluate again"
        )
    metrics = {name: MetricInfo(**info) for name, info in content["metrics"].items()}
    sets = [_set_from(entry) for entry in content["sets"]]
    return Results(**{**content, "metrics": metrics, "sets": sets})


def write_per_frame(rows: Sequence[FrameRow], metrics: Sequence[str], out: Path) -> Path:
    """Write ``per_frame.csv``; a frame without a value has an empty cell."""
    path = out / PER_FRAME_FILE
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["set", "frame", "model", *metrics, "seconds"])
        for row in rows:
            numbers = [*(row.values.get(name, math.nan) for name in metrics), row.seconds]
            cells = ["" if math.isnan(number) else repr(float(number)) for number in numbers]
            table.writerow([row.set_name, row.frame, row.model, *cells])
    return path


def read_per_frame(out: Path) -> list[FrameRow]:
    """Read ``per_frame.csv`` of a folder."""
    with (out / PER_FRAME_FILE).open(newline="", encoding="utf-8") as file:
        rows = []
        for cells in csv.DictReader(file):
            names = [cells.pop(key) for key in ("set", "frame", "model")]
            values = {name: float(cell) if cell else math.nan for name, cell in cells.items()}
            rows.append(FrameRow(*names, seconds=values.pop("seconds"), values=values))
        return rows


def _set_from(entry: dict[str, Any]) -> SetResult:
    models = [
        ModelResult(
            **{
                **model,
                "interval": {name: tuple(ends) for name, ends in model["interval"].items()},
                "difference_to_bicubic": {
                    name: Difference(found["mean"], tuple(found["interval"]))
                    for name, found in model["difference_to_bicubic"].items()
                },
            }
        )
        for model in entry["models"]
    ]
    bins = entry["temperature_bins"]
    if bins is not None:
        bins = [
            TemperatureBin(
                **{**one, "models": {name: BinError(**e) for name, e in one["models"].items()}}
            )
            for one in bins
        ]
    return SetResult(**{**entry, "models": models, "temperature_bins": bins})


def _without_infinities(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinities(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_infinities(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
