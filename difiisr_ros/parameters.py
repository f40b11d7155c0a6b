"""The node's parameters: the settings of ``difiisr_models`` and the node's own beside them.

Descriptors, config/sr.yaml, the arguments of the launch file and the README's table follow from the
dataclasses. ``python -m difiisr_ros.parameters`` prints that table, ``... yaml`` prints
config/sr.yaml.
"""

from __future__ import annotations

import re
import sys
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal

import docstring_parser
from annotated_types import Ge, Le

from difiisr_models.settings import Camera, FrameSettings, Palette, Runtime, allowed, limits, types

Reliability = Literal["best_effort", "reliable"]
Transport = Literal["raw", "compressed", "compressedDepth"]
Preview = Literal["none", Palette]


@dataclass(frozen=True)
class Parameters(Camera, FrameSettings, Runtime):
    """All parameters of sr_node; those that are not inherited are its own.

    Attributes:
        model: model name, or path to a weights file or folder; bicubic works
        build_only: configure builds the engine file where it does not fit, then the node ends
        max_frame_megapixels: larger input frames are dropped and counted
        lazy: no inference while nobody subscribes to a topic of results
        max_rate: results per second at most, over which frames are left out; 0 for all
        transport: compressed reads <image_raw>/compressed, which is PNG or JPEG
        temperature_unit: of sr/temperature, which there is where unit is kelvin or celsius
        uncertainty: standard deviation of the error of each pixel on sr/uncertainty
        preview: picture for eyes on sr/preview: mono8 in grey, rgb8 in inferno
        input_reliability: QoS of image_raw and camera_info
        input_depth: QoS history depth of image_raw and camera_info
        output_reliability: QoS of sr/image_raw and sr/camera_info
        min_rate: fewer images a second are warned of, Hz; 0 for never
        autostart: configure and activate at start, by itself
        on_failure: where configuring at start fails: wait for a transition, exit with code 1, or
            retry every 5 seconds
        diagnostics_period: seconds between two messages on /diagnostics

    Raises:
        ValueError: a value of another type, out of its range, or that does not go with another.
    """

    model: str = "difiisr-rt-x4"
    build_only: bool = False
    max_frame_megapixels: Annotated[float, Ge(0.001), Le(100.0)] = 2.0
    lazy: bool = True
    max_rate: Annotated[float, Ge(0.0), Le(1000.0)] = 0.0
    transport: Transport = "raw"
    temperature_unit: Literal["kelvin", "celsius"] = "celsius"
    uncertainty: bool = False
    preview: Preview = "none"
    input_reliability: Reliability = "best_effort"
    input_depth: Annotated[int, Ge(1), Le(100)] = 1
    output_reliability: Reliability = "reliable"
    min_rate: Annotated[float, Ge(0.0), Le(1000.0)] = 1.0
    autostart: bool = False
    on_failure: Literal["wait", "exit", "retry"] = "wait"
    diagnostics_period: Annotated[float, Ge(0.1), Le(60.0)] = 1.0

    def __post_init__(self) -> None:
        Camera.__post_init__(self)
        FrameSettings.__post_init__(self)
        Runtime.__post_init__(self)
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ValueError(f"device must be one of auto, cpu, cuda, cuda:N, got {self.device!r}")
        if self.build_only and not self.engine:
            raise ValueError("build_only needs 'engine': the file to build")

    def load_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of ``load_upscaler``."""
        building = {"backend": "tensorrt", "engine_mismatch": "rebuild"} if self.build_only else {}
        return {name: getattr(self, name) for name in UPSCALER} | building

    def live_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of ``Upscaler.change``."""
        return {name: getattr(self, name) for name in UPSCALER & LIVE}


UPSCALER = {field.name for kind in (Runtime, FrameSettings) for field in fields(kind)}
# When a value may change: "live" at any time, from the next frame on; "configure" while the node
# is unconfigured; the rest "start", in the parameters the process is started with (ROS: read-only).
LIVE = {field.name for kind in (FrameSettings, Camera) for field in fields(kind)}
LIVE |= {"tile", "overlap", "tile_batch", "max_frame_megapixels", "lazy", "min_rate", "max_rate"}
LIVE = LIVE - {"calibration", "unit"} | {"temperature_unit"}
CONFIGURE = UPSCALER - LIVE | {"model", "build_only", "calibration"}
CONFIGURE |= {"transport", "unit", "uncertainty", "preview"}

DEFAULTS = Parameters()
NAMES = ("model", *(name for name in asdict(DEFAULTS) if name != "model"))
MEANINGS = {
    described.arg_name: " ".join((described.description or "").split())
    for kind in (Runtime, FrameSettings, Camera, Parameters)
    for described in docstring_parser.parse(kind.__doc__ or "").params
}
ROS_TYPES = {str: "string", float: "double", int: "integer", bool: "bool"}


def ros_type(name: str) -> str:
    """The type of a parameter in words: ``"double"``, ``"double or string"``."""
    return " or ".join(ROS_TYPES[kind] for kind in types(Parameters, name))


def change_of(name: str) -> str:
    """When the parameter may change: ``"live"``, ``"configure"`` or ``"start"``."""
    return "live" if name in LIVE else "configure" if name in CONFIGURE else "start"


def changed(current: Parameters, configured: bool, changes: dict[str, Any]) -> Parameters:
    """Return ``current`` with ``changes``, given as ROS gives them: a double is never an integer.

    Args:
        current: the values so far.
        configured: the node holds a model, so parameters read at configure cannot change.
        changes: parameter name to new value.

    Raises:
        ValueError: one is not allowed, or not now; the text says name, value and remedy.
    """
    for name, value in changes.items():
        before = getattr(current, name)
        wanted, given = types(Parameters, name), type(value)
        if given not in wanted:
            hint = f": write {float(value)}" if float in wanted and given is int else ""
            raise ValueError(
                f"parameter '{name}' is of type {ros_type(name)}, "
                f"but {value!r} is {ROS_TYPES.get(given, given.__name__)}{hint}"
            )
        if configured and name in CONFIGURE and value != before:
            raise ValueError(
                f"parameter '{name}' is read at configure: run the transitions deactivate and "
                "cleanup, set it, then configure and activate"
            )
    return replace(current, **changes)


def declare(node: Any) -> Parameters:
    """Declare all parameters on an rclpy node and return their values.

    Raises:
        ValueError: ROS or :class:`Parameters` refuses a start value.
    """
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
    from rclpy.exceptions import InvalidParameterValueException

    values = {}
    for name in NAMES:
        default = getattr(DEFAULTS, name)
        descriptor = ParameterDescriptor(
            description=MEANINGS[name],
            additional_constraints=allowed(Parameters, name),
            read_only=change_of(name) == "start",
            # `changed` refuses other types too, and says what to write; rclpy only gives numbers.
            dynamic_typing=True,
        )
        if (ends := limits(Parameters, name)) and not isinstance(default, str):
            least, greatest = map(type(default), ends)
            if isinstance(default, float):
                found = FloatingPointRange(from_value=least, to_value=greatest)
                descriptor.floating_point_range = [found]
            else:
                found = IntegerRange(from_value=least, to_value=greatest, step=1)
                descriptor.integer_range = [found]
        try:
            values[name] = node.declare_parameter(name, default, descriptor).value
        except InvalidParameterValueException as error:
            raise ValueError(str(error)) from error
    return changed(DEFAULTS, False, values)


def undeclared(node: Any) -> list[str]:
    """Names that the node was started with and does not have, sorted; QoS overrides come later."""
    given = getattr(node, "_parameter_overrides", {})  # rclpy has no public name for them
    return sorted(n for n in given if not (n.startswith("qos_overrides.") or node.has_parameter(n)))


def readme_table() -> str:
    """Return the parameters as the README's table."""
    lines = [
        "| Parameter | Type | Default | Allowed | Change | Meaning |",
        "|---|---|---|---|---|---|",
    ]
    for name in NAMES:
        default = getattr(DEFAULTS, name)
        lines.append(
            f"| `{name}` | {ros_type(name)} | `{_yaml(default)}` "
            f"| {allowed(Parameters, name)} | {change_of(name)} | {MEANINGS[name]} |"
        )
    return "\n".join(lines)


def config_yaml() -> str:
    """Return config/sr.yaml: every parameter at its default, with its description."""
    lines = [
        "# Written by: python -m difiisr_ros.parameters yaml > config/sr.yaml",
        "# [live] may change while running, [configure] while unconfigured, [start] only here.",
        "# The launch file takes its arguments from here: their names, types and descriptions.",
        "/**:",
        "  ros__parameters:",
    ]
    for name in NAMES:
        words = allowed(Parameters, name)
        lines.append(f"    # [{change_of(name)}] {MEANINGS[name]}{f' ({words})' if words else ''}")
        lines.append(f"    {name}: {_yaml(getattr(DEFAULTS, name))}")
    return "\n".join(lines)


def _yaml(value: Any) -> str:
    if value == "":
        return '""'
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    print(config_yaml() if sys.argv[1:] == ["yaml"] else readme_table())
