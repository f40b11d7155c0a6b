"""Types of command-line arguments that more than one verb takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from cyclopts import Parameter, Token
from cyclopts.validators import Number

from difiisr_models import Camera, FrameSettings, Runtime
from difiisr_models.camera_files import read_camera_file

_LONGEST_SIDE = 16_384  # pixels


def _sizes(_: Any, tokens: Sequence[Token]) -> tuple[tuple[int, int], ...]:
    sizes: list[tuple[int, int]] = []
    for text in (token.value for token in tokens):
        found = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", text)
        size = (int(found[2]), int(found[1])) if found else (0, 0)
        if not found or max(size) > _LONGEST_SIDE:
            raise ValueError(
                f"{text!r} is no size: write WIDTHxHEIGHT, as in 640x512, no side longer than "
                f"{_LONGEST_SIDE}"
            )
        sizes.append(size)
    return tuple(sizes)


def _one_size(_: Any, tokens: Sequence[Token]) -> tuple[int, int]:
    return _sizes(_, tokens)[0]


def _seconds(_: Any, tokens: Sequence[Token]) -> float:
    text = tokens[0].value
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not found:
        raise ValueError(f"{text!r} is not a duration like 90s, 30m or 1.5h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def _shown_as(value: str) -> Parameter:
    """What help shows for a value; cyclopts 4, the last for Python 3.10, shows nothing."""
    return Parameter(metavar=value) if hasattr(Parameter, "metavar") else Parameter()


ImageSize = Annotated[
    tuple[int, int], Parameter(converter=_one_size, n_tokens=1), _shown_as("WIDTHxHEIGHT")
]
"""``640x512`` -> (512, 640): written as a camera's size is, kept as an array's."""

CameraSizes = Annotated[
    tuple[tuple[int, int], ...],
    Parameter(
        converter=_sizes,
        n_tokens=-1,
        consume_multiple=True,
        show_default=lambda sizes: " ".join(f"{width}x{height}" for height, width in sizes),
    ),
    _shown_as("WIDTHxHEIGHT..."),
]
"""``640x512 160x120`` -> ((512, 640), (120, 160)): written likewise."""

Count = Annotated[int, Parameter(validator=Number(gte=1))]
"""A whole number from 1 up."""

Threads = Annotated[int, Parameter(validator=Number(gte=0, lte=256))]
"""A number of CPU threads; 0: as many as there are cores."""

Duration = Annotated[float, Parameter(converter=_seconds, n_tokens=1), _shown_as("DURATION")]
"""``90``, ``90s``, ``30m`` or ``1.5h`` -> seconds."""

RuntimeOptions = Annotated[Runtime, Parameter(name="*")]
"""The fields of :class:`difiisr_models.Runtime` as options of their own."""

FrameOptions = Annotated[FrameSettings, Parameter(name="*")]
"""The fields of :class:`difiisr_models.FrameSettings` as options of their own."""

CameraOptions = Annotated[Camera, Parameter(name="*")]
"""The fields of :class:`difiisr_models.Camera` as options of their own."""


@dataclass(frozen=True)
class AskedCamera:
    """A camera by its name, or by its settings alone.

    Attributes:
        camera: name of a camera (docs/cameras.md) or a YAML file, under the options below.
    """

    camera: str | None = None
    settings: CameraOptions = Camera()

    @property
    def known(self) -> Camera:
        """What the file of the camera says, under the options that are given."""
        if self.camera is None:
            return self.settings
        given, usual = asdict(self.settings), asdict(Camera())
        own = {name: value for name, value in given.items() if value != usual[name]}
        return replace(read_camera_file(self.camera).camera, **own)


KnownCamera = Annotated[AskedCamera, Parameter(name="*")]
"""The fields of :class:`AskedCamera` as options of their own."""


def as_asked(runtime: Runtime) -> Runtime:
    """``runtime`` as a command takes it: an engine that is given runs, or the command fails.

    (A node on a robot rather falls back; that is the default of ``engine_mismatch``.)
    """
    if not runtime.engine or runtime.engine_mismatch != "fallback":
        return runtime
    backend = "tensorrt" if runtime.backend == "auto" else runtime.backend
    return replace(runtime, backend=backend, engine_mismatch="fail")
