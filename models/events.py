"""What happened between two frames of a camera: its shutter, gain and display told from the scene.

Frames are compared as thumbnails of about 30x40 block means, where the scene lies on the frame
before it: the shift with the highest normalised correlation, or none.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from scipy.fft import irfft2, next_fast_len, rfft2

from difiisr_models.frame_statistics import block_sums, vertex

Kind = Literal["normal", "repeat", "offset", "gain", "flicker", "flat", "cut", "pause"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_SIDE = 30  # blocks on the short side of a thumbnail
_CLIPPED = (0.005, 0.1, 0.5, 0.9, 0.995)
_BEYOND = 0.5  # of the way between the outer two of them: a hot object there is cut to that
_QUARTILES = (0.25, 0.5, 0.75)
_ROBUST = 1.4826  # times the median absolute deviation: the standard deviation
_SAMPLES = 4  # pixels on a side that a block is the mean of, about
_TELEMETRY = 4  # rows at the top or bottom that may differ in a repeated frame
_FAR, _NEAR = 0.65, 0.2  # of the frame: the most that the scene is looked for aside
_OVERLAP = 0.35  # of the frame, least, on which two frames are compared
_ALIKE = 0.75  # correlation of thumbnails that show one scene
_AFFINE_ALIKE, _SURELY_ALIKE = 0.83, 0.9  # at the best of all shifts; other scenes: up to 0.8
_EXPLAINED = 0.6  # of the difference: a change of gain and level leaves less
_AGREE = 0.75  # share of the blocks that are as they were, or an object has come
_LEVEL = 0.06  # of the spread: a smaller jump of all blocks is drift
_GAIN = 0.08  # natural logarithm
_FLAT = 0.25  # of the spread of the scene: there is no structure left
_ABSURD = 50.0  # times the spread of the scene before: nothing to compare with
_WAITS = 50  # frames that a flat frame may last before it is the scene
_ALTERNATES = 12  # frames within which gain or level go up and down


@dataclass(frozen=True)
class Event:
    """What a frame is, against the ones before it.

    Attributes:
        kind: ``normal``; ``repeat`` (the frame before again, as while a shutter is closed);
            ``offset`` (all counts jumped, after a shutter); ``gain`` (counts changed as
            ``gain * counts + offset``); ``flicker`` (the third and further of such changes that go
            up and down); ``flat`` (a closed shutter: no structure); ``cut`` (another scene);
            ``pause`` (no frames for a while, and the same scene).
        gain, offset: the scene's counts before it, times ``gain``, plus ``offset``, are those now.
        is_exact: each pixel of a repeated frame is the same; else rows of telemetry differ.
        pause: seconds without frames before it, 0 without a pause.
    """

    kind: Kind = "normal"
    gain: float = 1.0
    offset: float = 0.0
    is_exact: bool = False
    pause: float = 0.0

    @property
    def is_affine(self) -> bool:
        """Whether the counts changed, and the scene did not."""
        return self.kind in ("offset", "gain", "flicker")

    @property
    def has_news(self) -> bool:
        """Whether the frame tells of the scene."""
        return self.kind not in ("repeat", "flat")


class EventDetector:
    """Tells what each frame of one channel of a stream is."""

    def __init__(self) -> None:
        self._last: np.ndarray | None = None
        self._scene: np.ndarray | None = None  # thumbnail of the last frame that showed it
        self._flat_for = 0  # frames
        self._steps: deque[float] = deque(maxlen=_ALTERNATES)

    def update(
        self, counts: np.ndarray, invalid: np.ndarray | None = None, is_closed: bool = False
    ) -> Event:
        """Take in the next frame, which must not change afterwards.

        Args:
            counts: ``(H, W)``, any unit.
            invalid: ``(H, W)`` bool, pixels that do not count.
            is_closed: the camera says that its shutter is closed.
        """
        before, self._last = self._last, counts
        if before is not None and (repeat := _repeat(counts, before)) is not None:
            return repeat
        now = _thumbnail(counts, invalid)
        event = self._compare(now, is_closed)
        is_sane = 1 / _ABSURD < event.gain < _ABSURD and np.isfinite(event.offset)
        if event.is_affine and not is_sane:
            event = Event("cut")  # one of both is garbage
        self._flat_for = self._flat_for + 1 if event.kind == "flat" else 0
        if event.kind == "cut":
            self._steps.clear()
        if event.kind != "flat":
            is_garbage = self._scene is not None and _spread(now) > _ABSURD * _spread(self._scene)
            self._scene = None if is_garbage else now
        step = np.log(event.gain) if event.kind == "gain" else event.offset
        self._steps.append(float(step))
        up_and_down = [np.sign(step) for step in self._steps if step]
        alternates = up_and_down[-3:] in ([1, -1, 1], [-1, 1, -1])
        return replace(event, kind="flicker") if event.is_affine and alternates else event

    def _compare(self, now: np.ndarray, is_closed: bool) -> Event:
        scene = self._scene
        if scene is None:
            return Event()
        if is_closed:
            return Event("flat")
        spread, texture = _spread(scene), _texture(scene)
        levels = np.subtract(*(_quantiles(each, _QUARTILES) for each in (now, scene)))
        if np.abs(levels).max() < _LEVEL * spread and _correlation(now, scene) > _ALIKE:
            return Event()
        has_structure = spread > 5 * texture
        if _spread(now) < _FLAT * spread and has_structure and self._flat_for < _WAITS:
            alike, _, _ = _search(now, scene, _NEAR)
            if alike < _SURELY_ALIKE:
                return Event("flat")
        _, shift, plain_shift = _search(now, scene, _FAR)
        fits = [_Fit.between(now, scene, by) for by in ((0.0, 0.0), shift)]
        fit = min(fits, key=lambda fit: fit.residual)
        a, b = _overlap(now, scene, plain_shift)
        plain, alike = np.abs(a - b), _correlation(a, b)
        is_one_scene = fit.alike > _AFFINE_ALIKE or not has_structure
        if is_one_scene and fit.residual < _EXPLAINED * _median(plain):
            change = abs(np.log(fit.gain))
            if change > (_GAIN if fit.alike > _SURELY_ALIKE else 2 * _GAIN):
                return Event("gain", fit.gain, fit.offset)
            if abs(fit.level) > max(_LEVEL * spread, 0.5 * texture):
                return Event("offset", 1.0, fit.level)
        agrees = float((plain < 0.05 * spread + 3 * texture).mean()) > _AGREE
        return Event() if is_one_scene or alike > _ALIKE or agrees else Event("cut")


@dataclass(frozen=True)
class _Fit:
    """How two thumbnails agree where one lies on the other: ``now = gain * before + offset``.

    ``level``: median of ``now - before``; ``residual``: median distance to the line; ``alike``: the
    correlation of the blocks that do not go their own way.
    """

    gain: float
    offset: float
    level: float
    residual: float
    alike: float

    @classmethod
    def between(cls, now: np.ndarray, before: np.ndarray, shift: tuple[float, float]) -> _Fit:
        a, b = _overlap(now, before, shift)
        level = offset = _median(a - b)
        gain, kept = 1.0, np.ones(a.shape, bool)
        residual = np.abs(a - b - level)
        for _ in range(2):
            if not kept.any():  # no finite distance: what float32 cannot square is no scene
                break
            x, y = a[kept], b[kept]
            deviation, alike = float(y.std()), _correlation(x, y)
            if alike < _ALIKE or deviation == 0:
                break
            gain = float(x.std()) / deviation  # noise in both does not make it smaller
            offset = _median(x - gain * y)
            residual = np.abs(a - gain * b - offset)
            kept = residual <= 2.5 * _ROBUST * _median(residual) + 1e-6
        return cls(gain, offset, level, _median(residual), alike)


def _repeat(counts: np.ndarray, before: np.ndarray) -> Event | None:
    """The event where both frames are the same but for telemetry, by their bits: NaN is NaN."""
    words = f"u{counts.dtype.itemsize}"
    differs = counts.view(words) != before.view(words)
    rows = np.flatnonzero(differs.any(axis=1))
    if rows.size == 0:
        return Event("repeat", is_exact=True)
    at_edge = rows[-1] < _TELEMETRY or rows[0] >= len(counts) - _TELEMETRY
    return Event("repeat") if at_edge and len(counts) > 8 * _TELEMETRY else None


def _thumbnail(counts: np.ndarray, invalid: np.ndarray | None) -> np.ndarray:
    """Means over blocks, outliers cut: what is far beyond the scene is no structure of it."""
    block = max(1, min(counts.shape) // _SIDE)
    step = max(1, block // _SAMPLES)
    block //= step
    pixels = counts[::step, ::step].astype(np.float32)
    valid = np.isfinite(pixels) if invalid is None else ~invalid[::step, ::step]
    some = pixels[valid]
    if some.size == 0:
        return np.zeros(tuple(n // block for n in pixels.shape), np.float32)
    least, lo, middle, hi, most = _quantiles(some[:: 1 + some.size // 2000], _CLIPPED)
    width = _BEYOND * (hi - lo) or most - least
    if some.size < pixels.size:
        pixels[~valid] = middle
    np.clip(pixels, lo - width, hi + width, out=pixels)
    return block_sums(pixels, block) / np.float32(block * block)


def _quantiles(values: np.ndarray, shares: tuple[float, ...]) -> np.ndarray:
    ordered = np.sort(values, axis=None)
    return ordered[[int(share * (ordered.size - 1)) for share in shares]]


def _median(values: np.ndarray) -> float:
    return float(_quantiles(values, (0.5,))[0])


def _spread(values: np.ndarray) -> float:
    lo, hi = _quantiles(values, (0.05, 0.95))
    return float(hi - lo)


def _texture(thumbnail: np.ndarray) -> float:
    """Deviation that noise has at most, from second differences along the rows."""
    second = thumbnail[:, 2:] - 2 * thumbnail[:, 1:-1] + thumbnail[:, :-2]
    return _ROBUST * _median(np.abs(second - _median(second))) / 6**0.5 * 2**0.5


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    power = float((a * a).sum() * (b * b).sum())
    return float((a * b).sum()) / power**0.5 if power > 0 else 1.0


def _overlap(
    now: np.ndarray, before: np.ndarray, shift: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Both where they show the same, the scene being shifted down and right by so many blocks."""
    for axis, by in enumerate(shift):
        whole = int(np.floor(by))
        size, part = now.shape[axis], np.float32(by - whole)
        lines, back = np.moveaxis(now, axis, 0), np.moveaxis(before, axis, 0)
        back = (1 - part) * back[1:] + part * back[:-1]  # at n: where n + 1 + whole is now
        first, last = max(0, 1 + whole), min(size, size + whole)
        lines, back = lines[first:last], back[first - 1 - whole : last - 1 - whole]
        now, before = np.moveaxis(lines, 0, axis), np.moveaxis(back, 0, axis)
    return now, before


def _search(
    now: np.ndarray, before: np.ndarray, far: float
) -> tuple[float, tuple[float, float], tuple[float, float]]:
    """Where the scene lies now, shifted by up to ``far`` of the frame.

    Normalised over the overlap of each shift (Lewis, Fast normalized cross-correlation, 1995).

    Returns:
        the highest correlation, its shift down and right in blocks, and the shift of the least mean
        square of the difference.
    """
    now, before = (each.astype(float) - before.mean(dtype=float) for each in (now, before))
    down, right = (np.arange(-int(far * n), int(far * n) + 1) for n in now.shape)
    size = tuple(next_fast_len(2 * n - 1, True) for n in now.shape)
    everywhere = np.ones_like(now)

    def overlapping(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Sums of a b over what overlaps, ``b`` being moved down and right."""
        return irfft2(rfft2(a, size) * rfft2(b, size).conj(), size)[np.ix_(down, right)]

    count = np.rint(overlapping(everywhere, everywhere))
    product = overlapping(now, before)
    sums = overlapping(now, everywhere), overlapping(everywhere, before)
    squares = overlapping(now * now, everywhere), overlapping(everywhere, before * before)
    power = np.prod([s2 - s * s / count for s, s2 in zip(sums, squares, strict=True)], axis=0)
    alike = (product - sums[0] * sums[1] / count) / np.sqrt(np.maximum(power, 1e-12))
    near = -(squares[0] + squares[1] - 2 * product) / count
    small = count < _OVERLAP * now.size
    alike[small | (power <= 1e-9 * power.max())] = -1
    near[small] = near.min()
    return float(alike.max()), _peak(alike), _peak(near)


def _peak(surface: np.ndarray) -> tuple[float, float]:
    """Place of the highest value against the middle, between the samples where it lies inside."""
    peak = np.unravel_index(surface.argmax(), surface.shape)
    part = [0.0, 0.0]
    for axis in (0, 1):
        line, at = np.take(surface, peak[1 - axis], 1 - axis), peak[axis]
        if 0 < at < len(line) - 1:
            part[axis] = vertex(*line[at - 1 : at + 2])
    return tuple(int(at) - n // 2 + by for at, n, by in zip(peak, surface.shape, part, strict=True))
