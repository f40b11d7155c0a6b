"""Every model on every set: frames, measurements and means, resumed where it was stopped."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from difiisr_models.resample import SCALE
from difiisr_training.degradations.mix import Kind
from difiisr_training.evaluation.bootstrap import mean_and_interval
from difiisr_training.evaluation.flicker import FlickerMeter
from difiisr_training.evaluation.inputs import InputSet, hash_frame
from difiisr_training.evaluation.judge import Judge, Scene
from difiisr_training.evaluation.outputs import OutputFolder, hash_files, read_output
from difiisr_training.evaluation.pairs import make_pair
from difiisr_training.evaluation.peers import Contestant
from difiisr_training.evaluation.results import (
    FINISHED_FOLDER,
    HR_FOLDER,
    LR_FOLDER,
    BinError,
    Difference,
    FrameRow,
    MetricInfo,
    Mode,
    ModelResult,
    SetResult,
    TemperatureBin,
    frame_names,
    frames_folder,
    read_frame,
    slug,
    write_frame,
)
from difiisr_training.evaluation.temperature import BinErrors, Radiometry, bin_edges

_BASELINE = "bicubic"
_LIBRARIES = ("lpips", "pyiqa", "spandrel")  # they hold networks of metrics and models
_RESERVED = {
    LR_FOLDER: "the input's own frames",
    HR_FOLDER: "the input's own frames",
    "HR": "the high-resolution frames in results of detection",
    "truth": "the annotations in results of detection",
}
_WITHOUT_VALUE = (
    "no frame has a value: all are flat or too small; NIQE needs two textured blocks of 96x96 "
    "pixels, SSIM 11x11, flicker two frames of one film with pixels that do not change"
)


@dataclass(frozen=True)
class Protocol:
    """How everything is measured.

    Attributes:
        mode: with reference (the input is high resolution), or of a camera's own frames.
        degradation: how low resolution is made of the input, with reference.
        radiometry: of the counts, if known.
        environment: what else may change a number or a time; part of what makes a result stale.
    """

    mode: Mode
    degradation: Kind
    radiometry: Radiometry | None
    environment: Mapping[str, Any]


@dataclass(frozen=True)
class PreparedSet:
    """A set whose frames lie in the results' folder, ready for every model.

    Attributes:
        source: where they are from.
        frames: their names, in order.
        sizes: of the low-resolution frames, ``(h, w)``.
        sha256: of the frames as read.
        pairs_sha256: of the frames as the models see them and should answer.
        dtype: of the counts.
        edges: of the temperature bins; ``None`` without radiometry or reference.
        flat: how many frames have no picture, see :attr:`Scene.flat`.
    """

    source: InputSet
    frames: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    sha256: str
    pairs_sha256: str
    dtype: np.dtype
    edges: tuple[float, ...] | None
    flat: int


@dataclass(frozen=True)
class Finished:
    """Measurements of one model on one set; ``bins`` and ``bin_pixels``: per temperature bin."""

    rows: tuple[FrameRow, ...]
    bins: tuple[BinError | None, ...] | None
    bin_pixels: tuple[int, ...] | None


@dataclass(frozen=True)
class Evaluation:
    """All that was measured.

    Attributes:
        sets: one result per set.
        rows: one per set, model and frame.
        metrics: those that have a value anywhere.
        without_value: those that have none, and why; and the sets of which frames are left out.
    """

    sets: list[SetResult]
    rows: list[FrameRow]
    metrics: dict[str, MetricInfo]
    without_value: dict[str, str]


def prepare(source: InputSet, protocol: Protocol, out: Path) -> PreparedSet:
    """Write the low- and high-resolution frames of a set.

    Raises:
        OSError, ValueError: the input is not readable, holds no frame, frames of two dtypes, or
            one of less than 4x4 pixels.
    """
    folders = {series: frames_folder(out, source.name, series) for series in (LR_FOLDER, HR_FOLDER)}
    for folder in folders.values():
        shutil.rmtree(folder, ignore_errors=True)
    as_read, as_paired = hashlib.sha256(), hashlib.sha256()
    frames, sizes, dtypes, kelvin, flat = [], [], set(), [], 0
    for name, counts in source.frames():
        if min(counts.shape) < SCALE:
            raise ValueError(
                f"{source.path}: frame {name} has {counts.shape[1]}x{counts.shape[0]} pixels, at "
                f"least {SCALE}x{SCALE} are evaluated; take it out"
            )
        hash_frame(as_read, name, counts)
        lr, hr = counts, None
        if protocol.mode == "reference":
            with _named(f"degradation {protocol.degradation} fails", source, name, counts):
                lr, hr = make_pair(counts, protocol.degradation, name)
            write_frame(folders[HR_FOLDER], name, hr)
            hash_frame(as_paired, name, hr)
            if protocol.radiometry:
                kelvin.append(np.quantile(protocol.radiometry.kelvin(hr), (0.001, 0.999)))
        write_frame(folders[LR_FOLDER], name, lr)
        hash_frame(as_paired, name, lr)
        frames.append(name)
        sizes.append(lr.shape)
        flat += Scene(lr, hr).flat
        dtypes.add(counts.dtype)
    if len(dtypes) != 1:
        raise ValueError(
            f"{source.path}: frames of one kind of counts are evaluated, found "
            f"{', '.join(sorted(dtype.name for dtype in dtypes)) or 'none'}"
        )
    edges = tuple(bin_edges(float(np.min(kelvin)), float(np.max(kelvin)))) if kelvin else None
    return PreparedSet(
        source, tuple(frames), tuple(sizes), as_read.hexdigest(), as_paired.hexdigest(),
        dtypes.pop(), edges, flat,
    )  # fmt: skip


def run_model(
    model: Contestant | OutputFolder,
    prepared: PreparedSet,
    protocol: Protocol,
    judge: Judge,
    out: Path,
    on_frame: Callable[[], None],
) -> tuple[Finished, str]:
    """Measure one model on one set, unless that is done already.

    Args:
        model: what to run, or a folder of results.
        prepared: from :func:`prepare`.
        protocol: how.
        judge: the metrics.
        out: the results' folder.
        on_frame: called once per frame.

    Returns:
        the measurements, and the hash of the weights or output images.

    Raises:
        OSError, ValueError: a folder of results does not fit the frames, or a model or a metric
            fails at a frame, which is named.
    """
    outputs: dict[str, Path] = {}
    if isinstance(model, OutputFolder):
        outputs = model.images(prepared.source.name, prepared.frames, prepared.sizes)
        sha256 = hash_files(list(outputs.values()))
    else:
        sha256 = model.weights_sha256
    record = out / FINISHED_FOLDER / slug(prepared.source.name) / f"{slug(model.name)}.json"
    folder = frames_folder(out, prepared.source.name, model.name)
    key = _key(model.name, sha256, prepared, protocol, judge)
    if done := _read_finished(record, key, folder, prepared.frames):
        for _ in prepared.frames:
            on_frame()
        return done, sha256
    shutil.rmtree(folder, ignore_errors=True)
    if isinstance(model, OutputFolder):
        finished = _measure(
            model.name,
            lambda name, _: (read_output(outputs[name], prepared.dtype), math.nan),
            prepared, protocol, judge, out, on_frame,
        )  # fmt: skip
    else:
        finished = _measure(
            model.name,
            _timed(model, prepared, protocol, out),
            prepared, protocol, judge, out, on_frame,
        )  # fmt: skip
    _write_finished(record, key, finished)
    return finished, sha256


def evaluate(
    sets: Sequence[InputSet],
    models: Sequence[Contestant | OutputFolder],
    protocol: Protocol,
    judge: Judge,
    out: Path,
) -> Evaluation:
    """Measure every model on every set.

    Raises:
        OSError, ValueError: as :func:`prepare` and :func:`run_model`; two models, or two sets,
            have one name; or ``out`` lies in a folder of images, where the next run would find
            the results among its input.
    """
    _check_names([model.name for model in models], _RESERVED)
    _check_names([source.name for source in sets], {})
    _check_folders(sets, out)
    measured: list[dict[Contestant | OutputFolder, tuple[Finished, str]]] = []
    with tqdm(unit="frame", disable=None) as progress:
        work = []
        for source in sets:
            progress.set_description(f"{source.name}: reading")
            work.append(prepare(source, protocol, out))
        for prepared in work:  # a missing image is said before hours of work, not after
            for model in models:
                if isinstance(model, OutputFolder):
                    model.images(prepared.source.name, prepared.frames, prepared.sizes)
        progress.reset(total=sum(len(one.frames) for one in work) * len(models))
        for prepared in work:
            measured.append({})
            for model in models:
                progress.set_description(f"{prepared.source.name}: {model.name}")
                measured[-1][model] = run_model(
                    model, prepared, protocol, judge, out, progress.update
                )
    rows = [row for one in measured for finished, _ in one.values() for row in finished.rows]
    with_value = {
        name: info
        for name, info in judge.columns.items()
        if any(not math.isnan(row.values[name]) for row in rows)
    }
    return Evaluation(
        [
            _summary(prepared, one, list(with_value))
            for prepared, one in zip(work, measured, strict=True)
        ],
        rows,
        with_value,
        {name: _WITHOUT_VALUE for name in judge.columns if name not in with_value}
        | {
            f"set {one.source.name}": f"{one.flat} flat frame{'s' * (one.flat > 1)} (all pixels "
            "equal) left out of the means; consistency and errors do include them"
            for one in work
            if one.flat
        },
    )


def _timed(
    model: Contestant, prepared: PreparedSet, protocol: Protocol, out: Path
) -> Callable[[str, np.ndarray], tuple[np.ndarray, float]]:
    """Super-resolve frame after frame, with the time of each; one untimed run goes before.

    The frames of a film are one stream, as on the robot; images are each a stream of their own.
    """
    film = prepared.source.kind == "bag" or protocol.mode == "camera"
    folder = frames_folder(out, prepared.source.name, LR_FOLDER)
    first = read_frame(folder, prepared.frames[0])
    with _named(f"{model.name} fails", prepared.source, prepared.frames[0], first):
        model.upscale(first)
    model.reset()

    def super_resolve(_: str, lr: np.ndarray) -> tuple[np.ndarray, float]:
        if not film:
            model.reset()
        started = time.perf_counter()
        return model.upscale(lr), time.perf_counter() - started

    return super_resolve


def _measure(
    name: str,
    result_of: Callable[[str, np.ndarray], tuple[np.ndarray, float]],
    prepared: PreparedSet,
    protocol: Protocol,
    judge: Judge,
    out: Path,
    on_frame: Callable[[], None],
) -> Finished:
    source = prepared.source
    lr_folder, hr_folder, folder = (
        frames_folder(out, source.name, series) for series in (LR_FOLDER, HR_FOLDER, name)
    )
    flicker = FlickerMeter() if "flicker" in judge.metrics else None
    bins = None
    if prepared.edges is not None and protocol.radiometry is not None:
        bins = BinErrors(protocol.radiometry, prepared.edges)
    rows = []
    for frame in prepared.frames:
        lr = read_frame(lr_folder, frame)
        hr = read_frame(hr_folder, frame) if protocol.mode == "reference" else None
        with _named(f"{name} fails", source, frame, lr):
            sr, seconds = result_of(frame, lr)
        write_frame(folder, frame, sr)
        with _named(f"the result of {name} cannot be judged", source, frame, sr):
            values = judge(sr, Scene(lr, hr))
        if flicker is not None:
            values |= flicker.update(lr, sr)
        if bins is not None and hr is not None:
            bins.add(sr, hr)
        rows.append(FrameRow(source.name, frame, name, values, seconds))
        on_frame()
    if bins is None:
        return Finished(tuple(rows), None, None)
    return Finished(tuple(rows), tuple(bins.errors()), tuple(bins.pixels()))


@contextmanager
def _named(what: str, source: InputSet, name: str, frame: np.ndarray) -> Iterator[None]:
    """Say which frame it was that something failed at."""
    try:
        yield
    except Exception as error:  # strangers' networks raise whatever they raise
        height, width = frame.shape[:2]
        raise ValueError(
            f"{what} at frame {name} of {source.path} ({width}x{height} pixels): "
            f"{str(error) or type(error).__name__}"
        ) from error


def _key(
    name: str, sha256: str, prepared: PreparedSet, protocol: Protocol, judge: Judge
) -> dict[str, Any]:
    """All that the measurements of a model on a set depend on."""
    radiometry = protocol.radiometry
    return {
        "model": name,
        "weights_sha256": sha256,
        "frames_sha256": prepared.pairs_sha256,
        "mode": protocol.mode,
        "kind": prepared.source.kind,
        "metrics": list(judge.columns),
        "radiometry": [radiometry.gain, radiometry.offset] if radiometry else None,
        "metric_files": judge.files,
        "environment": {**protocol.environment, "libraries": _library_versions()},
    }


def _library_versions() -> dict[str, str]:
    """Of those that are installed."""
    versions = {}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _read_finished(
    record: Path, key: dict[str, Any], folder: Path, frames: Sequence[str]
) -> Finished | None:
    """What was measured before with the same key, if its frames are still there."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if content["key"] != key or not folder.is_dir() or frame_names(folder) != sorted(frames):
        return None
    bins, pixels = content["bins"], content["bin_pixels"]
    return Finished(
        tuple(FrameRow(**row) for row in content["rows"]),
        None if bins is None else tuple(None if one is None else BinError(**one) for one in bins),
        None if pixels is None else tuple(pixels),
    )


def _write_finished(record: Path, key: dict[str, Any], finished: Finished) -> None:
    """In one step: a run that is stopped leaves a whole record or none."""
    bins = finished.bins
    content = {
        "key": key,
        "rows": [vars(row) for row in finished.rows],
        "bins": None if bins is None else [one and vars(one) for one in bins],
        "bin_pixels": finished.bin_pixels,
    }
    record.parent.mkdir(parents=True, exist_ok=True)
    partial = record.with_suffix(".partial")
    partial.write_text(json.dumps(content), encoding="utf-8")
    os.replace(partial, record)


def _summary(
    prepared: PreparedSet,
    measured: Mapping[Contestant | OutputFolder, tuple[Finished, str]],
    columns: Sequence[str],
) -> SetResult:
    values = {
        model.name: {
            name: np.array([row.values[name] for row in found.rows], np.float64) for name in columns
        }
        for model, (found, _) in measured.items()
    }
    models = []
    for model, (found, sha256) in measured.items():
        own, baseline = values[model.name], values.get(_BASELINE)
        means = {name: mean_and_interval(own[name]) for name in columns}
        differences = {
            name: Difference(*mean_and_interval(_paired(own[name], baseline[name])))
            for name in (columns if baseline else ())
        }
        local = isinstance(model, Contestant)
        models.append(
            ModelResult(
                name=model.name,
                title=model.title if local else model.name,
                weights_sha256=sha256,
                parameters=model.parameter_count if local else None,
                seconds_per_frame=float(np.mean([row.seconds for row in found.rows])),
                mean={name: mean for name, (mean, _) in means.items()},
                interval={name: interval for name, (_, interval) in means.items()},
                difference_to_bicubic=differences,
            )
        )
    source = prepared.source
    return SetResult(
        name=source.name,
        path=str(source.path),
        kind=source.kind,
        topic=source.topic,
        frames=len(prepared.frames),
        sha256=prepared.sha256,
        models=models,
        temperature_bins=_temperature_bins(prepared.edges, measured),
    )


def _paired(own: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # two infinite values have no difference
        return own - baseline


def _temperature_bins(
    edges: Sequence[float] | None,
    measured: Mapping[Contestant | OutputFolder, tuple[Finished, str]],
) -> list[TemperatureBin] | None:
    if edges is None:
        return None
    found = {model.name: finished for model, (finished, _) in measured.items()}
    pixels = next(iter(found.values())).bin_pixels
    return [
        TemperatureBin(
            edges[i], edges[i + 1], pixels[i], {name: one.bins[i] for name, one in found.items()}
        )
        for i in range(len(edges) - 1)
        if pixels[i]
    ]


def _check_names(names: Sequence[str], reserved: Mapping[str, str]) -> None:
    """Names must stay apart as names of folders."""
    taken = dict(reserved)
    for name in names:
        if (folder := slug(name)) in taken:
            raise ValueError(
                f"{name!r} and {taken[folder]} would share the folder {folder!r}; "
                "give each once and under another name"
            )
        taken[folder] = repr(name)


def _check_folders(sets: Sequence[InputSet], out: Path) -> None:
    """Results must not become input: folders of images are searched recursively."""
    for source in sets:
        if source.kind == "images" and out.resolve().is_relative_to(source.path.resolve()):
            raise ValueError(
                f"the results {out} would lie in the input {source.path}, and be evaluated "
                "themselves the next time; write them to another folder"
            )
