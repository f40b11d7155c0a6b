"""Errors in kelvin, for cameras whose counts are linear in temperature."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from difiisr_training.evaluation.results import BinError

_NUMBER = r"\d+\.?\d*(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?"
_FORMULA = re.compile(
    rf"kelvin=(?P<sign>[+-]?)(?P<gain>{_NUMBER})\*counts(?:(?P<way>[+-])(?P<offset>{_NUMBER}))?"
)
_BINS = 8
_MILLIKELVIN = 1000.0
_LARGEST = 1_000_000  # mK; larger errors count as this one


@dataclass(frozen=True)
class Radiometry:
    """``kelvin = gain * counts + offset``."""

    gain: float
    offset: float

    @classmethod
    def parse(cls, text: str) -> Radiometry:
        """Read ``"kelvin=0.1*counts+173.15"``; spaces are free, the offset may be absent.

        Raises:
            ValueError: another form, or a gain of 0.
        """
        found = _FORMULA.fullmatch(re.sub(r"\s", "", text).lower())
        if found is None or float(found["gain"]) == 0:
            raise ValueError(
                f"{text!r} is no linear radiometry; write e.g. 'kelvin=0.04*counts' or "
                "'kelvin=0.1*counts+173.15'"
            )
        gain = float(f"{found['sign']}{found['gain']}")
        return cls(gain, float(f"{found['way']}{found['offset']}") if found["offset"] else 0.0)

    def kelvin(self, counts: np.ndarray) -> np.ndarray:
        """Temperatures, float64."""
        return self.gain * counts.astype(np.float64) + self.offset


def bin_edges(low: float, high: float) -> list[float]:
    """Round temperatures (steps of 1, 2 or 5 times a power of ten) that span ``low..high``.

    Gives four to ten bins or so, at least one.
    """
    step = max(high - low, 1e-3) / _BINS
    power = 10.0 ** math.floor(math.log10(step))
    step = min((f * power for f in (1, 2, 5, 10)), key=lambda width: abs(math.log(width / step)))
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)
    return [round(i * step, 6) for i in range(first, last + 1)]


class BinErrors:
    """Errors of one model, by the temperature that the pixel should have."""

    def __init__(self, radiometry: Radiometry, edges: Sequence[float]) -> None:
        """``edges``: ascending, kelvin; what lies beyond counts in the end bins."""
        self._radiometry, self._inner = radiometry, np.asarray(edges[1:-1], np.float64)
        self._sums = np.zeros(len(edges) - 1)
        self._histograms = [np.zeros(0, np.int64) for _ in self._sums]

    def add(self, sr: np.ndarray, hr: np.ndarray) -> None:
        """Count the pixels of a frame; both ``(H, W)`` counts."""
        wanted = self._radiometry.kelvin(hr)
        error = self._radiometry.kelvin(sr) - wanted
        place = np.digitize(wanted, self._inner)
        for index, known in enumerate(self._histograms):
            inside = error[place == index]
            size = np.rint(np.abs(inside) * _MILLIKELVIN).clip(0, _LARGEST).astype(np.int64)
            self._sums[index] += inside.sum()
            total = np.bincount(size, minlength=len(known))
            total[: len(known)] += known
            self._histograms[index] = total

    def pixels(self) -> list[int]:
        """Number of pixels per bin."""
        return [int(histogram.sum()) for histogram in self._histograms]

    def errors(self) -> list[BinError | None]:
        """Per bin, to the millikelvin; ``None`` for a bin without a pixel."""
        found: list[BinError | None] = []
        for total, histogram in zip(self._sums, self._histograms, strict=True):
            count = histogram.sum()
            if count == 0:
                found.append(None)
                continue
            p95 = np.searchsorted(np.cumsum(histogram), 0.95 * count) / _MILLIKELVIN
            found.append(BinError(float(total / count), float(p95)))
        return found
