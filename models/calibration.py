"""What is known of one camera, in a file: its stuck pixels, its noise and its fixed pattern."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from difiisr_models.files import replaced

_PATTERN = ("rows", "columns", "pixels")


@dataclass(frozen=True)
class Calibration:
    """What a stream has found out about its camera.

    Attributes:
        bad: ``(H, W)`` bool, stuck pixels.
        noise: standard deviation, counts.
        pattern: evidence of each part of the fixed pattern, see :class:`PatternTracker`; empty
            while there is none.
    """

    bad: np.ndarray
    noise: float
    pattern: dict[str, np.ndarray]

    def save(self, path: str | Path) -> None:
        """Replace ``path`` by a NumPy .npz file; raises OSError where it cannot be written."""
        with replaced(Path(path)) as beside, beside.open("wb") as file:
            np.savez_compressed(file, bad=self.bad, noise=self.noise, **self.pattern)

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no calibration, or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except FileNotFoundError:
            raise
        except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is no calibration: {error}") from error
        bad, noise = arrays.pop("bad", None), arrays.pop("noise", None)
        is_right = (
            bad is not None
            and (bad.ndim, bad.dtype) == (2, np.dtype(bool))
            and noise is not None
            and noise.shape == ()
            and noise.dtype.kind == "f"
            and bool(np.isfinite(noise) and noise >= 0)
        )
        if is_right and arrays:
            height, width = bad.shape
            shapes = (3, height, 1), (3, 1, width), (3, height, width)
            is_right = tuple(arrays) == _PATTERN and all(
                part.shape == shape and part.dtype == np.float32 and np.isfinite(part).all()
                for part, shape in zip(arrays.values(), shapes, strict=True)
            )
        if not is_right:
            raise ValueError(
                f"{path} is no calibration: its arrays are of other names, sizes or types; remove "
                "it and calibrate anew"
            )
        return cls(bad, float(noise), arrays)
