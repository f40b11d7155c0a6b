"""What a recording tells of the node: a function of it for each key of ``recorded.json``.

Times come in as integer nanoseconds; what is shown to people goes out in hertz, milliseconds and
seconds. ``None``: not measured. What the keys mean stands in docs/evaluation.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
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


def _spread(values: np.ndarray) -> dict[str, float] | None:
    """Distribution of ``(n,)`` values; ``std`` is that of the population."""
    values = np.asarray(values, np.float64)
    if not values.size:
        return None
    found = {"count": values.size, "mean": float(values.mean()), "std": float(values.std())}
    quantiles = np.percentile(values, list(_SHARES.values())).tolist()
    return found | dict(zip(_SHARES, quantiles, strict=True))


def _stream_timing(messages: pd.DataFrame) -> dict[str, Any]:
    """One topic over time; ``messages``: in recorded order."""
    stamps, logged = messages.stamp, messages.logged.to_numpy()
    return {
        "messages": len(stamps),
        "rate": _rate(logged),
        "stamp_rate": _rate(np.unique(stamps)),
        "interval_ms": _spread(np.diff(logged) / 1e6),
        "duplicates": int(stamps.duplicated().sum()),
        "out_of_order": int((stamps < stamps.cummax()).sum()),
        "gaps": _gaps(stamps),
    }


def _rate(times: np.ndarray) -> float | None:
    elapsed = int(times[-1] - times[0]) if len(times) > 1 else 0
    return (len(times) - 1) / (elapsed / 1e9) if elapsed > 0 else None


def _gaps(stamps: np.ndarray) -> list[dict[str, Any]]:
    """Intervals between neighbours that are too long, and how many messages would have come."""
    stamps = np.unique(stamps)
    intervals = np.diff(stamps)
    median = float(np.median(intervals)) if intervals.size else 0.0
    return [
        {"after": stamp, "seconds": interval / 1e9, "missing": round(interval / median) - 1}
        for stamp, interval in zip(stamps.tolist(), intervals.tolist(), strict=False)
        if interval > GAP * median
    ]


def _drops(recording: Recording) -> dict[str, int]:
    """Camera frames without a result, by stamp, and results without a frame."""
    camera, results = (np.unique(recording.tables[kind].stamp) for kind in ("image", "sr"))
    places = np.flatnonzero(np.isin(camera, results))
    total = len(camera) - len(places)
    before = int(places[0]) if places.size else total
    after = len(camera) - 1 - int(places[-1]) if places.size else 0
    return {
        "frames": len(camera),
        "total": total,
        "before_first": before,
        "between": total - before - after,
        "after_last": after,
        "orphans": int((~np.isin(results, camera)).sum()),
    }


def _latency(recording: Recording) -> dict[str, float] | None:
    """From the log time of a camera frame to that of its result, ms."""
    apart = (recording.frames.sr_logged - recording.frames.camera_logged).dropna()
    return _spread(apart.to_numpy(np.int64) / 1e6) if recording.one_bag else None


def _stamp_to_log(recording: Recording, kind: str) -> dict[str, float] | None:
    """From the header stamps of a topic to its log times, ms; of clocks and transport."""
    table = recording.tables[kind]
    return _spread((table.logged - table.stamp) / 1e6)


def shares_clock(recording: Recording) -> bool:
    """Whether the camera's stamps and the log times are of one clock."""
    offset = _stamp_to_log(recording, "image")
    return offset is not None and abs(offset["p50"]) <= CLOCK_TOLERANCE_MS


def _mean_and_max(values: pd.Series, largest: pd.Series) -> tuple[float | None, float | None]:
    return (
        (float(values.astype(float).mean()), float(largest.max())) if len(values) else (None,) * 2
    )


def _consistency(recording: Recording) -> dict[str, float | None] | None:
    """|D(SR) - LR| in counts over all compared frames, D = antialiased bicubic /4."""
    compared = recording.frames.dropna(subset="consistency_mean")
    mean, most = _mean_and_max(compared.consistency_mean, compared.consistency_max)
    return {"frames": len(compared), "mean": mean, "max": most} if len(compared) else None


def _offline(recording: Recording) -> dict[str, Any] | None:
    """The results against a run of the same model on this machine; differences in counts."""
    if recording.offline is None:
        return None
    upscaler, compared = recording.offline.upscaler, recording.frames.dropna(subset="exact")
    mean, most = _mean_and_max(compared.difference_mean, compared.difference_max)
    tiling = {name: getattr(upscaler.runtime, name) for name in ("tile", "overlap", "tile_batch")}
    return {
        "model": upscaler.name,
        "weights_sha256": upscaler.weights_sha256,
        "backend": upscaler.backend,
        "device": upscaler.device,
        "settings": asdict(upscaler.settings) | tiling,
        "frames": len(compared),
        "exact": int(compared.exact.sum()),
        "exact_share": float(compared.exact.mean()) if len(compared) else None,
        "difference_mean": mean,
        "difference_max": most,
        "lost_results": recording.offline.lost,
    }


def _camera_infos(recording: Recording) -> dict[str, Any] | None:
    """Each result's camera_info against the camera's of its stamp, else the last before it."""
    own, scaled = recording.tables["image_info"], recording.tables["sr_info"]
    if own.empty or scaled.empty:
        return None
    info_of = info_finder(own.itertuples(index=False, name=None))
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
        _stamp_to_log(recording, "sr") if recording.one_bag and shares_clock(recording) else None
    ),
    "clock_offset_ms": lambda recording: _stamp_to_log(recording, "image"),
    "consistency": _consistency,
    "offline": _offline,
    "mismatches": lambda recording: dict(Counter(" ".join(recording.frames.faults).split())),
    "camera_info": _camera_infos,
    "node": lambda recording: recording.node,
}
"""Key in ``recorded.json`` -> what gives its value."""
