"""What is known of cameras: config/cameras/*.yaml, and files of users in the same form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import TypeAdapter, ValidationError

from difiisr_models.files import read_text
from difiisr_models.settings import Camera
from difiisr_models.weights import share_dir

GENERIC = "generic"
_MOST_ROWS = 4  # of telemetry


@dataclass(frozen=True)
class CameraFile:
    """A camera's file; what else it says is for people and for the launch file.

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
