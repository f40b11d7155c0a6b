"""What is known of a camera, in files: its settings (YAML), and its calibration (NumPy)."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import TypeAdapter, ValidationError

from difiisr_models.files import read_text, replaced
from difiisr_models.settings import Camera
from difiisr_models.weights import share_dir

GENERIC = "generic"
_MOST_ROWS = 4  # of telemetry
_PATTERN = ("rows", "columns", "pixels")
_MOST_BYTES = 2**28  # of all arrays; a pixel has 13, a megapixel 13 million


@dataclass(frozen=True)
class CameraFile:
    """A file of config/cameras, or a user's own; what else it says is for people and launch files.

    Attributes:
        name: of the file, or its path.
        title: of the camera.
        sizes: width and height of its frames; empty for any.
        encodings: of its images.
        counts: ends of where the median of an ordinary frame lies; empty for anywhere.
        parameters: of the node.
    """

    name: str
    title: str = ""
    sizes: tuple[tuple[int, int], ...] = ()
    encodings: tuple[str, ...] = ()
    counts: tuple[float, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def camera(self) -> Camera:
        """The parameters as settings; ValueError where they are none of a camera's."""
        try:
            return Camera(**self.parameters)
        except (TypeError, ValueError) as error:
            raise ValueError(f"camera {self.name}: {error}") from None

    def fits(self, encoding: str, width: int, height: int, median: float) -> bool:
        """Whether frames like this may be the camera's."""
        of_size = not self.sizes or (width, height) in self.sizes
        of_counts = not self.counts or self.counts[0] <= median <= self.counts[1]
        return encoding in self.encodings and of_size and of_counts

    def telemetry_rows(self, frame: np.ndarray) -> int:
        """Rows of telemetry in a whole frame ``(H, W)`` of a known size; negative: at the bottom.

        They are what it has beyond another of the camera's sizes, on the side that is less like the
        rest; 0 without any.
        """
        height, width = frame.shape
        beyond = [height - tall for wide, tall in self.sizes if wide == width]
        rows = min((n for n in beyond if 0 < n <= _MOST_ROWS), default=0)
        top, bottom = frame[:rows], frame[height - rows :]
        unlike = [abs(np.median(part) - np.median(frame)) for part in (top, bottom) if rows]
        return -rows if rows and unlike[1] > unlike[0] else rows


def known_cameras() -> list[str]:
    """Names of the cameras that come with the package, sorted."""
    return sorted(path.stem for path in (share_dir() / "config" / "cameras").glob("*.yaml"))


def read_camera_file(name: str) -> CameraFile:
    """Read the file of a known camera, or of a path.

    Raises:
        ValueError: there is no such camera and no such file, or it is not in this form; the text
            lists the known ones.
    """
    known = known_cameras()
    path = Path(name)
    if name in known:
        path = share_dir() / "config" / "cameras" / f"{name}.yaml"
    elif not path.is_file():
        raise ValueError(f"no camera {name!r}; known are {', '.join(known)}, or give a YAML file")
    try:
        content = yaml.safe_load(read_text(path))
        found = TypeAdapter(CameraFile).validate_python({**content, "name": name})
    except (yaml.YAMLError, RecursionError, TypeError, ValidationError) as error:
        raise ValueError(f"{path} is no camera's file: {error}") from None
    found.camera  # noqa: B018
    return found


def guess_cameras(encoding: str, width: int, height: int, median: float) -> Sequence[CameraFile]:
    """The known cameras that frames like this may come from, those that say most of it first."""
    cameras = [read_camera_file(name) for name in known_cameras() if name != GENERIC]
    found = [c for c in cameras if c.fits(encoding, width, height, median)]
    return sorted(found, key=lambda camera: (not camera.counts, len(camera.sizes)))


@dataclass(frozen=True)
class Calibration:
    """What a stream has found out about one camera.

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
