"""What a recording tells of the node: a function of it for each key of ``recorded.json``.

Times come in as integer nanoseconds; what is shown to people goes out in hertz, milliseconds and
seconds. ``None``: not measured. What the keys mean stands in docs/evaluation.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd

from difiisr_models.resample import SCALE
from difiisr_models.settings import Camera
from difiisr_ros.camera_info import crop_camera_info, info_finder, scale_camera_info
from difiisr_ros.commands.recorded_frames import Recording

GAP = 1.5  # an interval longer than so many medians is a gap
CLOCK_TOLERANCE_MS = 5000.0  # camera stamps further from their log times are of another clock

_SHARES = {"min": 0, "p50": 50, "p90": 90, "p99": 99, "max": 100}
_INFO_FIELDS = ("width", "height", "k", "p", "d", "r", "distortion_model", "binning_x", "binning_y")
_ROI_FIELDS = ("x_offset", "y_offset", "height", "width")  # do_rectify is free


def _spread(values: pd.Series | np.ndarray) -> dict[str, float] | None:
    """Distribution of ``(n,)`` values; ``std`` is that of the population."""
    values = np.asarray(values, np.float64)
    if not values.size:
        return None
    found = {"count": values.size, "mean": float(values.mean()), "std": float(values.std())}
    quantiles = np.percentile(values, list(_SHARES.values())).tolist()
    return found | dict(zip(_SHARES, quantiles, strict=True))


def _stream_timing(messages: pd.DataFrame) -> dict[str, Any]:
    """One topic over time; ``messages``: in recorded order. A gap is an interval too long."""
    stamps, logged = messages.stamp, messages.logged.to_numpy()
    ordered = np.unique(stamps)
    steps = np.diff(ordered)
    usual = np.median(steps) if steps.size else 0.0
    return {
        "messages": len(stamps),
        "rate": _rate(logged),
        "stamp_rate": _rate(ordered),
        "interval_ms": _spread(np.diff(logged) / 1e6),
        "duplicates": int(stamps.duplicated().sum()),
        "out_of_order": int((stamps < stamps.cummax()).sum()),
        "gaps": [
            {"after": stamp, "seconds": step / 1e9, "missing": round(step / usual) - 1}
            for stamp, step in zip(ordered.tolist(), steps.tolist(), strict=False)
            if step > GAP * usual
        ],
    }


def _rate(times: np.ndarray) -> float | None:
    elapsed = int(times[-1] - times[0]) if len(times) > 1 else 0
    return (len(times) - 1) / (elapsed / 1e9) if elapsed > 0 else None


def _drops(recording: Recording) -> dict[str, int]:
    """Camera frames without a result, by stamp, and results without a frame."""
    frames = recording.frames.sort_index()
    is_frame, is_answered = frames.camera_logged.notna(), frames.sr_logged.notna()
    places = np.flatnonzero(is_answered[is_frame])
    count, total = int(is_frame.sum()), int((is_frame & ~is_answered).sum())
    before, after = (places[0], count - 1 - places[-1]) if places.size else (total, 0)
    return {
        "frames": count,
        "total": total,
        "before_first": int(before),
        "between": int(total - before - after),
        "after_last": int(after),
        "orphans": int((is_answered & ~is_frame).sum()),
    }


def _latency(recording: Recording) -> dict[str, float] | None:
    """From the log time of a camera frame to that of its result, ms."""
    apart = (recording.frames.sr_logged - recording.frames.camera_logged).dropna()
    return _spread(apart.astype(np.int64) / 1e6) if recording.camera_bag is None else None


def _stamp_to_log(recording: Recording, kind: str) -> dict[str, float] | None:
    """From the header stamps of a topic to its log times, ms; of clocks and transport."""
    table = recording.tables[kind]
    return _spread((table.logged - table.stamp) / 1e6)


def _shares_clock(recording: Recording) -> bool:
    """Whether the camera's stamps and the log times are of one clock."""
    offset = _stamp_to_log(recording, "image")
    return offset is not None and abs(offset["p50"]) <= CLOCK_TOLERANCE_MS


def _mean_and_max(frames: pd.DataFrame, name: str) -> dict[str, float | None]:
    """Of the columns ``name_mean`` and ``name_max``, each over its own frames."""
    found = {"mean": frames[f"{name}_mean"].mean(), "max": frames[f"{name}_max"].max()}
    return {key: None if pd.isna(value) else float(value) for key, value in found.items()}


def _consistency(recording: Recording) -> dict[str, float | None] | None:
    """|D(SR) - LR| in counts over all compared frames, D = antialiased bicubic /4."""
    compared = recording.frames.dropna(subset="consistency_mean")
    found = {"frames": len(compared)} | _mean_and_max(compared, "consistency")
    return found if len(compared) else None


def _offline(recording: Recording) -> dict[str, Any] | None:
    """The results against a run of the same model on this machine; differences in counts."""
    if recording.offline is None:
        return None
    upscaler, compared = recording.offline.upscaler, recording.frames.dropna(subset="exact")
    tiling = {name: getattr(upscaler.runtime, name) for name in ("tile", "overlap", "tile_batch")}
    apart = _mean_and_max(compared, "difference")
    return {
        "model": upscaler.name,
        "weights_sha256": upscaler.weights_sha256,
        "backend": upscaler.backend,
        "device": upscaler.device,
        "settings": asdict(upscaler.settings) | tiling,
        "frames": len(compared),
        "exact": int(compared.exact.sum()),
        "exact_share": float(compared.exact.mean()) if len(compared) else None,
        "difference_mean": apart["mean"],
        "difference_max": apart["max"],
        "lost_results": recording.offline.lost,
    }


def _camera_infos(recording: Recording) -> dict[str, Any] | None:
    """Each result's camera_info against the camera's of its stamp, else the last before it."""
    own, scaled = recording.tables["image_info"], recording.tables["sr_info"]
    if own.empty or scaled.empty:
        return None
    info_of = info_finder(zip(own.stamp, own.logged, own.content, strict=True))
    wrong = [
        _wrong_fields(row.content, info_of(row.stamp, row.logged), recording.camera)
        for row in scaled.itertuples(index=False)
    ]
    fields = Counter(field for found in wrong for field in found)
    return {"messages": len(scaled), "right": wrong.count([]), "wrong": dict(fields)}


def _wrong_fields(found: Any, info: Any, camera: Camera) -> list[str]:
    """Fields of a result's camera_info that are not as due from the camera's ``info``."""
    for known in (camera, replace(camera, telemetry_rows=0)):  # of images without telemetry
        window = known.window(info.height, info.width)
        due = scale_camera_info(crop_camera_info(info, window), SCALE)
        if found.height == due.height:
            break
    wrong = [n for n in _INFO_FIELDS if not _equal(getattr(found, n), getattr(due, n))]
    if any(getattr(found.roi, name) != getattr(due.roi, name) for name in _ROI_FIELDS):
        wrong.append("roi")
    return wrong + ["frame_id"] * (found.header.frame_id != info.header.frame_id)


def _equal(found: Any, due: Any) -> bool:
    if isinstance(due, np.ndarray):
        return np.shape(found) == due.shape and np.allclose(found, due, rtol=1e-9, atol=1e-9)
    return found == due


MEASURES: dict[str, Callable[[Recording], Any]] = {
    "camera": lambda recording: _stream_timing(recording.tables["image"]),
    "sr": lambda recording: _stream_timing(recording.tables["sr"]),
    "drops": _drops,
    "latency_ms": _latency,
    "stamp_latency_ms": lambda recording: (
        _stamp_to_log(recording, "sr")
        if recording.camera_bag is None and _shares_clock(recording)
        else None
    ),
    "clock_offset_ms": lambda recording: _stamp_to_log(recording, "image"),
    "consistency": _consistency,
    "offline": _offline,
    "mismatches": lambda recording: dict(Counter(" ".join(recording.frames.faults).split())),
    "camera_info": _camera_infos,
    "node": lambda recording: recording.node,
}
"""Key in ``recorded.json`` -> what gives its value."""


def judge(recording: Recording) -> dict[str, Any]:
    """What ``recorded.json`` holds.

    Beside :data:`MEASURES` that is ``notes`` (what limits these numbers) and ``fault`` (what is
    wrong with the recording, or "").
    """
    camera_bag = recording.camera_bag and str(recording.camera_bag)
    values: dict[str, Any] = {"bag": str(recording.bag), "camera_bag": camera_bag}
    values["topics"] = recording.topics
    values |= {name: measure(recording) for name, measure in MEASURES.items()}
    values["notes"] = [*_timing_notes(values, recording), *_exactness_notes(values)]
    return values | {"fault": recording.fault}


def _timing_notes(values: dict[str, Any], recording: Recording) -> Iterator[str]:
    latency = values["latency_ms"]
    if recording.camera_bag:
        yield "camera and results lie in two recordings: latency cannot be measured"
    elif latency is None:
        yield "no result has the stamp of a camera frame: latency cannot be measured"
    elif latency["max"] == 0:
        yield (
            "every result lies at the very time of its camera frame: this recording was made "
            "offline, and its latency says nothing about the node"
        )
    if latency is not None and not _shares_clock(recording):
        yield (
            f"the camera's stamps are {values['clock_offset_ms']['p50'] / 1e3:.1f} s from the "
            "clock of the recording (a played bag, or clocks that are not synchronised): "
            "latency from the stamps is not measured"
        )


def _exactness_notes(values: dict[str, Any]) -> Iterator[str]:
    """What the offline run shows, and why results may rightly differ from it."""
    offline, between, node = values["offline"], values["drops"]["between"], values["node"]
    if offline is None or not offline["frames"]:
        return
    if offline["lost_results"]:
        yield (
            f"{offline['lost_results']} frames without a result were processed by the node, as the "
            "results after them show: their results were lost on the way to the recorder"
        )
    if offline["exact"] == offline["frames"]:
        return
    yield (
        "the node's range may have followed frames from before the recording began; the results "
        "then differ until it has caught up (5 % of the way with each frame)"
    )
    if between:
        said = f" ({node['dropped stale']} by its own count)" if "dropped stale" in node else ""
        yield (
            f"{between} frames between results have none: dropped as stale{said}, or their results "
            "lost on the way to the recorder; a mixture of both in one gap is not recognised"
        )
    sha, where = node.get("weights sha256"), (node.get("backend"), node.get("device"))
    if sha is None:
        yield "no diagnostics of the node are recorded: its model, backend and device are not known"
    elif sha != offline["weights_sha256"]:
        yield f"the node ran other weights: {sha[:12] or 'none'} ({node.get('model')})"
    if sha is not None and where != (offline["backend"], offline["device"]):
        yield (
            f"the node ran {where[0]} on {where[1]}, the offline run {offline['backend']} on "
            f"{offline['device']}: sums are rounded differently"
        )
    yield "the node's settings are not recorded: give those it had (steps, fidelity, ...)"
