"""What happened between two frames of a camera: its shutter, gain and display told from the scene.

Frames are compared as thumbnails of about 30x40 block means, where the scene lies on the frame
before it: the shift with the highest normalised correlation of their gradients, or none. Gradients
of unlike scenes are unlike; their counts need not be, as most of both is a slow rise and fall.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from scipy.fft import fft2, ifft2, next_fast_len

from difiisr_models.frame_statistics import block_sums, vertex

Kind = Literal["normal", "repeat", "offset", "gain", "flicker", "flat", "cut", "pause"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_LEAST = 5  # pixels on a side: smaller frames have nothing to compare
_SIDE = 30  # blocks on the short side of a thumbnail
_CLIPPED = (0.005, 0.1, 0.5, 0.9, 0.995)
_BEYOND = 0.5  # of the way between the outer two of them: a hot object there is cut to that
_QUARTILES = (0.25, 0.5, 0.75)
_ROBUST = 1.4826  # times the median absolute deviation: the standard deviation
_SAMPLES = 4  # pixels on a side that a block is the mean of, about
_TELEMETRY = 4  # rows at the top or bottom that may differ in a repeated frame
_FAR = 0.65  # of the frame: the most that the scene is looked for aside
_OVERLAP = 0.35  # of the frame, least, on which two frames are compared
_ALIKE = 0.75  # correlation of thumbnails that show one scene where it was
_FITS = 0.5  # correlation of what a gain can be told of
_ONE_SCENE = 9.5  # evidence; 5000 pairs of other scenes: up to 8.7, one in noise: from 10.3
_EXPLAINS = 4.0  # of that evidence, for each factor e that a fit leaves less of the scene
_AGREE = 0.75  # share of the blocks that are as they were, or an object has come
_LEVEL = 0.06  # of the spread: a smaller jump of all blocks is drift
_LEVEL_OF_SPAN = 0.025  # likewise, of a scene that is much of one level
_DRIFTS = 3  # frames whose levels went one way: what they have in common is drift too
_RESIDUALS = 3.0  # a smaller jump may be of what the scene beside it left
_GAIN = 0.05  # natural logarithm: a smaller change is drift
_ERRORS = 6.0  # standard errors: Student's t of 19 degrees of freedom exceeds it once in 100,000
_TILES = (4, 5)  # of a frame, one of which is left out at a time to tell that error
_STRUCTURE = 12.0  # times the noise: the spread of a scene that is more than it
_ROUGH = 1.5  # times the noise: structure that is more than it
_FLAT = 0.12  # of the structure of the scene: there is none left
_PATTERN = 4.0  # times the noise of a block: the most that steps between rows are their pattern
_APART = 0.3  # natural logarithm: gains of the scene with and without what was cut differ by less
_WHOLE = 0.2  # of the blocks, least: else there are no outliers, but noise
_BOUND = 3.0  # times the mean gradient: an edge counts as that
_TINY = 1e-12
_LARGEST = 1e30  # of counts: a product of four still is a number
_ABSURD = 50.0  # times the spread of the scene before: nothing to compare with
_WAITS = 50  # frames that a flat frame may last before it is the scene
_ALTERNATES = 12  # frames within which gain and level go up and down
_RETURNS = 0.6  # of a change: the most that its reverse, and the same again, differ from it


@dataclass(frozen=True)
class Event:
    """What a frame is, against the ones before it.

    Attributes:
        kind: ``normal``; ``repeat`` (the frame before again, as while a shutter is closed);
            ``offset`` (all counts jumped, after a shutter); ``gain`` (counts changed as
            ``gain * counts + offset``); ``flicker`` (the third and further of such changes that go
            to and fro); ``flat`` (a closed shutter: no structure); ``cut`` (another scene);
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
        self._scene: _Thumbnail | None = None  # of the last frame that showed it
        self._flat_for = 0  # frames
        self._levels = deque([0.0] * _DRIFTS, maxlen=_DRIFTS)  # against the frame before each
        self._steps: deque[complex] = deque(maxlen=_ALTERNATES)  # of gain, and level, at events

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
        if min(counts.shape) < _LEAST:
            return Event()
        now = _Thumbnail.of(counts, invalid)
        event, step = self._compare(now, is_closed)
        is_sane = 1 / _ABSURD < event.gain < _ABSURD and np.isfinite(event.offset)
        if event.is_affine and not is_sane:
            event = Event("cut")  # one of both is garbage
        self._flat_for = self._flat_for + 1 if event.kind == "flat" else 0
        if event.kind == "cut":
            self._steps.clear()
        if event.kind != "flat":
            is_garbage = self._scene is not None and now.spread > _ABSURD * self._scene.spread
            self._scene = None if is_garbage else now
        self._steps.append(step if event.is_affine else 0)
        there, back, again = ([0, 0, 0] + [step for step in self._steps if step])[-3:]
        returns = max(abs(there + back), abs(there - again)) < _RETURNS * abs(there)
        return replace(event, kind="flicker") if event.is_affine and returns else event

    def _compare(self, now: _Thumbnail, is_closed: bool) -> tuple[Event, complex]:
        """The event, and how gain (its logarithm) and level (of the spread) changed."""
        scene = self._scene
        if scene is None:
            return Event(), 0
        if is_closed:
            return Event("flat"), 0
        a, b = now.blocks, scene.blocks
        levels = np.subtract(*(_quantiles(each, _QUARTILES) for each in (a, b)))
        if np.abs(levels).max() < _LEVEL * scene.spread and _correlation(a, b) > _ALIKE:
            self._levels.append(float(levels[1]))
            return Event(), 0
        distinct, shifts = _search(now.gradient, scene.gradient)
        fits = [_Fit.between(now, scene, by) for by in ((0.0, 0.0), *shifts)]
        fit = min(fits, key=lambda fit: fit.residual)
        evidence = distinct - _EXPLAINS * np.log(max(fit.left, _TINY))
        is_clear = scene.spread > _STRUCTURE * scene.noise
        is_rough = is_clear or scene.structure > _ROUGH * scene.noise
        is_flat = is_rough and now.structure < _FLAT * scene.structure
        if evidence < _ONE_SCENE and is_flat and self._flat_for < _WAITS:
            return Event("flat"), 0
        if evidence < _ONE_SCENE and is_clear:
            agrees = np.abs(a - b) < 0.05 * scene.spread + 4 * scene.noise
            return Event() if agrees.mean() > _AGREE else Event("cut"), 0
        drift = max(0.0, min(self._levels)) + min(0.0, max(self._levels))
        self._levels.append(fit.level)
        step = complex(np.log(fit.gain), fit.level / max(scene.spread, _TINY))
        is_whole = abs(np.log(fit.gain / fit.contrast)) < _APART
        if is_whole and abs(np.log(fit.gain)) > max(_GAIN, _ERRORS * fit.error):
            return Event("gain", fit.gain, fit.offset), step
        least = max(_LEVEL * scene.spread, _LEVEL_OF_SPAN * scene.span, _RESIDUALS * fit.residual)
        if abs(fit.level - drift) > least:
            return Event("offset", 1.0, fit.level), step
        return Event(), 0


@dataclass(frozen=True)
class _Thumbnail:
    """Means over blocks of a frame, and the standard deviation of the noise in each of them.

    ``span``: of its pixels, outliers included; ``is_whole``: no pixel of the block is invalid, or
    an outlier that was cut. Each frame has its own bounds for outliers, so what was cut cannot be
    compared with another frame.
    """

    blocks: np.ndarray
    noise: float
    span: float
    is_whole: np.ndarray

    @classmethod
    def of(cls, counts: np.ndarray, invalid: np.ndarray | None) -> _Thumbnail:
        """Outliers are cut: what is far beyond the scene is no structure of it."""
        block = max(1, min(counts.shape) // _SIDE)
        step = max(1, block // _SAMPLES)
        block //= step
        pixels = np.clip(counts[::step, ::step].astype(np.float32), -_LARGEST, _LARGEST)
        valid = np.isfinite(pixels) if invalid is None else ~invalid[::step, ::step]
        some = pixels[valid] if valid.any() else np.zeros(1, np.float32)
        least, lo, middle, hi, most = _quantiles(some[:: 1 + some.size // 2000], _CLIPPED)
        width = _BEYOND * (hi - lo) or most - least
        pixels[~valid] = middle
        is_cut = ~valid | (pixels < lo - width) | (pixels > hi + width)
        np.clip(pixels, lo - width, hi + width, out=pixels)
        # Neighbours crosswise: patterns of rows and columns and a slope of the scene cancel.
        rows = pixels[:-1:2] - pixels[1::2]
        cross = (rows[:, :-1:2] - rows[:, 1::2]).ravel()
        noise = _ROBUST * _median(np.abs(cross[:: 1 + cross.size // 2000])) / 2 / block
        means = block_sums(pixels, block) / np.float32(block * block)
        is_whole = block_sums(is_cut.astype(np.uint8), block) == 0
        return cls(means, noise, float(most - least), is_whole)

    @cached_property
    def spread(self) -> float:
        """From the 5 % to the 95 % quantile."""
        lo, hi = _quantiles(self.blocks, (0.05, 0.95))
        return float(hi - lo)

    @cached_property
    def gradient(self) -> np.ndarray:
        """Without what a fixed pattern of rows and columns has of it: that lies where it lay."""
        gradient = _gradient(self.blocks)
        right, down = gradient.real.mean(axis=0), gradient.imag.mean(axis=1, keepdims=True)
        most = _PATTERN * self.noise
        return gradient - np.clip(right, -most, most) - 1j * np.clip(down, -most, most)

    @cached_property
    def structure(self) -> float:
        """Root mean square of what is no slope and no bowl, less noise and fixed pattern.

        A shutter is as good as flat, a lens in front of it darker at the edges, the more the
        further out. The pattern of pixels is taken to be half as strong as the noise.
        """
        y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in self.blocks.shape), indexing="ij")
        square = [x * x, x * y, y * y]
        bowls = np.stack([x * 0 + 1, x, y, *square, x**4, (x * y) ** 2, y**4])
        bowls = bowls.reshape(len(bowls), -1).T
        bowl, *_ = np.linalg.lstsq(bowls, self.blocks.ravel(), rcond=None)
        rest, most = self.blocks - (bowls @ bowl).reshape(self.blocks.shape), _PATTERN * self.noise
        for axis in (0, 1):
            rest -= np.clip(rest.mean(axis, keepdims=True), -most, most)
        return max(0.0, float((rest**2).mean()) - 1.25 * self.noise**2) ** 0.5


@dataclass(frozen=True)
class _Fit:
    """How two thumbnails agree where one lies on the other: ``now = gain * before + offset``.

    ``error``: standard error of the gain's logarithm; ``level``: median of ``now - before``;
    ``residual``: median distance to the line; ``left``: its share of the spread of ``now``;
    ``contrast``: the gain again, of all blocks.
    """

    gain: float
    error: float
    offset: float
    level: float
    residual: float
    left: float
    contrast: float

    @classmethod
    def between(cls, now: _Thumbnail, before: _Thumbnail, shift: tuple[float, float]) -> _Fit:
        a, b = (each.astype(float) for each in _overlap(now.blocks, before.blocks, shift))
        contrast = max(float(a.std()), _TINY) / max(float(b.std()), _TINY)
        masks = [each.is_whole.astype(np.float32) for each in (now, before)]
        is_whole = np.minimum(*_overlap(masks[0], masks[1], shift)) > 0.99
        if is_whole.mean() < _WHOLE:
            is_whole[:] = True
        down, right = (np.arange(n) * of // n for n, of in zip(a.shape, _TILES, strict=True))
        tile = np.add.outer(down * _TILES[1], right)[is_whole]
        a, b = a[is_whole], b[is_whole]
        level = offset = _median(a - b)
        gain, error, kept = 1.0, 0.0, np.ones(a.shape, bool)
        residual = np.abs(a - b - level)
        for _ in range(3):
            x, y = a[kept], b[kept]
            if not kept.any() or y.std() == 0 or _correlation(x, y) < _FITS:
                break
            gain, error = _ratio(x, y, tile[kept])
            offset = _median(x - gain * y)
            residual = np.abs(a - gain * b - offset)
            kept = residual <= 2.5 * _ROBUST * _median(residual) + 1e-6
        rest = _median(residual)
        left = _ROBUST * rest / max(float(a.std()), _TINY)
        return cls(gain, error, offset, level, rest, left, contrast)


def _repeat(counts: np.ndarray, before: np.ndarray) -> Event | None:
    """The event where both frames are the same but for telemetry, by their bits: NaN is NaN."""
    words = f"u{counts.dtype.itemsize}"
    differs = counts.view(words) != before.view(words)
    rows = np.flatnonzero(differs.any(axis=1))
    if rows.size == 0:
        return Event("repeat", is_exact=True)
    at_edge = rows[-1] < _TELEMETRY or rows[0] >= len(counts) - _TELEMETRY
    return Event("repeat") if at_edge and len(counts) > 8 * _TELEMETRY else None


def _quantiles(values: np.ndarray, shares: tuple[float, ...]) -> np.ndarray:
    ordered = np.sort(values, axis=None)
    return ordered[[int(share * (ordered.size - 1)) for share in shares]]


def _median(values: np.ndarray) -> float:
    return float(_quantiles(values, (0.5,))[0])


def _gradient(blocks: np.ndarray) -> np.ndarray:
    """Steps to the right and, imaginary, down; edges are bound."""
    blocks = blocks.astype(float)
    corner = blocks[1:, 1:]
    gradient = (corner - blocks[1:, :-1]) + 1j * (corner - blocks[:-1, 1:])
    size = np.abs(gradient)
    bound = _BOUND * size.sum() / max(1, size.size)
    return gradient * np.minimum(1, bound / np.maximum(size, _TINY))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(dtype=float), b - b.mean(dtype=float)
    power = float((a * a).sum() * (b * b).sum())
    return float((a * b).sum()) / power**0.5 if power > 0 else 1.0


def _ratio(x: np.ndarray, y: np.ndarray, tile: np.ndarray) -> tuple[float, float]:
    """Of the standard deviations of both, which noise in both does not bend, and its relative
    standard error, by leaving out one tile of each at a time (Tukey's jackknife).
    """
    x, y, count = x - x.mean(), y - y.mean(), _TILES[0] * _TILES[1]
    sums = [np.bincount(tile, each, count) for each in (x * 0 + 1, x, y, x * x, y * y)]
    n, mean_x, mean_y, square_x, square_y = (np.append(s.sum() - s, s.sum()) for s in sums)
    powers = square_x - mean_x**2 / n, square_y - mean_y**2 / n
    *parts, whole = 0.5 * np.log(np.maximum(powers[0], _TINY) / np.maximum(powers[1], _TINY))
    return float(np.exp(whole)), float(np.std(parts) * (count - 1) ** 0.5)


def _overlap(
    now: np.ndarray, before: np.ndarray, shift: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Both where they show the same, the scene being shifted down and right by so many blocks."""
    for axis, by in enumerate(shift):
        whole = int(np.floor(by))
        part = np.float32(by - whole) / 2  # half of it in each, so that both are smoothed alike
        size, lines, back = now.shape[axis], np.moveaxis(now, axis, 0), np.moveaxis(before, axis, 0)
        lines = (1 - part) * lines[:-1] + part * lines[1:]
        back = (1 - part) * back[1:] + part * back[:-1]  # at n: where n + 1 + whole is now
        first, last = max(0, 1 + whole), min(size - 1, size + whole)
        lines, back = lines[first:last], back[first - 1 - whole : last - 1 - whole]
        now, before = np.moveaxis(lines, 0, axis), np.moveaxis(back, 0, axis)
    return now, before


def _search(now: np.ndarray, before: np.ndarray) -> tuple[float, list[tuple[float, float]]]:
    """Where the scene of these gradients lies now, shifted by up to ``_FAR`` of the frame.

    Normalised over the overlap of each shift (Lewis, Fast normalized cross-correlation, 1995), and
    times the root of it: on a small overlap anything is alike.

    Returns:
        how far the highest correlation stands out of all others, in standard deviations of theirs
        (peak to sidelobe ratio: Bolme et al., CVPR 2010); shifts down and right in blocks of the
        highest two, for one by half a block may lose to another along an edge.
    """
    shifts = [np.arange(-int(_FAR * n), int(_FAR * n) + 1) for n in now.shape]
    first = [np.maximum(0, by) for by in shifts]  # lines and columns that overlap
    last = [np.minimum(n, n + by) for by, n in zip(shifts, now.shape, strict=True)]

    def power(gradient: np.ndarray) -> np.ndarray:
        """Sums of its squares over what overlaps, where it is moved up and left."""
        sums = np.pad((np.abs(gradient) ** 2).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
        lines = sums[last[0]] - sums[first[0]]
        return lines[:, last[1]] - lines[:, first[1]]

    size = tuple(next_fast_len(2 * n - 1) for n in now.shape)
    product = ifft2(fft2(now, size) * fft2(before, size).conj())[np.ix_(*shifts)].real
    powers = power(now) * power(before)[::-1, ::-1]
    share = np.outer(*(end - begin for begin, end in zip(first, last, strict=True))) / now.size
    alike = product / np.sqrt(np.maximum(powers, _TINY)) * np.sqrt(share)
    alike[(share < _OVERLAP) | (powers <= 1e-6 * powers.max())] = -1
    best, place = alike.max(), _peak(alike)
    down, right = np.unravel_index(alike.argmax(), alike.shape)
    alike[max(0, down - 1) : down + 2, max(0, right - 1) : right + 2] = -1
    others = alike[alike > -1]
    distinct = (best - others.mean()) / max(others.std(), _TINY) if others.size else 0.0
    return float(distinct), [place, _peak(alike)]


def _peak(surface: np.ndarray) -> tuple[float, float]:
    """Place of the highest value against the middle, between the samples where it lies inside."""
    peak = np.unravel_index(surface.argmax(), surface.shape)
    part = [0.0, 0.0]
    for axis in (0, 1):
        line, at = np.take(surface, peak[1 - axis], 1 - axis), peak[axis]
        if 0 < at < len(line) - 1:
            part[axis] = vertex(*line[at - 1 : at + 2])
    return tuple(int(at) - n // 2 + by for at, n, by in zip(peak, surface.shape, part, strict=True))
