"""Temporal flicker: how much a super-resolved film moves where the scene does not."""

from __future__ import annotations

from collections import deque

import numpy as np

from difiisr_models.radiometry import robust_range
from difiisr_models.resample import SCALE
from difiisr_training.data.images import pillow_resize

WINDOW = 5
STILL = 0.02
LEAST_SHARE = 0.01


class FlickerMeter:
    """Flicker of one model on one film; give it the frames in order.

    A low-resolution pixel is *static* at frame t when its standard deviation over the last
    :data:`WINDOW` frames (fewer at the start, two at least) is at most :data:`STILL` of the range
    of frame t (``robust_range``). There,

        flicker_counts = mean |SR_t - SR_{t-1}|,
        flicker        = flicker_counts / the same of bicubic x4.

    1 = as steady as plain interpolation, which passes the camera's noise on; above, the model
    makes something that was not there. Only neighbours in the list are compared: leave no frames
    out of a film.
    """

    def __init__(self) -> None:
        self._window: deque[np.ndarray] = deque(maxlen=WINDOW)
        self._sr: np.ndarray | None = None
        self._bicubic: np.ndarray | None = None

    def update(self, lr: np.ndarray, sr: np.ndarray) -> dict[str, float]:
        """``flicker`` and ``flicker_counts`` of the newest frame.

        Both are NaN for the first frame, after a change of size, and where less than
        :data:`LEAST_SHARE` of the pixels are static; ``flicker`` also where bicubic stands still.

        Args:
            lr: ``(h, w)`` counts.
            sr: ``(4h, 4w)`` counts.
        """
        if self._window and self._window[-1].shape != lr.shape:
            self._window.clear()
        bicubic = pillow_resize(lr, lr.shape[0] * SCALE, lr.shape[1] * SCALE)
        bicubic, sr = bicubic.astype(np.float64), sr.astype(np.float64)
        self._window.append(lr.astype(np.float64))
        found = {"flicker": float("nan"), "flicker_counts": float("nan")}
        if len(self._window) > 1:
            still = np.std(self._window, axis=0) <= STILL * robust_range(lr).span
            if still.mean() >= LEAST_SHARE:
                mask = np.kron(still, np.ones((SCALE, SCALE), bool))
                own = float(np.abs(sr - self._sr)[mask].mean())
                plain = float(np.abs(bicubic - self._bicubic)[mask].mean())
                found = {
                    "flicker": own / plain if plain > 0 else float("nan"),
                    "flicker_counts": own,
                }
        self._sr, self._bicubic = sr, bicubic
        return found
