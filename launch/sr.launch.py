"""Start sr_node: a thermal image topic in, the x4 result on /thermal/sr out.

ros2 launch difiisr_ros sr.launch.py image:=/camera/thermal/image_raw

Every parameter of config/sr.yaml is an argument too. That file, not the package, is read for them:
launch may run in a Python that has none of the package's libraries.
"""

import os
import re
from pathlib import Path

import yaml
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode

from launch import LaunchDescription

# This file lies in share/difiisr_ros/launch or in the checkout's launch/: config/ is beside both.
CONFIG = Path(__file__).resolve().parents[1] / "config"
# From Kilted on, and before. Kilted reads both, warns of the old one, and takes nothing twice.
PROFILE_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
BEFORE_KILTED = ("humble", "iron", "jazzy")

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
    "output": ("thermal/sr", "topic of the result; its camera_info is on <output>/camera_info"),
    "output_image_raw": (
        "false",
        "true publishes the result on <output>/image_raw: consumers that replace the last name of "
        "the image topic to find its camera_info (image_transport) then find the right one",
    ),
    "namespace": ("", "namespace of the node, and of topics that begin without a slash"),
    "params_file": (str(CONFIG / "sr.yaml"), "parameters of the node"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
    **{n: ("", f"{DESCRIPTIONS.get(n, 'parameter')}; over params_file") for n in PARAMETERS},
    "autostart": ("true", "configure and activate by itself; false waits for transitions"),
}


def dds_profile() -> dict[str, str]:
    """Return what a publisher of large images needs in its environment, {} if the user set one."""
    if any(name in os.environ for name in PROFILE_VARIABLES):
        return {}
    variable = PROFILE_VARIABLES[os.environ.get("ROS_DISTRO") in BEFORE_KILTED]
    return {variable: str(CONFIG / "fastdds.xml")}


def info_topic(image: str, given: str) -> str:
    """Return the camera_info topic: ``given``, or camera_info beside the topic of the images."""
    return given or f"{image[: image.rfind('/') + 1]}camera_info"


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


def sr_node(context) -> list:  # noqa: ANN001
    """Return the actions, from the values of the launch arguments."""
    value = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    output = value["output"].rstrip("/")
    camera = camera_file(value["camera"])
    image, info = value["image"], value["camera_info"]
    if camera and image == ARGUMENTS["image"][0]:
        image = camera.get("driver", {}).get("image") or image
        info = info or camera.get("driver", {}).get("camera_info", "")
    files = [value["params_file"], camera.get("parameters", {})]
    if value["params_file"] != ARGUMENTS["params_file"][0]:
        files.reverse()  # what the user has written comes last
    below = is_true("output_image_raw", value["output_image_raw"])
    node = LifecycleNode(
        package="difiisr_ros",
        executable="sr_node",
        name="sr_node",
        namespace=value["namespace"],
        parameters=[
            *filter(None, files),
            {name: parameter(name, value[name]) for name in PARAMETERS if value[name]},
        ],
        remappings=[
            ("image_raw", image),
            ("camera_info", info_topic(image, info)),
            ("sr/image_raw", f"{output}/image_raw" if below else output),
            ("sr/camera_info", f"{output}/camera_info"),
            ("sr/temperature", f"{output}/temperature"),
            ("sr/preview", f"{output}/preview"),
        ],
        arguments=["--ros-args", "--log-level", value["log_level"]],
        additional_env=dds_profile(),
        output="screen",
    )
    return [node]


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and the node."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=sr_node)])
