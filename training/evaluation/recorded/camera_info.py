"""Whether the camera_info recorded with the results is the camera's, scaled by four."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from difiisr_models.resample import SCALE
from difiisr_training.evaluation.recorded.bag import RecordedMessage


@dataclass(frozen=True)
class CameraInfoCheck:
    """Recorded camera_info of the results; ``wrong``: how often which field was not as due."""

    messages: int
    right: int
    wrong: dict[str, int]


def check_camera_infos(
    own: Iterable[tuple[RecordedMessage, Any]], scaled: Iterable[tuple[RecordedMessage, Any]]
) -> CameraInfoCheck | None:
    """Each result's camera_info against the camera's of its stamp, else the last before it.

    Takes messages with their content; returns ``None`` when either has none.
    """
    own = list(own)
    if not own:
        return None
    places = {message.stamp: i for i, (message, _) in reversed(list(enumerate(own)))}
    logged = [message.logged for message, _ in own]
    wrong: Counter[str] = Counter()
    messages = right = 0
    for message, scaled_info in scaled:
        before = max(int(np.searchsorted(logged, message.logged, side="right")) - 1, 0)
        _, info = own[places.get(message.stamp, before)]
        fields = wrong_info_fields(info, scaled_info)
        wrong.update(fields)
        messages, right = messages + 1, right + (not fields)
    return CameraInfoCheck(messages, right, dict(wrong)) if messages else None


def wrong_info_fields(info: Any, scaled: Any) -> tuple[str, ...]:
    """Fields of ``scaled`` that are not those of ``info`` for an image four times as large.

    Pixel centres: c' = 4 c + 1.5, f' = 4 f; zeros (uncalibrated, whole region) stay zero.
    """
    roi = ("x_offset", "y_offset", "height", "width")
    due = {
        "width": info.width * SCALE,
        "height": info.height * SCALE,
        "k": _scaled_matrix(info.k),
        "p": _scaled_matrix(info.p),
        "d": info.d,
        "r": info.r,
        "distortion_model": info.distortion_model,
        "binning_x": info.binning_x,
        "binning_y": info.binning_y,
    }
    wrong = [name for name, value in due.items() if not _same(getattr(scaled, name), value)]
    if any(getattr(scaled.roi, name) != SCALE * getattr(info.roi, name) for name in roi):
        wrong.append("roi")
    if scaled.header.frame_id != info.header.frame_id:
        wrong.append("frame_id")
    return tuple(wrong)


def _scaled_matrix(matrix: np.ndarray) -> np.ndarray:
    rows = np.asarray(matrix, np.float64).reshape(3, -1).copy()
    if rows[0, 0]:
        rows[:2] = SCALE * rows[:2] + (SCALE - 1) / 2 * rows[2]
    return rows.reshape(-1)


def _same(found: Any, due: Any) -> bool:
    if isinstance(due, np.ndarray):
        return np.shape(found) == due.shape and np.allclose(found, due, rtol=1e-9, atol=1e-9)
    return found == due
