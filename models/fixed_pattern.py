"""The fixed pattern of a thermal camera: what stands still in its frames while the scene moves.

Rows, columns and single pixels have offsets of their own. Two frames between which the scene has
moved by a known shift tell them from the scene: shifted onto each other, the scene cancels, and
what stands still does not (registration-based non-uniformity correction; Hardie et al., 2000).
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from functools import lru_cache

import numpy as np
from scipy.fft import irfft2, rfft2
from scipy.ndimage import uniform_filter, uniform_filter1d

from difiisr_models.frame_statistics import RANGE_QUANTILES, block_sums, vertex

_CROP = 256  # pixels on a side, most, of the part that motion is looked for in
_BAND = 0.25  # cycles a pixel: above it there is more pattern and noise than scene
_PEAK = 0.15  # of a perfect match: below it nobody knows how the scene has moved
_STATIC = 0.7  # of the highest peak: with this much at no motion, none is believed
_MOVED = 1.0  # pixels
_KEPT = 4.0  # pixels up to which an earlier frame is kept to compare with
_FAR = 0.25  # of the crop: the most that is believed
_BLOCK = 16  # pixels on a side of the blocks in which the motion is checked
_EXPLAINED = 0.7  # share of the blocks that tell which the motion must explain
_AROUND = 15  # pixels on a side of the surroundings that an offset is relative to
_OUTLIER = 4.0  # deviations
_FAINT = 0.003  # of the span of the frame: taken for noise where there is less
_TINY = np.float32(1e-20)
_CAP = 3.0  # times the noise: no offset is larger
_LEAST, _WINDOW = 8, 100  # used frames
_EVERY = 4  # used frames tell more of the pattern; later on, one frame in so many is used
_DOUBTED = 5  # of them: a few frames do not tell their own variance well
_PARTS = "rows", "columns", "pixels"
_ERRORS = {"rows": 3.0, "columns": 3.0, "pixels": 2.0}  # standard errors: below, there is no offset
_MEDIAN_SQUARE = 0.455  # of a standard normal variable
_MANY = 1.5  # times that: pixels have offsets where most do, and not where a few stand out


@dataclass(frozen=True)
class PatternStrength:
    """How strong an established pattern is: root mean squares of its offsets, counts."""

    rows: float = 0.0
    columns: float = 0.0
    pixels: float = 0.0


class PatternTracker:
    """The fixed pattern of one channel of a stream.

    Rows count only where the scene moved vertically by a pixel or more, columns where it moved
    horizontally, single pixels where it did both: blinds are no pattern, though a camera that pans
    along them sees them stand still. Offsets are relative to the 15x15 pixels around, so shading is
    none of them.

    Attributes:
        pattern: what :meth:`update` returned last.
        strength: of that; zeros while none is established.
    """

    def __init__(self) -> None:
        self.frames = self._used_frames = 0
        self._earlier: tuple[np.ndarray, np.ndarray] | None = None  # a frame and its spectrum
        self._used = np.full((3, 2), np.inf)  # shift of the last frame used for each of the three
        self._evidence: dict[str, _Evidence] = {}
        self.pattern: np.ndarray | None = None
        self.strength = PatternStrength()

    def update(self, counts: np.ndarray, noise: float) -> np.ndarray | None:
        """Take in the next frame as the camera gave it.

        Args:
            counts: ``(H, W)`` without gaps.
            noise: standard deviation of its noise, counts.

        Returns:
            the pattern to subtract, ``(H, W)`` float32, counts; None while none is established.
        """
        self.frames += 1
        if self._used_frames >= _WINDOW and self.frames % _EVERY:
            return self.pattern
        frame = counts.astype(np.float32)
        if not self._evidence:
            height, width = frame.shape
            sizes = (height, 1), (1, width), (height, width)
            found = (_Evidence(np.zeros((3, *size), np.float32)) for size in sizes)
            self._evidence = dict(zip(_PARTS, found, strict=True))
        lo, hi = np.quantile(frame[::4, ::4], RANGE_QUANTILES)
        noise = max(float(noise), _FAINT * float(hi - lo))
        spectrum, shift = _spectrum(frame), None
        if self._earlier is not None and noise > 0:
            shift = _shift_between(spectrum, self._earlier[1], frame.shape, noise)
            if shift is not None and np.abs(shift).max() >= _MOVED:
                self._compare(frame, self._earlier[0], shift, noise)
        if shift is None or np.abs(shift).max() > _KEPT:
            self._earlier = frame, spectrum
            self._used = np.full((3, 2), np.inf) if shift is None else self._used - shift
        return self.pattern

    def begin_scene(self, gain: float = 1.0) -> None:
        """The next frame cannot be compared with the ones before; the pattern is the camera's.

        ``gain``: what its counts are times those before.
        """
        self._earlier = None
        if gain == 1:
            return
        self.strength = PatternStrength(*(gain * each for each in astuple(self.strength)))
        self.pattern = None if self.pattern is None else self.pattern * np.float32(gain)
        for evidence in self._evidence.values():
            evidence.mean *= np.float32(gain)
            evidence.variance *= np.float32(gain * gain)

    def state(self) -> dict[str, np.ndarray]:
        """What has been found so far, to be saved; empty before any."""
        return {name: evidence.state.copy() for name, evidence in self._evidence.items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from a saved state."""
        self._evidence = {name: _Evidence(found.copy()) for name, found in state.items()}
        if self._evidence:
            self._establish(np.inf)

    def _compare(
        self, frame: np.ndarray, earlier: np.ndarray, shift: np.ndarray, noise: float
    ) -> None:
        """Gather what ``frame`` tells, the scene in it being shifted against the earlier one."""
        moved = (np.abs(shift) >= _MOVED) & (np.abs(shift - self._used) >= _MOVED)
        tells = moved[0, 0], moved[1, 1], moved[2].all()
        if not any(tells):
            return
        corrected = earlier if self.pattern is None else earlier - self.pattern
        where, shifted = _shifted(corrected, shift)
        differs = frame[where] - shifted
        good = _explained(differs, frame[where] - earlier[where], noise)
        if good is None:
            return
        offsets = differs - uniform_filter(differs, _AROUND)
        good *= np.abs(offsets) < _OUTLIER * np.sqrt(2) * noise
        offsets *= good
        rows, columns = (_means(offsets, good, axis) for axis in (1, 0))
        for (_, counts), axis in ((rows, 1), (columns, 0)):
            profile = frame[where].mean(axis, keepdims=True)
            stands_out = np.abs(profile - uniform_filter1d(profile, _AROUND, 1 - axis))
            counts &= stands_out < _CAP * noise  # else it is a fence, which may repeat itself
        self._used_frames += 1
        found = rows, columns, (offsets - rows[0] - columns[0], good)
        places = (where[0], slice(None)), (slice(None), where[1]), where
        for n in np.flatnonzero(tells):
            told, is_good = found[n]
            self._evidence[_PARTS[n]].add(told, is_good, places[n])
            self._used[n] = shift
        if self._used_frames % _EVERY == 0:
            self._establish(noise)

    def _establish(self, noise: float) -> None:
        parts = [self._evidence[n].offsets(_ERRORS[n], _CAP * noise) for n in _PARTS]
        self.strength = PatternStrength(*(float(np.sqrt((part**2).mean())) for part in parts))
        self.pattern = sum(parts[1:], parts[0]) if any(part.any() for part in parts) else None


class _Evidence:
    """Mean and variance of each offset over the frames that told it, the older the less."""

    def __init__(self, state: np.ndarray) -> None:
        self.state = state  # (3, h, w) float32, of which the other three are views
        self.frames, self.mean, self.variance = state

    def add(self, offsets: np.ndarray, good: np.ndarray, where: tuple[slice, slice]) -> None:
        frames, mean, variance = self.state[(slice(None), *where)]
        frames[...] = np.minimum(frames + good, _WINDOW)
        rate = good / np.maximum(frames, 1)
        change = offsets - mean
        mean += rate * change
        variance += rate * (change * change * (1 - rate) - variance)

    def offsets(self, errors: float, most: float) -> np.ndarray:
        """The offsets that stand out by ``errors`` standard errors, shrunk as they do so less."""
        if self.frames.max() < _LEAST:
            return np.zeros_like(self.mean)
        square = self.mean * self.mean
        doubt = self.variance / np.maximum((self.frames - _DOUBTED) * square, _TINY)
        if self.mean.shape[0] > 1 < self.mean.shape[1]:
            some = doubt[::3, ::3][self.frames[::3, ::3] >= _LEAST]
            if some.size == 0 or np.median(some) * _MANY * _MEDIAN_SQUARE > 1:
                return np.zeros_like(self.mean)
        kept = np.maximum(1 - np.float32(errors**2) * doubt, 0) * (self.frames >= _LEAST)
        return np.clip(kept * self.mean, -most, most)


@lru_cache(maxsize=8)
def _window(size: tuple[int, int]) -> np.ndarray:
    return np.outer(*(np.hanning(n + 1)[:-1] for n in size)).astype(np.float32)


@lru_cache(maxsize=8)
def _band(size: tuple[int, int]) -> np.ndarray:
    """The frequencies that motion is looked for in, without those of rows and columns."""
    down = np.fft.fftfreq(size[0])[:, None]
    right = np.fft.rfftfreq(size[1])[None]
    inside = np.hypot(down, right) < _BAND
    return inside & (np.abs(down) * size[0] > 1.5) & (right * size[1] > 1.5)


def _spectrum(frame: np.ndarray) -> np.ndarray:
    """Of the middle of a frame, windowed."""
    top, left = ((n - min(n, _CROP)) // 2 for n in frame.shape)
    crop = frame[top : top + _CROP, left : left + _CROP]
    return rfft2((crop - crop.mean()) * _window(crop.shape))


def _shift_between(
    now: np.ndarray, before: np.ndarray, shape: tuple[int, int], noise: float
) -> np.ndarray | None:
    """How far the scene has moved, ``(2,)`` pixels down and right, by two spectra; None if unknown.

    Phase correlation, weighted by how much more than noise each frequency holds. Rows and columns
    have all their power at the two axes of the spectrum, which are left out.
    """
    height, width = (min(n, _CROP) for n in shape)
    cross = now * before.conj() * _band((height, width))
    size = np.maximum(np.abs(cross), _TINY)
    floor = 4 * noise**2 * (0.375 * height) * (0.375 * width)  # 0.375: mean square of a Hann window
    weight = np.maximum(1 - np.float32(floor) / size, 0)
    total = 2 * float(weight.sum())
    if total == 0:
        return None
    surface = irfft2(cross * (weight / size), (height, width))
    surface *= height * width / total
    peak = np.array(np.unravel_index(surface.argmax(), surface.shape))
    best = surface[tuple(peak)]
    if best < max(_PEAK, 6 / np.sqrt(total)):
        return None
    if surface[0, 0] >= _STATIC * best:
        peak[:] = 0
    around = np.roll(surface, 1 - peak, (0, 1))[:3, :3]  # it is periodic
    part = vertex(*around[:, 1]), vertex(*around[1])
    middle = np.array((height // 2, width // 2))
    shift = (peak + middle) % (height, width) - middle + part
    return shift if (np.abs(shift) < _FAR * np.array((height, width))).all() else None


def _shifted(frame: np.ndarray, shift: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray]:
    """The frame moved by ``shift``, interpolated cubically, and where it then lies."""
    where = []
    for axis, by in enumerate(shift):
        first = int(np.floor(-by)) - 1
        t = -by - np.floor(-by)
        taps = (
            ((2 - t) * t - 1) * t / 2,
            ((3 * t - 5) * t * t + 2) / 2,
            ((4 - 3 * t) * t + 1) * t / 2,
            (t - 1) * t * t / 2,
        )
        size = frame.shape[axis]
        begin, end = max(0, -first), min(size, size - first - 3)
        lines = np.moveaxis(frame, axis, 0)
        parts = [
            np.float32(tap) * lines[begin + first + n : end + first + n]
            for n, tap in enumerate(taps)
        ]
        frame = sum(parts[1:], parts[0])
        frame = np.moveaxis(frame, 0, axis)
        where.append(slice(begin, end))
    return (where[0], where[1]), frame


def _means(offsets: np.ndarray, good: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the good ones along an axis, and where a quarter or more are good."""
    count = good.sum(axis, keepdims=True)
    return offsets.sum(axis, keepdims=True) / np.maximum(count, 1), count >= good.shape[axis] / 4


def _explained(moved: np.ndarray, still: np.ndarray, noise: float) -> np.ndarray | None:
    """Pixels in whose blocks the motion explains a frame, ``(h, w)`` 0 or 1; None if in too few.

    Args:
        moved: ``(h, w)`` difference of the two frames, the earlier one moved.
        still: the same without the motion.
        noise: of either frame, same unit.
    """
    with_motion, without = _block_power(moved), _block_power(still)
    tells = np.maximum(with_motion, without) > 3 * 2 * noise**2 / 16
    better = with_motion < without
    if tells.mean() < 0.1 or better[tells].mean() < _EXPLAINED:
        return None
    if with_motion[tells].sum() > 0.5 * without[tells].sum():
        return None
    good = np.zeros(moved.shape, np.float32)
    blocks = (better | ~tells).repeat(_BLOCK, 0).repeat(_BLOCK, 1)
    good[: blocks.shape[0], : blocks.shape[1]] = blocks
    return good


def _block_power(difference: np.ndarray) -> np.ndarray:
    """Mean square of a difference in each block, after means over 4x4 pixels."""
    height, width = (n - n % _BLOCK for n in difference.shape)
    means = block_sums(difference[:height, :width], 4) / 16
    return block_sums((means - np.median(means)) ** 2, _BLOCK // 4) / (_BLOCK // 4) ** 2
