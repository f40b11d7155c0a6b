"""What a recording tells of the node: a function of it for each key of ``recorded.json``.

Times come in as integer nanoseconds; what is shown to people goes out in hertz, milliseconds and
seconds. ``None``: not measured.
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

_INFO_FIELDS = ("width", "height", "k", "p", "d", "r", "distortion_model", "binning_x", "binning_y")


def spread(values: np.ndarray) -> dict[str, float] | None:
    """Distribution of ``(n,)`` values in their unit; ``std`` is that of the population."""
    values = np.asarray(values, np.float64)
    if not values.size:
        return None
    names, shares = ("min", "p50", "p90", "p99", "max"), (0, 50, 90, 99, 100)
    found = {"count": values.size, "mean": float(values.mean()), "std": float(values.std())}
    return found | dict(zip(names, np.percentile(values, shares).tolist(), strict=True))


def stream_timing(messages: pd.DataFrame) -> dict[str, Any]:
    """One topic over time.

    Args:
        messages: columns ``stamp`` and ``logged``, int64 ns, in recorded order.

    Returns:
        ``messages``, ``rate`` (per second, by log time), ``stamp_rate`` (by header stamp),
        ``interval_ms`` (by log time; its ``std`` is the jitter), ``duplicates`` (stamps seen
        before), ``out_of_order`` (stamps older than an earlier one), ``gaps``.
    """
    stamps, logged = messages.stamp, messages.logged.to_numpy()
    return {
        "messages": len(stamps),
        "rate": _rate(logged),
        "stamp_rate": _rate(np.unique(stamps)),
        "interval_ms": spread(np.diff(logged) / 1e6),
        "duplicates": int(stamps.duplicated().sum()),
        "out_of_order": int((stamps < stamps.cummax()).sum()),
        "gaps": find_gaps(stamps),
    }


def _rate(times: np.ndarray) -> float | None:
    elapsed = int(times[-1] - times[0]) if len(times) > 1 else 0
    return (len(times) - 1) / (elapsed / 1e9) if elapsed > 0 else None


def find_gaps(stamps: np.ndarray) -> list[dict[str, Any]]:
    """Intervals between neighbouring stamps (``(n,)`` int64 ns, any order) above 1.5 medians.

    Returns:
        of each ``after`` (the stamp before it, ns), ``seconds``, and ``missing`` (messages that
        would have come at the median interval).
    """
    stamps = np.unique(stamps)
    intervals = np.diff(stamps)
    median = float(np.median(intervals)) if intervals.size else 0.0
    return [
        {"after": stamp, "seconds": interval / 1e9, "missing": round(interval / median) - 1}
        for stamp, interval in zip(stamps.tolist(), intervals.tolist(), strict=False)
        if interval > GAP * median
    ]


def find_drops(camera: np.ndarray, results: np.ndarray) -> dict[str, int]:
    """Camera frames without a result, by stamp; both ``(n,)`` int64 ns, in any order.

    Returns:
        ``frames`` (each stamp once), ``total`` (those without a result), of these
        ``before_first`` (the node was not yet listening), ``between`` and ``after_last`` (the
        recording ended first, or the node stopped), and ``orphans`` (results without a frame).
    """
    camera, results = np.unique(camera), np.unique(results)
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


def latency(recording: Recording, earlier: str, later: str) -> dict[str, float] | None:
    """From one log time to another, ms: of camera, sr or detections, where a frame has both."""
    if not recording.one_bag and earlier == "camera":
        return None
    frames = recording.frames
    apart = (frames[f"{later}_logged"] - frames[f"{earlier}_logged"]).dropna()
    return spread(apart.to_numpy(np.int64) / 1e6)


def stamp_to_log(recording: Recording, kind: str) -> dict[str, float] | None:
    """From the header stamps of a topic to its log times, ms; of clocks and transport."""
    table = recording.tables[kind]
    return spread((table.logged - table.stamp) / 1e6)


def shares_clock(recording: Recording) -> bool:
    """Whether the camera's stamps and the log times are of one clock."""
    offset = stamp_to_log(recording, "image")
    return offset is not None and abs(offset["p50"]) <= CLOCK_TOLERANCE_MS


def mean_consistency(recording: Recording) -> dict[str, float] | None:
    """|D(SR) - LR| in counts over all compared frames, D = antialiased bicubic /4."""
    means = recording.frames.consistency_mean.dropna().to_numpy(float)
    if not means.size:
        return None
    most = recording.frames.consistency_max.max()
    return {"frames": means.size, "mean": float(means.mean()), "max": float(most)}


def offline_comparison(recording: Recording) -> dict[str, Any] | None:
    """The results against a run of the same model on this machine; differences in counts.

    ``lost_results``: frames without a recorded result that the node processed all the same.
    """
    if recording.offline is None:
        return None
    upscaler, compared = recording.offline.upscaler, recording.frames.dropna(subset="exact")
    exact, means = compared.exact.to_numpy(bool), compared.difference_mean.to_numpy(float)
    tiling = {name: getattr(upscaler.runtime, name) for name in ("tile", "overlap", "tile_batch")}
    return {
        "model": upscaler.name,
        "weights_sha256": upscaler.weights_sha256,
        "backend": upscaler.backend,
        "device": upscaler.device,
        "settings": asdict(upscaler.settings) | tiling,
        "frames": exact.size,
        "exact": int(exact.sum()),
        "exact_share": float(exact.mean()) if exact.size else None,
        "difference_mean": float(means.mean()) if exact.size else None,
        "difference_max": float(compared.difference_max.max()) if exact.size else None,
        "lost_results": recording.offline.lost,
    }


def detection_timing(recording: Recording) -> dict[str, Any] | None:
    """Detections on the results, by stamp; ``missing``: results without detections."""
    if recording.topics["detections"] is None:
        return None
    frames = recording.frames
    return {
        "timing": stream_timing(recording.tables["detections"]),
        "missing": int((frames.sr_logged.notna() & frames.detections_logged.isna()).sum()),
        "after_sr_ms": latency(recording, "sr", "detections"),
        "after_camera_ms": latency(recording, "camera", "detections"),
    }


def check_camera_infos(recording: Recording) -> dict[str, Any] | None:
    """Each result's camera_info against the camera's of its stamp, else the last before it.

    Returns:
        ``messages``, ``right``, and ``wrong``: how often which field was not as due. ``None``
        when either topic has no message.
    """
    own, scaled = recording.tables["image_info"], recording.tables["sr_info"]
    if own.empty or scaled.empty:
        return None
    info_of = info_finder(own.itertuples(index=False, name=None))
    rows = scaled.itertuples(index=False)
    wrong = [
        _wrong_fields(row.content, info_of(row.stamp, row.logged), recording.camera) for row in rows
    ]
    fields = Counter(field for found in wrong for field in found)
    return {"messages": len(scaled), "right": wrong.count([]), "wrong": dict(fields)}


def _wrong_fields(found: Any, info: Any, camera: Camera) -> list[str]:
    """Fields of a result's camera_info that are not as due from the camera's ``info``."""
    window = camera.window(info.height, info.width)
    due = scale_camera_info(crop_camera_info(info, window), SCALE)
    if found.height != due.height:  # it describes images without telemetry
        window = replace(camera, telemetry_rows=0).window(info.height, info.width)
        due = scale_camera_info(crop_camera_info(info, window), SCALE)
    wrong = [n for n in _INFO_FIELDS if not _equal(getattr(found, n), getattr(due, n))]
    # The region's do_rectify is free
    region = ("x_offset", "y_offset", "height", "width")
    if any(getattr(found.roi, name) != getattr(due.roi, name) for name in region):
        wrong.append("roi")
    return wrong + ["frame_id"] * (found.header.frame_id != info.header.frame_id)


def _equal(found: Any, due: Any) -> bool:
    if isinstance(due, np.ndarray):
        return np.shape(found) == due.shape and np.allclose(found, due, rtol=1e-9, atol=1e-9)
    return found == due


MEASURES: dict[str, Callable[[Recording], Any]] = {
    "camera": lambda recording: stream_timing(recording.tables["image"]),
    "sr": lambda recording: stream_timing(recording.tables["sr"]),
    "drops": lambda recording: find_drops(*(recording.tables[k].stamp for k in ("image", "sr"))),
    "latency_ms": lambda recording: latency(recording, "camera", "sr"),
    "stamp_latency_ms": lambda recording: (
        stamp_to_log(recording, "sr") if recording.one_bag and shares_clock(recording) else None
    ),
    "clock_offset_ms": lambda recording: stamp_to_log(recording, "image"),
    "consistency": mean_consistency,
    "offline": offline_comparison,
    "mismatches": lambda recording: dict(Counter(" ".join(recording.frames.faults).split())),
    "camera_info": check_camera_infos,
    "detections": detection_timing,
    "node": lambda recording: recording.node,
}
"""Key in ``recorded.json`` -> what gives its value."""
