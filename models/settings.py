"""Every setting of an upscaler and its camera, once: default, range, choices and meaning.

The node's parameters, config/sr.yaml, the options of the command line and the README's table are
derived from these classes; help texts are their sections "Attributes". Importing this costs no
torch.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

from annotated_types import Ge, Le
from pydantic import TypeAdapter, ValidationError

Backend = Literal["auto", "tensorrt", "torch_tensorrt", "openvino", "onnxruntime", "torch"]
Precision = Literal["fp32", "bf16", "fp16"]
AskedPrecision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
EngineMismatch = Literal["rebuild", "fallback", "fail"]
Palette = Literal["grey", "inferno"]
Unit = Literal["counts", "kelvin", "celsius"]

MIN_SIDE = 16
"""Low-resolution pixels on a side that a frame and a tile have at least."""

SMALLEST_OWN_TILE = 256
"""Side of the tiles that a model takes where nobody asks for another, at least."""

_MOST_MARKS = 64  # each costs a look at the whole frame
_TYPES = {"string": str, "number": float, "integer": int, "boolean": bool}


@dataclass(frozen=True)
class Runtime:
    """What runs the network, and in what pieces.

    Attributes:
        device: where the network runs: auto, cpu, cuda or cuda:N; auto takes a CUDA GPU if there
            is one
        backend: what runs the network; auto takes the fastest that works here: the node measures
            on a CPU, all else keeps one order, so that results repeat
        precision: of convolutions and matrix products; half for GPUs, bf16 for CPUs that compute
            in it too, int8 on CPUs for models that difiisr quantise has made ready; auto is fp32,
            and in the node bf16 where the CPU has instructions for it
        compile: backend torch compiles the network: a minute for each new frame size
        threads: CPU threads of the network in every backend; 0 leaves the default
        engine: TensorRT engine file made by difiisr build-engine; empty for none
        engine_mismatch: when the engine file does not fit this machine and model: build it anew,
            take another backend, or fail
        tile: side of the tiles that large frames are cut into, input pixels, 16 or more; 0: the
            model's own, 640 (published network, torch_tensorrt: 256); an engine has its own
        overlap: overlap of neighbouring tiles, input pixels; less than half a tile
        tile_batch: tiles per network call; fewer need less memory; an engine has its own

    Raises:
        ValueError: a value of another type, or out of its range.
    """

    device: str = "auto"
    backend: Backend = "auto"
    precision: AskedPrecision = "auto"
    compile: bool = False
    threads: Annotated[int, Ge(0), Le(256)] = 0
    engine: str = ""
    engine_mismatch: EngineMismatch = "fallback"
    tile: Annotated[int, Ge(0), Le(4096)] = 0
    overlap: Annotated[int, Ge(0), Le(2047)] = 32
    tile_batch: Annotated[int, Ge(1), Le(1024)] = 1

    def __post_init__(self) -> None:
        check(self)
        if 0 < self.tile < MIN_SIDE:
            raise ValueError(f"tile must be 0 or at least {MIN_SIDE}, got {self.tile}")
        tile = self.tile or SMALLEST_OWN_TILE
        if 2 * self.overlap >= tile:
            raise ValueError(
                f"overlap must be less than half the tile ({tile}), got {self.overlap}"
            )

    @property
    def repeatable(self) -> Runtime:
        """This, with the precision that gives the same result on every machine for auto."""
        return replace(self, precision="fp32") if self.precision == "auto" else self


@dataclass(frozen=True)
class FrameSettings:
    """How a frame is made; all of it may change from one frame to the next.

    Attributes:
        steps: diffusion steps per frame; 1 for compact models: more cost more and measure worse
        fidelity: 1 for the lowest error, 0 for the sharpest sample; models without that choice
            (bicubic, the published network) ignore it
        seed: seed of the fixed noise; -1 for no noise
        consistency: strength of the step that makes the output, scaled down, equal the input;
            auto: as far as the sensor's noise allows, all of it where there is none
        remove_pattern: take off the fixed pattern of the sensor (offsets of rows, columns and
            pixels that stand still while the scene moves)
        output_scale: 4, or 2: what is made is scaled down by two, for a quarter of the bytes
        pipeline: robust, or published: the authors' own (full scale as -1..1, tiles of 256
            averaged plainly, no noise removed, no consistency step), to compare with

    Raises:
        ValueError: a value of another type, or out of its range.
    """

    steps: Annotated[int, Ge(1), Le(15)] = 1
    fidelity: Annotated[float, Ge(0.0), Le(1.0)] = 1.0
    seed: Annotated[int, Ge(-1), Le(2**32 - 1)] = 0
    consistency: Annotated[float, Ge(0.0), Le(1.0)] | Literal["auto"] = "auto"
    remove_pattern: bool = True
    output_scale: Annotated[int, Ge(2), Le(4)] = 4
    pipeline: Literal["robust", "published"] = "robust"

    def __post_init__(self) -> None:
        check(self)
        if self.output_scale == 3:
            raise ValueError("output_scale must be 2 or 4, got 3")
        if self.output_scale == 2 and self.pipeline == "published":
            raise ValueError("output_scale 2 needs pipeline robust: the authors' own makes x4")


class Crop(NamedTuple):
    """Pixels that are cut off each side of a frame."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0

    def cut(self, frame: Any) -> Any:
        """A view of the array ``frame (H, W, ...)``, empty where nothing is left."""
        height, width = frame.shape[:2]
        down = slice(self.top, max(self.top, height - self.bottom))
        right = slice(self.left, max(self.left, width - self.right))
        return frame[down, right]


@dataclass(frozen=True)
class Camera:
    """What is to be known of a camera.

    Attributes:
        no_data: values that mark pixels without a measurement, separated by commas (0, 65535); NaN
            and infinity always do
        crop: rows and columns that are cut off the frame: top, bottom, left, right (2, 0, 0, 0 for
            two rows of telemetry at the top); empty for none
        telemetry_rows: rows of telemetry at the top of each frame, negative for rows at the
            bottom: cut off too, and no part of what camera_info describes where that says so
        telemetry: how those rows are read: lepton tells by them of each frame whether the shutter
            is closed (FFC in progress); none for not at all
        roi: region of interest of what is left: x, y, width, height, input pixels; empty for all
        unit: of scale * counts + offset; counts where no temperatures are known
        scale: degrees for one count
        offset: degrees at 0 counts
        max_pause: seconds without frames that what is known of the scene survives; after longer
            ones, as after a cut, the stream begins anew
        on_repeat: a frame that is exactly the one before it (a closed shutter) is not computed:
            publish the last result with its stamp, or drop it
        calibration: file of the camera's stuck pixels, noise and fixed pattern, written by the
            service ~/calibrate (.npz); empty for none

    Raises:
        ValueError: a value of another type, or other numbers.
    """

    no_data: str | float | int = ""
    crop: str = ""
    telemetry_rows: Annotated[int, Ge(-16), Le(16)] = 0
    telemetry: Literal["none", "lepton"] = "none"
    roi: str = ""
    unit: Unit = "counts"
    scale: float = 1.0
    offset: float = 0.0
    max_pause: Annotated[float, Ge(0.0), Le(3600.0)] = 5.0
    on_repeat: Literal["publish", "drop"] = "publish"
    calibration: str = ""

    def __post_init__(self) -> None:
        check(self)
        if not (math.isfinite(self.scale) and math.isfinite(self.offset)) or self.scale == 0:
            given = f"{self.scale} and {self.offset}"
            raise ValueError(f"scale and offset: finite numbers, scale not 0, got {given}")
        try:
            count = len(self.no_data_values)
        except ValueError:
            raise ValueError(
                f"no_data: numbers separated by commas are needed, got {self.no_data!r}"
            ) from None
        if count > _MOST_MARKS:
            raise ValueError(f"no_data: at most {_MOST_MARKS} numbers are looked for, got {count}")
        for name, meaning in (("crop", "top, bottom, left, right"), ("roi", "x, y, width, height")):
            text = getattr(self, name)
            if text and not re.fullmatch(r"\s*\d{1,5}\s*(,\s*\d{1,5}\s*){3}", text):
                raise ValueError(
                    f"{name}: four numbers of pixels, {meaning}, are needed, got {text!r}"
                )

    @property
    def no_data_values(self) -> tuple[float, ...]:
        """``no_data`` as numbers."""
        words = str(self.no_data).split(",") if self.no_data != "" else []
        return tuple(float(word) for word in words)

    def window(self, height: int, width: int) -> Crop:
        """What ``crop``, ``telemetry_rows`` and ``roi`` cut off a frame of this size.

        Raises:
            ValueError: ``roi`` does not lie in what is left of it.
        """
        top, bottom, left, right = self._cropped
        top, bottom = top + max(self.telemetry_rows, 0), bottom + max(-self.telemetry_rows, 0)
        if not self.roi:
            return Crop(top, bottom, left, right)
        x, y, across, down = map(int, self.roi.split(","))
        below, beside = height - bottom - top - y - down, width - right - left - x - across
        if below < 0 or beside < 0:
            size = f"{max(0, width - left - right)}x{max(0, height - top - bottom)}"
            raise ValueError(f"roi {self.roi} does not lie in the {size} pixels that are left")
        return Crop(top + y, bottom + below, left + x, right + beside)

    @property
    def _cropped(self) -> Crop:
        return Crop(*map(int, self.crop.split(","))) if self.crop else Crop()

    def is_shut(self, frame: Any) -> bool:
        """Whether the telemetry in a whole frame ``(H, W, ...)`` says that the shutter is closed.

        Lepton: the FFC state is in bits 4 and 5 of word 3 of telemetry row A, a word a pixel; 2 is
        "in progress" (datasheet 500-0659-00-09 rev. 203, table 3), in revision 8 (word 0) it is 1.
        What is not 16-bit integers has no such row.
        """
        rows, (top, bottom, *_) = self.telemetry_rows, self._cropped
        words = frame[top if rows > 0 else max(0, len(frame) - bottom + rows) :][:1, :4]
        is_there = rows and words.shape == (1, 4) and frame.dtype in ("uint16", "int16")
        if self.telemetry == "none" or not is_there:
            return False
        revision, _, _, status = map(int, words[0])
        return status >> 4 & 3 == (1 if revision == 8 else 2)


def with_fields(
    runtime: Runtime, settings: FrameSettings, values: dict[str, Any]
) -> tuple[Runtime, FrameSettings]:
    """Both with the fields replaced that are theirs; ValueError for one that is neither's."""
    names = [{field.name for field in fields(part)} for part in (runtime, settings)]
    if unknown := sorted(values.keys() - names[0] - names[1]):
        known = (field.name for part in (runtime, settings) for field in fields(part))
        raise ValueError(f"unknown settings {', '.join(unknown)}; known are {', '.join(known)}")
    own = [{name: values[name] for name in part & values.keys()} for part in names]
    return replace(runtime, **own[0]), replace(settings, **own[1])


def check(settings: object) -> None:
    """Raise ValueError, naming field, value and range, unless all fields fit their annotations.

    Types are strict, but that a whole number is a float too. ``settings``: a dataclass instance.
    """
    kind: type = type(settings)
    for name, adapter in _adapters(kind).items():
        value = getattr(settings, name)
        try:
            adapter.validate_python(value, strict=True)
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"]
            words = allowed(kind, name)
            wanted = f" (allowed: {words})" if words else ""
            raise ValueError(
                f"{name}: {reason[0].lower()}{reason[1:]}, got {value!r}{wanted}"
            ) from None


def types(kind: type, name: str) -> tuple[type, ...]:
    """Types that a field of the dataclass ``kind`` takes: one, or text and number."""
    return tuple(_TYPES[part["type"]] for part in _parts(kind, name))


def limits(kind: type, name: str) -> tuple[float, float] | None:
    """Least and greatest value of a field of the dataclass ``kind``, None where it has none."""
    ends = ((part["minimum"], part["maximum"]) for part in _parts(kind, name) if "minimum" in part)
    return next(ends, None)


def allowed(kind: type, name: str) -> str:
    """The allowed values of a field in words: ``"1 to 15"``, ``"fp32, bf16, fp16"``, or ``""``."""
    words: list[str] = []
    for part in _parts(kind, name):
        words += part.get("enum", [part["const"]] if "const" in part else [])
    ends = limits(kind, name)
    return ", ".join((*words, *([f"{ends[0]} to {ends[1]}"] if ends else [])))


def _parts(kind: type, name: str) -> list[dict[str, Any]]:
    """The JSON schemas that a field fits one of."""
    schema = _adapters(kind)[name].json_schema()
    return schema.get("anyOf", [schema])


@lru_cache
def _adapters(kind: type) -> dict[str, TypeAdapter]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: TypeAdapter(hints[field.name]) for field in fields(kind)}
