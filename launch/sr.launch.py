"""Start sr_node: a thermal image topic in, the x4 result on /thermal/sr out.

ros2 launch difiisr_ros sr.launch.py image:=/camera/thermal/image_raw

Every parameter of config/sr.yaml is an argument too. That file, not the package, is read for them:
launch may run in a Python that has none of the package's libraries.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path

import yaml
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node

from launch import LaunchDescription

# This file lies in share/difiisr_ros/launch or in the checkout's launch/: config/ is beside both.
CONFIG = Path(__file__).resolve().parents[1] / "config"
# From Kilted on, and before. Kilted reads both, warns of the old one, and takes nothing twice.
PROFILE_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
BEFORE_KILTED = ("humble", "iron", "jazzy")
# Topics of the node below its result.
BELOW = ("camera_info", "temperature", "preview", "uncertainty", "stream_state")

STOCK = (CONFIG / "sr.yaml").read_text()
# name: value in config/sr.yaml, of the parameter's type
PARAMETERS = {**yaml.safe_load(STOCK)["/**"]["ros__parameters"], "use_sim_time": False}
# name: description, which is the comment above the value
DESCRIPTIONS = {name: text for text, name in re.findall(r"# (\[.*)\n +(\w+):", STOCK)}
DESCRIPTIONS["use_sim_time"] = "[start] true takes the time from /clock"

# name: (default, description); an empty default leaves the value to params_file
ARGUMENTS = {
    "image": ("thermal/image_raw", "image topic of the camera"),
    "camera_info": ("", "camera_info topic of the camera (empty: camera_info beside the image)"),
    "camera": ("", "a camera of config/cameras, or a YAML file like those; under params_file"),
    "output": (
        "",
        "topic of the result (empty: sr beside the image); its camera_info is on "
        "<output>/camera_info",
    ),
    "output_image_raw": (
        "false",
        "true publishes the result on <output>/image_raw: consumers that replace the last name of "
        "the image topic to find its camera_info (image_transport) then find the right one",
    ),
    "name": ("sr_node", "name of the node"),
    "shutter_flag": ("flag_state", "topic on which the camera's driver tells of its shutter"),
    "namespace": ("", "namespace of the node, and of topics that begin without a slash"),
    "params_file": (str(CONFIG / "sr.yaml"), "parameters of the node"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
    **{n: ("", f"{DESCRIPTIONS.get(n, 'parameter')}; over params_file") for n in PARAMETERS},
    "autostart": ("true", "configure and activate by itself; false waits for transitions"),
    "respawn": ("false", "start the node again, 2 s after it has ended"),
    "rviz": ("false", "show input, result and diagnostics in RViz"),
    "foxglove": ("", "file to write: the layout of config/foxglove.json with these topics"),
}


def dds_profile() -> dict[str, str]:
    """Return what a publisher of large images needs in its environment, {} if the user set one."""
    if any(name in os.environ for name in PROFILE_VARIABLES):
        return {}
    variable = PROFILE_VARIABLES[os.environ.get("ROS_DISTRO") in BEFORE_KILTED]
    return {variable: str(CONFIG / "fastdds.xml")}


def beside(image: str, name: str) -> str:
    """Return the topic ``name`` beside the topic of the images: /a/b/image_raw, sr -> /a/b/sr."""
    return image[: image.rfind("/") + 1] + name


def check_arguments(words: list[str], known: Iterable[str], file: str) -> None:
    """Raise ValueError for ``name:=value`` that ``file``, if it is what is launched, ignores."""
    if not any(Path(word).name == file for word in words):
        return  # it is included, and these are another file's arguments
    for name in (word.split(":=")[0] for word in words if ":=" in word):
        if name not in known:
            close = get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
            raise ValueError(f"{file} has no argument {name!r}{hint}")


def camera_file(name: str) -> dict:
    """Return what the file of a known camera, or a path, says; {} for no name."""
    if not name:
        return {}
    known = sorted(path.stem for path in (CONFIG / "cameras").glob("*.yaml"))
    path = CONFIG / "cameras" / f"{name}.yaml" if name in known else Path(name)
    if not path.is_file():
        raise ValueError(f"no camera {name!r}; known are {', '.join(known)}, or give a YAML file")
    return yaml.safe_load(path.read_text())


def is_true(name: str, value: str) -> bool:
    """Read a launch argument as ROS 2 launch files write them: true, True, 1, false, ..."""
    known = {"true": True, "1": True, "false": False, "0": False}
    if value.lower() not in known:
        raise ValueError(f"{name} must be true or false, got {value!r}")
    return known[value.lower()]


def parameter(name: str, value: str) -> object:
    """Return the argument as the node's parameter; the node itself refuses other types."""
    kind = type(PARAMETERS[name])
    if kind is bool:
        return is_true(name, value)
    return value if kind is str else yaml.safe_load(value)


def topics(value: dict[str, str]) -> dict[str, str]:
    """Return the node's names of its topics, and theirs, from the values of the arguments."""
    image, info = value["image"], value["camera_info"]
    if image == ARGUMENTS["image"][0]:
        driver = camera_file(value["camera"]).get("driver") or {}
        image, info = driver.get("image") or image, info or driver.get("camera_info")
    output = value["output"].rstrip("/") or beside(image, "sr")
    below = is_true("output_image_raw", value["output_image_raw"])
    return {
        "image_raw": image,
        "camera_info": info or beside(image, "camera_info"),
        "sr/image_raw": f"{output}/image_raw" if below else output,
        **{f"sr/{name}": f"{output}/{name}" for name in BELOW},
        "shutter_flag": value["shutter_flag"],
    }


def parameters(value: dict[str, str]) -> tuple[str, dict]:
    """Return the file of parameters, and what goes over it."""
    if not Path(value["params_file"]).is_file():
        raise FileNotFoundError(f"params_file: no file {value['params_file']}")
    given = {name: parameter(name, value[name]) for name in PARAMETERS if value[name]}
    of_camera = camera_file(value["camera"]).get("parameters") or {}
    if value["params_file"] != ARGUMENTS["params_file"][0]:  # what the user has written comes first
        sections = (yaml.safe_load(Path(value["params_file"]).read_text()) or {}).values()
        written = {name for section in sections for name in section.get("ros__parameters", {})}
        of_camera = {name: one for name, one in of_camera.items() if name not in written}
    given = {**of_camera, **given}
    if is_true("respawn", value["respawn"]):
        given.setdefault("on_failure", "exit")  # else there would be nothing to start again
    return value["params_file"], given


def shown(value: dict[str, str]) -> dict[str, str]:
    """Return the topics that the layouts of RViz and Foxglove show, and what they are here."""
    names = topics(value)
    stock = ("image_raw", "camera_info", "sr", "sr/camera_info", "sr/preview")
    return {f"/thermal/{name}": names["sr/image_raw" if name == "sr" else name] for name in stock}


def layout(value: dict[str, str]) -> str:
    """Return config/foxglove.json with the topics and the node of these arguments."""
    place = f"/{value['namespace'].strip('/')}/".replace("//", "/")
    text = (CONFIG / "foxglove.json").read_text()
    for topic, name in shown(value).items():
        full = name if name.startswith("/") else place + name
        text = text.replace(f'"{topic}"', f'"{full}"')
    return text.replace('"sr_node:', f'"{(place + value["name"]).lstrip("/")}:')


def viewers(value: dict[str, str]) -> list:
    """Write the Foxglove layout and return RViz, where these are asked for."""
    if value["foxglove"]:
        Path(value["foxglove"]).write_text(layout(value))
    if not is_true("rviz", value["rviz"]):
        return []
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        namespace=value["namespace"],
        arguments=["-d", str(CONFIG / "sr.rviz")],
        remappings=list(shown(value).items()),
    )
    return [rviz]


def actions(value: dict[str, str]) -> list:
    """Return the node, and its viewers, from the values of the launch arguments."""
    node = LifecycleNode(
        package="difiisr_ros",
        executable="sr_node",
        name=value["name"],
        namespace=value["namespace"],
        parameters=list(parameters(value)),
        remappings=list(topics(value).items()),
        arguments=["--ros-args", "--log-level", value["log_level"]],
        additional_env=dds_profile(),
        respawn=is_true("respawn", value["respawn"]),
        respawn_delay=2.0,
        output="screen",
    )
    return [node, *viewers(value)]


def described(file: str, arguments: dict, make: Callable) -> LaunchDescription:
    """Return the description of ``file``: its arguments, and the actions of their values."""

    def make_of_words(context) -> list:  # noqa: ANN001
        check_arguments(sys.argv, arguments, Path(file).name)
        return make({name: LaunchConfiguration(name).perform(context) for name in arguments})

    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in arguments.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=make_of_words)])


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and the node."""
    return described(__file__, ARGUMENTS, actions)
