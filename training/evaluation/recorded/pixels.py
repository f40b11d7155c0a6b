"""Pixels of recorded results: against their camera frames, and against the same model run again."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from difiisr_models.resample import SCALE
from difiisr_training.evaluation.metrics import consistency
from difiisr_training.evaluation.recorded.bag import RecordedMessage, parse_image
from difiisr_training.evaluation.recorded.offline import OfflineRun, same_pixels


@dataclass(frozen=True)
class FrameResult:
    """One camera frame, or one result without; what could not be measured is ``None``.

    Attributes:
        stamp: header stamp, ns.
        camera_logged: when the camera's message was recorded, ns.
        sr_logged: when the result was recorded, ns.
        detections_logged: when the detections were recorded, ns.
        consistency_mean: mean of |D(SR) - LR|, counts.
        consistency_max: its maximum.
        exact: whether the result has the very pixels of the offline run.
        difference_mean: mean of |SR - offline SR|, counts.
        difference_max: its maximum.
        faults: "size", "encoding", "frame_id", "unreadable".
    """

    stamp: int
    camera_logged: int | None = None
    sr_logged: int | None = None
    detections_logged: int | None = None
    consistency_mean: float | None = None
    consistency_max: float | None = None
    exact: bool | None = None
    difference_mean: float | None = None
    difference_max: float | None = None
    faults: tuple[str, ...] = ()


def compare_frames(
    pairs: Iterable[tuple[RecordedMessage | None, RecordedMessage | None]],
    total: int,
    offline: OfflineRun | None,
) -> dict[int, FrameResult]:
    """Pixels of every result, by stamp; of results with the same stamp, the first counts.

    A terminal shows a progress bar.

    Args:
        pairs: of :func:`~difiisr_training.evaluation.recorded.bag.match_frames`.
        total: how many results there are.
        offline: a run that has not seen a frame yet; ``None``: no run.
    """
    compared: dict[int, FrameResult] = {}
    with tqdm(total=total, unit="frame", disable=not sys.stderr.isatty()) as progress:
        for frame, result in pairs:
            if result is None:
                _skip_frame(frame.raw, offline)
                continue
            found = FrameResult(result.stamp)
            if frame is not None:
                found = _compare_frame(result.stamp, frame.raw, result.raw, offline)
            compared.setdefault(result.stamp, found)
            progress.update()
    return compared


def _skip_frame(raw: bytes, offline: OfflineRun | None) -> None:
    if offline is not None:
        with suppress(ValueError):  # what is no frame, the node did not process
            offline.skip(_planes(parse_image(raw)[1]))


def _compare_frame(
    stamp: int, frame_raw: bytes, result_raw: bytes, offline: OfflineRun | None
) -> FrameResult:
    try:
        frame, pixels = parse_image(frame_raw)
    except ValueError:
        return FrameResult(stamp, faults=("unreadable",))
    planes, sr, expected = _planes(pixels), None, None
    try:
        result, sr_pixels = parse_image(result_raw)
        faults = {
            "size": sr_pixels.shape[:2] != tuple(SCALE * side for side in pixels.shape[:2]),
            "encoding": result.encoding != frame.encoding,
            "frame_id": result.header.frame_id != frame.header.frame_id,
        }
        names = tuple(name for name, present in faults.items() if present)
        if not faults["size"] and not faults["encoding"]:
            sr = _planes(sr_pixels)
    except ValueError:
        names = ("unreadable",)
    if offline is not None:
        expected = offline.expect(planes, sr)
    if sr is None:
        return FrameResult(stamp, faults=names)
    channels = max(len(sr), len(planes))  # equal channels on one side may differ on the other
    sr, planes = (np.broadcast_to(x, (channels, *x.shape[1:])) for x in (sr, planes))
    apart = np.stack([consistency(x, y) for x, y in zip(sr, planes, strict=True)])
    apart = apart[np.isfinite(apart)]
    measured = {"faults": names}
    if apart.size:
        measured |= {"consistency_mean": float(apart.mean()), "consistency_max": float(apart.max())}
    if expected is not None:
        equal = same_pixels(sr, expected)
        difference = np.abs(sr.astype(np.float64) - expected)[~equal]
        difference = difference[np.isfinite(difference)]
        measured |= {
            "exact": bool(equal.all()),
            "difference_mean": float(difference.sum() / equal.size),
            "difference_max": float(difference.max(initial=0.0)),
        }
    return FrameResult(stamp, **measured)


def _planes(pixels: np.ndarray) -> np.ndarray:
    """``(C, H, W)``: C = 1 for a grey image and for three equal channels, as the node does."""
    if pixels.ndim == 2:
        return pixels[None]
    planes = np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
    return planes[:1] if (planes == planes[:1]).all() else planes
