"""Pixels that hold no measurement: which they are, and what stands in for them.

Invalid is not scene: such pixels neither count in the range nor reach the network, and come back
as they were.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import (
    distance_transform_edt,
    find_objects,
    maximum_filter,
    minimum_filter,
    uniform_filter,
)

_MOVED = 0.01  # of the span between the 2 % and 98 % quantiles
_MOVES = 10  # frames
_NARROW, _BENDS = 5, 20  # pixels; steps
_BIHARMONIC = (
    np.array(
        [
            [0, 0, -1, 0, 0],
            [0, -2, 8, -2, 0],
            [-1, 8, -20, 8, -1],
            [0, -2, 8, -2, 0],
            [0, 0, -1, 0, 0],
        ]
    )
    / 20
)
_INSIDE, _FRAME = 0.5, 0.25  # of what a border of zeros leaves, and of the frame

NO_DATA = 1e30
"""Float pixels of this magnitude are a mark, not a measurement; float32 has room above it."""


def invalid_pixels(counts: np.ndarray, no_data: Sequence[float] = ()) -> np.ndarray | None:
    """Pixels that are known at once to hold no measurement.

    These are: not finite, or of magnitude 1e30 and more; equal to a value of ``no_data``; a border
    of zeros all around the frame, as rectification leaves it; the ends of 16 bits in frames
    whose other pixels all stay further from it than their own span.

    Args:
        counts: ``(H, W)`` uint8, uint16, int16 or float32.
        no_data: values that mark pixels without a measurement.

    Returns:
        ``(H, W)`` bool, or None where all pixels are valid.
    """
    if counts.dtype.kind == "f":
        invalid = ~(np.abs(counts) < NO_DATA)
    else:
        invalid = np.zeros(counts.shape, bool)
    for value in no_data:
        invalid |= counts == value
    if counts[0, 0] == counts[0, -1] == counts[-1, 0] == counts[-1, -1] == 0:
        invalid |= _zero_border(counts)
    if counts.dtype.itemsize == 2:
        invalid |= _out_of_scale(counts, invalid)
    return invalid if invalid.any() else None


def fill(counts: np.ndarray, invalid: np.ndarray) -> np.ndarray:
    """``counts (H, W)`` with values in place of the invalid pixels; 0 if all are.

    Beyond the nearest valid pixel the scene is mirrored: what fills a border is as rough and as
    noisy as what lies beside it. Gaps narrower than 5 pixels are bent smooth then, by 20 steps
    towards the biharmonic surface through what lies around.
    """
    if invalid.all():
        return np.zeros_like(counts)
    nearest = distance_transform_edt(invalid, return_distances=False, return_indices=True)
    edges = np.reshape(counts.shape, (2, 1, 1)) - 1
    mirrored = tuple(np.clip(2 * nearest - np.indices(counts.shape), 0, edges))
    filled = np.where(invalid[mirrored], counts[tuple(nearest)], counts[mirrored])
    narrow = invalid & ~_opened(invalid, _NARROW)
    if narrow.any():
        bent = _bent(filled, narrow).clip(filled.min(), filled.max())
        filled[narrow] = bent if counts.dtype.kind == "f" else np.rint(bent)
    return filled


def _opened(mask: np.ndarray, size: int) -> np.ndarray:
    """What squares of ``size`` pixels cover of a mask that goes on beyond the frame."""
    eroded = minimum_filter(np.pad(mask, size, constant_values=True), size)
    return maximum_filter(eroded, size)[size:-size, size:-size]


def _bent(filled: np.ndarray, narrow: np.ndarray) -> np.ndarray:
    """The pixels ``narrow`` of ``filled (H, W)``, moved towards the biharmonic surface, 1-D."""
    padded = np.pad(filled.astype(float), 2, mode="edge")
    at = np.flatnonzero(np.pad(narrow, 2))
    down, right = np.nonzero(_BIHARMONIC)
    around = at[:, None] + (down - 2) * padded.shape[1] + right - 2
    flat, weights = padded.ravel(), _BIHARMONIC[down, right]
    for _ in range(_BENDS):
        flat[at] += 0.5 * (flat[around] @ weights)  # stable up to 0.6
    return flat[at]


def put_back(result: np.ndarray, counts: np.ndarray, invalid: np.ndarray) -> np.ndarray:
    """``result (sH, sW)`` with the invalid pixels of ``counts (H, W)`` as they were, each s x s."""
    rows, columns = np.nonzero(invalid)
    scale = len(result) // len(counts)
    blocks = result.reshape(len(counts), scale, -1, scale)
    blocks[rows, :, columns, :] = counts[rows, columns][:, None, None]
    return result


class StillPixels:
    """Finds dead and stuck pixels over time: those that stood still while the scene around moved.

    A pixel is stuck when its value was exactly the same in frames in at least ten of which the mean
    of its neighbours had changed by more than 1 % of the frame's span. One change, and it is valid
    again.
    """

    def __init__(self, known: np.ndarray | None = None) -> None:
        """``known``: ``(H, W)`` bool, pixels that were found stuck before."""
        self._before: np.ndarray | None = None
        self._around: np.ndarray | None = None
        self._moves = None if known is None else np.where(known, _MOVES, 0).astype(np.uint8)

    def update(self, counts: np.ndarray) -> np.ndarray | None:
        """Take in a frame ``(H, W)``; returns the stuck pixels as bool, None without any."""
        before, self._before = self._before, counts
        if self._moves is None:
            self._moves = np.zeros(counts.shape, np.uint8)
        if before is None:
            return self.found
        still = (counts == before) & np.isfinite(counts)
        if self._around is None:
            self._around = _mean_of_neighbours(before)
        if still.all():  # the same frame again
            return self.found
        around = _mean_of_neighbours(counts)
        lo, hi = np.nanquantile(counts[::4, ::4], (0.02, 0.98))
        moved = np.abs(around - self._around) > max(_MOVED * (hi - lo), 1e-6)
        self._moves[~still] = 0
        grew = still & moved & (self._moves < _MOVES)
        self._moves[grew] += 1
        self._around = np.where(moved | ~still, around, self._around)
        return self.found

    @property
    def found(self) -> np.ndarray | None:
        """The stuck pixels so far, ``(H, W)`` bool, None without any."""
        stuck = None if self._moves is None else self._moves >= _MOVES
        return stuck if stuck is not None and stuck.any() else None


def _mean_of_neighbours(counts: np.ndarray) -> np.ndarray:
    """Mean of the eight neighbours of each pixel, ``(H, W)`` float32."""
    values = counts.astype(np.float32)
    if counts.dtype.kind == "f":
        np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return (9 * uniform_filter(values, 3, mode="nearest") - values) / 8


def _zero_border(counts: np.ndarray) -> np.ndarray:
    """Rows and columns of zeros that reach all around; none where one side has none.

    A dark scene is no border: of what is left more than half is not 0, and of the frame a quarter.
    """
    inside = find_objects((counts != 0).astype(np.uint8))
    is_border = inside and all(
        side.start > 0 and side.stop < size
        for side, size in zip(inside[0], counts.shape, strict=True)
    )
    if is_border and np.count_nonzero(counts) > max(
        _INSIDE * counts[inside[0]].size, _FRAME * counts.size
    ):
        border = np.ones(counts.shape, bool)
        border[inside[0]] = False
        return border
    return np.zeros(counts.shape, bool)


def _out_of_scale(counts: np.ndarray, invalid: np.ndarray) -> np.ndarray:
    """Pixels at an end of 16 bits, where no other pixel comes near it, ``(H, W)``."""
    ends = np.iinfo(counts.dtype)
    lowest, highest = counts == ends.min, counts == ends.max
    if not (lowest.any() or highest.any()):
        return lowest
    others = counts[~(lowest | highest | invalid)]
    if others.size == 0:
        return np.zeros(counts.shape, bool)
    lo, hi = (int(end) for end in np.quantile(others, (0.001, 0.999)))
    margin = max(hi - lo, 1)
    return (lowest & (lo - ends.min > margin)) | (highest & (ends.max - hi > margin))
