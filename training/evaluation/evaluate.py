"""Every model on every set: prepare the frames, run the models, judge; resumed where it stopped."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from difiisr_models.files import write_json
from difiisr_training.data.images import read_counts
from difiisr_training.degradations import Kind
from difiisr_training.evaluation.films import pan_to
from difiisr_training.evaluation.inputs import InputSet, make_pair
from difiisr_training.evaluation.measures import Judge, is_flat
from difiisr_training.evaluation.metrics import mean_and_interval
from difiisr_training.evaluation.peers import OutputFolder, Peer
from difiisr_training.evaluation.results import (
    FINISHED_FOLDER,
    HR_FOLDER,
    LR_FOLDER,
    ModelResult,
    Results,
    SetResult,
    frame_names,
    frames_folder,
    read_frame,
    slug,
    write_frame,
)

_BASELINE = "bicubic"
_RESERVED = (LR_FOLDER, HR_FOLDER, "HR", "truth")  # of the input, and in results of detection
_WITHOUT_VALUE = (
    "no frame has a value: all are flat or too small; SSIM needs 11x11 pixels, flicker two frames "
    "of one film with pixels that do not change"
)


@dataclass(frozen=True)
class PreparedSet:
    """A set whose frames lie in the results' folder, ready for every model."""

    source: InputSet
    sizes: dict[str, tuple[int, int]]  # of the low-resolution frames by name, in order, (h, w)
    sha256: str  # of the frames as read
    flat: int  # number of frames that have no picture, see is_flat
    left_out: dict[str, str]  # frame: why it is none


def judge_models(
    sets: Sequence[InputSet],
    models: Sequence[Peer | OutputFolder],
    judge: Judge,
    out: Path,
    degradation: Kind = "bicubic",
    environment: Mapping[str, Any] = MappingProxyType({}),
    pan: int = 0,
) -> Results:
    """Measure every model on every set; frames are written to ``out``, the results are not.

    Args:
        sets: what is evaluated.
        models: what is compared.
        judge: the metrics; with reference (the input is high resolution), or of a camera's own
            frames.
        out: folder of the frames, and of what is finished and is not run again.
        degradation: how low resolution is made of the input, with reference.
        environment: what else may change a number or a time, as versions; part of what makes a
            result stale.
        pan: frames that a recurrent model sees before each image, with reference; see
            :func:`films.pan_to`.

    Raises:
        OSError, ValueError: an input is not readable, holds no frame, or frames of two dtypes; a
            folder of results does not fit the frames; a model or a metric fails at a frame, which
            is named; two models, or two sets, have one name; or ``out`` lies in a folder of images
            that is evaluated.
    """
    _check_names([*_RESERVED, *(model.name for model in models)])
    _check_names([source.name for source in sets])
    for source in sets:
        if source.kind == "images" and out.resolve().is_relative_to(source.path.resolve()):
            raise ValueError(
                f"the results {out} would lie in the input {source.path}, and be evaluated "
                "themselves the next time; write them to another folder"
            )
        if pan and (source.kind == "bag" or source.lr or judge.mode != "reference"):
            raise ValueError(f"a pan is made of images of high resolution alone, not {source.name}")
    prepared = [_prepare(source, judge, degradation, out) for source in sets]
    compared = [  # a missing image is said before hours of work
        [m.peer(one.source.name, one.sizes) if isinstance(m, OutputFolder) else m for m in models]
        for one in prepared
    ]
    protocol = {
        "layout": 3,  # of what is finished
        "mode": judge.mode,
        "degradation": degradation,
        "radiometry": judge.radiometry and asdict(judge.radiometry),
        "environment": dict(environment),
        "metrics": list(judge.columns),
        "metric_files": judge.files,
    }
    protocol |= {"pan": pan} if pan else {}
    total = sum(len(one.sizes) for one in prepared) * len(models)
    with tqdm(total=total, unit="frame", disable=None) as progress:
        measured = [
            {model: _measure(model, one, protocol, judge, out, progress) for model in of_set}
            for one, of_set in zip(prepared, compared, strict=True)
        ]
    not_run, metrics = dict(judge.not_run), {}
    for name, info in judge.columns.items():
        if all(values[name].isna().all() for of in measured for values in of.values()):
            not_run[name] = _WITHOUT_VALUE
        else:
            metrics[name] = info
    for one in prepared:
        for name, reason in one.left_out.items():
            not_run[f"frame {name} of {one.source.name}"] = reason
        if one.flat:
            not_run[f"set {one.source.name}"] = (
                f"{one.flat} flat frame{'s' * (one.flat > 1)} (all pixels equal) left out of the "
                "means; consistency and errors do include them"
            )
    made, own = str(degradation), [source.name for source in sets if source.lr]
    if own:
        made = "own pairs" if len(own) == len(sets) else f"{made}; own pairs of {', '.join(own)}"
    if pan:
        made += f"; recurrent models saw a pan of {pan} frames before each image"
    return Results(
        command=[],
        environment=dict(environment),
        mode=judge.mode,
        degradation=made if judge.mode == "reference" else None,
        metrics=metrics,
        not_run=not_run,
        sets=[_summary(*one, metrics) for one in zip(prepared, measured, strict=True)],
        left_out=sum(len(one.left_out) for one in prepared),
        metric_files=judge.files,
    )


def _prepare(source: InputSet, judge: Judge, degradation: Kind, out: Path) -> PreparedSet:
    """Write the low- and high-resolution frames of a set."""
    lr_folder, hr_folder = (frames_folder(out, source.name, s) for s in (LR_FOLDER, HR_FOLDER))
    for folder in (lr_folder, hr_folder):
        shutil.rmtree(folder, ignore_errors=True)
    sha256, sizes, dtypes, flat = hashlib.sha256(), {}, set(), 0
    left_out: dict[str, str] = {}
    for name, counts in tqdm(source.frames(left_out), source.name, unit="frame", disable=None):
        sha256.update(f"{name}\n{counts.dtype.name} {counts.shape}\n".encode())
        sha256.update(np.ascontiguousarray(counts).data)
        lr = wanted = counts
        if judge.mode == "reference":
            with _named(f"degradation {degradation} fails", source, name, counts):
                lr, wanted = source.pair(name, counts, degradation)
                mask = source.mask(name, wanted)
            for given in (lr if source.lr else None, mask):
                sha256.update(b"" if given is None else given.tobytes())
            write_frame(hr_folder, name, wanted)
        write_frame(lr_folder, name, lr)
        sizes[name] = lr.shape
        flat += is_flat(wanted)
        dtypes.add(counts.dtype.name)
    if len(dtypes) != 1:
        raise ValueError(
            f"{source.path}: frames of one kind of counts are evaluated, found "
            f"{', '.join(sorted(dtypes)) or 'none'}"
        )
    return PreparedSet(source, sizes, sha256.hexdigest(), flat, left_out)


def _measure(
    model: Peer,
    prepared: PreparedSet,
    protocol: dict[str, Any],
    judge: Judge,
    out: Path,
    progress: tqdm,
) -> pd.DataFrame:
    """Run a model on a set, unless that is done: a row of values per frame."""
    source = prepared.source
    key = protocol | {  # all that the numbers depend on
        "model": model.name,
        "weights_sha256": model.weights_sha256,
        "frames_sha256": prepared.sha256,
        "kind": source.kind,
    }
    folder = frames_folder(out, source.name, model.name)
    record = out / FINISHED_FOLDER / slug(source.name) / f"{slug(model.name)}.json"
    try:
        written = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        written = {}
    found = written.get("values")
    if found and written["key"] == key and frame_names(folder) == sorted(prepared.sizes):
        progress.update(len(prepared.sizes))
    else:
        shutil.rmtree(folder, ignore_errors=True)
        rows: list[dict[str, float]] = []
        for frame, lr, sr, seconds in _results(model, prepared, protocol, out):
            write_frame(folder, frame, sr)
            hr = mask = None
            if judge.mode == "reference":
                hr = read_frame(frames_folder(out, source.name, HR_FOLDER), frame)
                mask = source.mask(frame, hr)
            with _named(f"the result of {model.name} cannot be judged", source, frame, sr):
                if not rows:
                    judge.reset()
                rows.append(judge(sr, lr, hr, mask) | {"seconds": seconds})
            progress.update()
        found = pd.DataFrame(rows).to_dict("list")
        write_json(record, {"key": key, "values": found})
    return pd.DataFrame(found, list(prepared.sizes), dtype=np.float64)


def _results(
    model: Peer, prepared: PreparedSet, protocol: dict[str, Any], out: Path
) -> Iterator[tuple[str, np.ndarray, np.ndarray, float]]:
    """Name, low resolution, result and seconds of each frame."""
    source, is_first = prepared.source, True
    for frame in prepared.sizes:
        lr = read_frame(frames_folder(out, source.name, LR_FOLDER), frame)
        with _named(f"{model.name} fails", source, frame, lr):
            if model.outputs:
                sr, seconds = read_counts(model.outputs[frame]), math.nan
                if sr.dtype != lr.dtype:
                    raise ValueError(f"{sr.dtype} is no image of {lr.dtype} counts")
            else:
                if is_first:  # one untimed run goes before
                    model.upscale(lr)
                # The frames of a film are one stream, as on the robot; images are each their own.
                if is_first or not (source.kind == "bag" or protocol["mode"] == "camera"):
                    model.reset()
                if "pan" in protocol and model.is_recurrent:
                    hr = read_frame(frames_folder(out, source.name, HR_FOLDER), frame)
                    for n, seen in enumerate(pan_to(hr, protocol["pan"])):
                        model.upscale(make_pair(seen, protocol["degradation"], f"{frame} {n}")[0])
                started = time.perf_counter()
                sr = model.upscale(lr)
                seconds = time.perf_counter() - started
        is_first = False
        yield frame, lr, sr, seconds


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


def _summary(
    prepared: PreparedSet, measured: Mapping[Peer, pd.DataFrame], metrics: Iterable[str]
) -> SetResult:
    plain = {model.name: values for model, values in measured.items()}.get(_BASELINE)
    results = []
    for model, values in measured.items():
        means = _means(values, metrics)
        results.append(
            ModelResult(
                name=model.name,
                title=model.title,
                weights_sha256=model.weights_sha256,
                parameters=model.parameters,
                seconds_per_frame=float(values["seconds"].mean()),
                mean={name: one["mean"] for name, one in means.items()},
                interval={name: one["interval"] for name, one in means.items()},
                difference_to_bicubic={} if plain is None else _means(values - plain, metrics),
                values=values,
            )
        )
    source = prepared.source
    return SetResult(
        name=source.name, path=str(source.path), kind=source.kind, topic=source.topic,
        frames=len(prepared.sizes), sha256=prepared.sha256, models=results,
    )  # fmt: skip


def _means(values: pd.DataFrame, metrics: Iterable[str]) -> dict[str, dict[str, Any]]:
    found = {name: mean_and_interval(values[name].to_numpy()) for name in metrics}
    return {name: {"mean": mean, "interval": ends} for name, (mean, ends) in found.items()}


def _check_names(names: Sequence[str]) -> None:
    """Names must stay apart as names of folders."""
    shared = [folder for folder, count in Counter(map(slug, names)).items() if count > 1]
    if shared:
        raise ValueError(
            f"two would share the folder {shared[0]!r}; give each once and under another name"
        )
