"""What is known of one camera, in a file: its stuck pixels, its noise and its fixed pattern."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from difiisr_models.files import replaced

_PATTERN = ("rows", "columns", "pixels")
_MOST_BYTES = 2**28  # of all arrays; a pixel has 13, a megapixel 13 million


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
        arrays: dict[str, Any] = {"bad": self.bad, "noise": self.noise, **self.pattern}
        with replaced(Path(path)) as beside, beside.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no calibration, or damaged.
        """
        try:
            if Path(path).exists() and not Path(path).is_file():
                raise ValueError("it is no file")
            with zipfile.ZipFile(path) as file:
                members = file.infolist()
            unpacked = sum(member.file_size for member in members)  # no more is unpacked
            if unpacked > _MOST_BYTES or len(members) > 2 + len(_PATTERN):
                raise ValueError(f"{len(members)} arrays of {unpacked} bytes, unpacked")
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except FileNotFoundError:
            raise
        except Exception as error:  # damaged files raise whatever their parser raises
            raise ValueError(f"{path} is no calibration: {error}") from error
        kinds = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
        height, width = size = arrays["bad"].shape if np.ndim(arrays.get("bad", 0)) == 2 else (0, 0)
        wanted = {"bad": ("bool", size), "noise": ("float64", ())}
        shapes = (3, height, 1), (3, 1, width), (3, *size)
        parts = {name: ("float32", shape) for name, shape in zip(_PATTERN, shapes, strict=True)}
        is_right = kinds in (wanted, wanted | parts)
        is_right = is_right and all(np.isfinite(array).all() for array in arrays.values())
        if not is_right or arrays["noise"] < 0:
            raise ValueError(
                f"{path} is no calibration: its arrays are of other names, sizes or types; remove "
                "it and calibrate anew"
            )
        return cls(arrays.pop("bad"), float(arrays.pop("noise")), arrays)
