"""The node's parameters, declared once: dataclass, ROS descriptors, validation, README table, YAML.

`python -m difiisr_ros.parameters` prints the README table, `... yaml` prints config/sr.yaml.
"""

from __future__ import annotations

import re
import sys
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any

from difiisr_models import UpscalerSettings
from difiisr_models.backends import ENGINE_MISMATCH
from difiisr_models.backends.selection import BACKENDS
from difiisr_models.precision import PRECISIONS

RELIABILITIES = ("best_effort", "reliable")

# When a value may change: "live" at any time, from the next frame on; "configure" while the node
# is unconfigured; "start" only in the parameters the process is started with (ROS: read-only).
LIVE, CONFIGURE, START = "live", "configure", "start"
ROS_TYPES = {str: "string", float: "double", int: "integer", bool: "bool"}


class ParameterError(ValueError):
    """A value outside its type, range or choices; the text says which and what to write."""


@dataclass(frozen=True)
class Rule:
    """What is true of one parameter beside its type and default (those are the field's)."""

    change: str
    description: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()  # "cuda:N" allows any number for N

    @property
    def allowed(self) -> str:
        """The allowed values in words, "" where the type says it all."""
        if self.choices:
            return ", ".join(self.choices)
        return "" if self.minimum is None else f"{self.minimum} to {self.maximum}"


def _parameter(default: Any, change: str, description: str, **limits: Any) -> Any:
    return field(default=default, metadata={"rule": Rule(change, description, **limits)})


@dataclass(frozen=True)
class Parameters:
    """All parameters of sr_node; raises ParameterError on a value that is not allowed."""

    model: str = _parameter(
        "difiisr-rt-x4", CONFIGURE, "model name, or path to a weights file or folder; bicubic works"
    )
    device: str = _parameter(
        "auto",
        CONFIGURE,
        "where the network runs; auto takes a CUDA GPU if there is one",
        choices=("auto", "cpu", "cuda", "cuda:N"),
    )
    backend: str = _parameter(
        "auto",
        CONFIGURE,
        "what runs the network; auto takes the fastest that works here",
        choices=BACKENDS,
    )
    precision: str = _parameter(
        "fp32",
        CONFIGURE,
        "of convolutions and matrix products; half for GPUs, bf16 for CPUs that compute in it too",
        choices=tuple(PRECISIONS),
    )
    compile: bool = _parameter(
        False, CONFIGURE, "backend torch compiles the network: a minute for each new frame size"
    )
    threads: int = _parameter(
        0,
        CONFIGURE,
        "CPU threads of the network in every backend; 0 leaves the default",
        minimum=0,
        maximum=256,
    )
    engine: str = _parameter(
        "", CONFIGURE, "TensorRT engine file made by difiisr build-engine; empty for none"
    )
    engine_mismatch: str = _parameter(
        "fallback",
        CONFIGURE,
        "when the engine file does not fit this machine and model: build it anew, take another "
        "backend, or fail",
        choices=ENGINE_MISMATCH,
    )
    build_only: bool = _parameter(
        False,
        CONFIGURE,
        "configure builds the engine file where it does not fit, then the node ends",
    )
    steps: int = _parameter(
        UpscalerSettings.steps, LIVE, "diffusion steps per frame", minimum=1, maximum=15
    )
    fidelity: float = _parameter(
        UpscalerSettings.fidelity,
        LIVE,
        "1 for the lowest error, 0 for the sharpest sample; bicubic has no such choice",
        minimum=0.0,
        maximum=1.0,
    )
    seed: int = _parameter(
        UpscalerSettings.seed,
        LIVE,
        "seed of the fixed noise; -1 for no noise",
        minimum=-1,
        maximum=2**31 - 1,
    )
    consistency: float = _parameter(
        UpscalerSettings.consistency,
        LIVE,
        "strength of the step that makes the output, scaled down, equal the input",
        minimum=0.0,
        maximum=1.0,
    )
    tile: int = _parameter(
        UpscalerSettings.tile,
        LIVE,
        "side of the tiles that large frames are cut into, input pixels, 16 or more; 0: the "
        "model's own, 640 (published network, torch_tensorrt: 256); an engine has its own",
        minimum=0,
        maximum=4096,
    )
    overlap: int = _parameter(
        UpscalerSettings.overlap,
        LIVE,
        "overlap of neighbouring tiles, input pixels; less than half a tile",
        minimum=0,
        maximum=2047,
    )
    tile_batch: int = _parameter(
        UpscalerSettings.tile_batch,
        LIVE,
        "tiles per network call; fewer need less memory; an engine has its own",
        minimum=1,
        maximum=1024,
    )
    max_frame_megapixels: float = _parameter(
        2.0, LIVE, "larger input frames are dropped and counted", minimum=0.001, maximum=100.0
    )
    lazy: bool = _parameter(True, LIVE, "no inference while nobody subscribes to sr/image_raw")
    input_reliability: str = _parameter(
        "best_effort", START, "QoS of image_raw and camera_info", choices=RELIABILITIES
    )
    input_depth: int = _parameter(
        1, START, "QoS history depth of image_raw and camera_info", minimum=1, maximum=100
    )
    output_reliability: str = _parameter(
        "reliable", START, "QoS of sr/image_raw and sr/camera_info", choices=RELIABILITIES
    )
    autostart: bool = _parameter(False, START, "configure and activate at start, by itself")
    diagnostics_period: float = _parameter(
        1.0, START, "seconds between two messages on /diagnostics", minimum=0.1, maximum=60.0
    )

    def __post_init__(self) -> None:
        for parameter in fields(self):
            check(parameter, getattr(self, parameter.name))
        if self.build_only and not self.engine:
            raise ParameterError("build_only needs 'engine': the file to build")
        try:
            UpscalerSettings(**self.frame_settings())
        except ValueError as error:  # values that do not go together
            raise ParameterError(str(error)) from error

    def load_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `load_upscaler`."""
        names = ("device", "backend", "precision", "compile", "engine", "engine_mismatch")
        arguments = {name: getattr(self, name) for name in names} | self.frame_settings()
        if self.build_only:
            arguments |= {"backend": "tensorrt", "engine_mismatch": "rebuild"}
        return arguments

    def frame_settings(self) -> dict[str, Any]:
        """Return the keyword arguments of `Upscaler.with_settings`."""
        settings = {field.name: getattr(self, field.name) for field in fields(UpscalerSettings)}
        return settings | {"seed": None if self.seed < 0 else self.seed}


def check(parameter: Field, value: Any) -> None:
    """Raise ParameterError, saying name, value and remedy, unless `value` is allowed."""
    rule, name, wanted = parameter.metadata["rule"], parameter.name, type(parameter.default)
    if type(value) is not wanted:
        hint = f": write {float(value)}" if wanted is float and type(value) is int else ""
        raise ParameterError(
            f"parameter '{name}' is of type {ROS_TYPES[wanted]}, "
            f"but {value!r} is {ROS_TYPES.get(type(value), type(value).__name__)}{hint}"
        )
    if rule.choices and re.sub(r":\d+$", ":N", value) not in rule.choices:
        raise ParameterError(f"parameter '{name}' is {value!r}, but must be one of {rule.allowed}")
    # Written so that NaN is refused too.
    if rule.minimum is not None and not rule.minimum <= value <= rule.maximum:
        raise ParameterError(f"parameter '{name}' is {value}, outside {rule.allowed}")


def changed(current: Parameters, configured: bool, changes: dict[str, Any]) -> Parameters:
    """Return `current` with `changes`; ParameterError if one is not allowed, or not now.

    `configured`: the node holds a model, so parameters read at configure cannot change.
    """
    for parameter in fields(current):
        name = parameter.name
        if (
            configured
            and parameter.metadata["rule"].change == CONFIGURE
            and changes.get(name, getattr(current, name)) != getattr(current, name)
        ):
            raise ParameterError(
                f"parameter '{name}' is read at configure: run the transitions deactivate and "
                "cleanup, set it, then configure and activate"
            )
    return Parameters(**(asdict(current) | changes))


def declare(node: Any) -> Parameters:
    """Declare all parameters on an rclpy node and return their values.

    Raises ParameterError for a start value that ROS or the table refuses.
    """
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
    from rclpy.exceptions import InvalidParameterValueException

    values = {}
    for parameter in fields(Parameters):
        rule = parameter.metadata["rule"]
        descriptor = ParameterDescriptor(
            description=rule.description,
            additional_constraints=rule.allowed,
            read_only=rule.change == START,
            # `check` refuses other types too, and says what to write; rclpy only gives numbers.
            dynamic_typing=True,
        )
        limits = {"from_value": rule.minimum, "to_value": rule.maximum}
        if rule.minimum is not None and isinstance(parameter.default, float):
            descriptor.floating_point_range = [FloatingPointRange(**limits)]
        elif rule.minimum is not None:
            descriptor.integer_range = [IntegerRange(**limits, step=1)]
        try:
            declared = node.declare_parameter(parameter.name, parameter.default, descriptor)
        except InvalidParameterValueException as error:
            raise ParameterError(str(error)) from error
        values[parameter.name] = declared.value
    return Parameters(**values)


def undeclared(node: Any) -> list[str]:
    """Names that the node was started with and does not have, sorted; QoS overrides come later."""
    given = getattr(node, "_parameter_overrides", {})  # rclpy has no public name for them
    return sorted(
        name
        for name in given
        if not name.startswith("qos_overrides.") and not node.has_parameter(name)
    )


def readme_table() -> str:
    """Return the parameters as the README's table."""
    lines = [
        "| Parameter | Type | Default | Allowed | Change | Meaning |",
        "|---|---|---|---|---|---|",
    ]
    for parameter in fields(Parameters):
        rule = parameter.metadata["rule"]
        lines.append(
            f"| `{parameter.name}` | {ROS_TYPES[type(parameter.default)]} "
            f"| `{_yaml(parameter.default)}` | {rule.allowed} | {rule.change} "
            f"| {rule.description} |"
        )
    return "\n".join(lines)


def config_yaml() -> str:
    """Return config/sr.yaml: every parameter at its default, with its description."""
    lines = [
        "# Written by: python -m difiisr_ros.parameters yaml > config/sr.yaml",
        "# [live] may change while running, [configure] while unconfigured, [start] only here.",
        "/**:",
        "  ros__parameters:",
    ]
    for parameter in fields(Parameters):
        rule = parameter.metadata["rule"]
        allowed = f" ({rule.allowed})" if rule.allowed else ""
        lines.append(f"    # [{rule.change}] {rule.description}{allowed}")
        lines.append(f"    {parameter.name}: {_yaml(parameter.default)}")
    return "\n".join(lines)


def _yaml(value: Any) -> str:
    if value == "":
        return '""'
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    print(config_yaml() if sys.argv[1:] == ["yaml"] else readme_table())
