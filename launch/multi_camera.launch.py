"""Start sr_node for each camera of a YAML list, or one process for all of them.

ros2 launch difiisr_ros multi_camera.launch.py cameras:=cameras.yaml

    cameras:                                   # arguments of sr.launch.py, a list entry a camera
      - {name: front_sr, image: /front/thermal/image_raw}
      - {name: rear_sr, image: /rear/thermal/image_raw, fidelity: 0.5}

One process holds a model once, and computes the frames of all cameras in turn.
"""

import json
import os
from pathlib import Path
from runpy import run_path

import yaml
from launch_ros.actions import Node

from launch import LaunchDescription

_sr = run_path(str(Path(__file__).resolve().with_name("sr.launch.py")))  # it cannot be imported
MEGABYTES_OF_A_NODE = 700  # of the default model on CPUs

ARGUMENTS = {
    "cameras": (None, "YAML file with the list"),
    "shared": (
        "auto",
        "true: one process and one model for all; false: a process a camera; auto: shared where "
        "there is a GPU, or memory for less than twice that many processes",
    ),
}


def read_cameras(path: str) -> list[dict[str, str]]:
    """Return the values of sr.launch.py's arguments for each camera; ValueError for others."""
    listed = (yaml.safe_load(Path(path).read_text()) or {}).get("cameras")
    if not listed or not all(isinstance(camera, dict) for camera in listed):
        raise ValueError(f"{path}: 'cameras:' and a list of arguments of sr.launch.py are needed")
    known, cameras = _sr["ARGUMENTS"], []
    for camera in listed:
        words = [f"{name}:={value}" for name, value in camera.items()]
        _sr["check_arguments"](["sr.launch.py", *words], known, "sr.launch.py")
        given = {
            name: str(value).lower() if isinstance(value, bool) else str(value)
            for name, value in camera.items()
        }
        cameras.append({name: default for name, (default, _) in known.items()} | given)
    for what, found in (
        ("name and namespace", [(one["namespace"], one["name"]) for one in cameras]),
        ("output", [(one["namespace"], _sr["topics"](one)["sr/image_raw"]) for one in cameras]),
    ):
        if len(set(found)) < len(found):
            raise ValueError(f"{path}: two cameras have one {what}: {found}")
    return cameras


def is_short(count: int) -> bool:
    """Whether this machine should hold the model once: a GPU, or too little memory for more."""
    gpus = Path("/proc/driver/nvidia/version"), Path("/etc/nv_tegra_release")
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e6
    return any(gpu.exists() for gpu in gpus) or available < 2 * count * MEGABYTES_OF_A_NODE


def words(value: dict[str, str]) -> list[str]:
    """Return the ROS arguments of one camera's node."""
    file, given = _sr["parameters"](value)
    return [
        *("-r", f"__node:={value['name']}", "--params-file", file),
        *(("-r", f"__ns:=/{value['namespace'].strip('/')}") if value["namespace"] else ()),
        *(w for name, one in given.items() for w in ("-p", f"{name}:={json.dumps(one)}")),
        *(w for old, new in _sr["topics"](value).items() for w in ("-r", f"{old}:={new}")),
    ]


def nodes(value: dict[str, str]) -> list:
    """Return the actions, from the values of the launch arguments."""
    cameras, shared = read_cameras(value["cameras"]), value["shared"]
    together = is_short(len(cameras)) if shared == "auto" else _sr["is_true"]("shared", shared)
    if not together:
        return [action for camera in cameras for action in _sr["actions"](camera)]
    process = Node(
        package="difiisr_ros",
        executable="sr_nodes",
        arguments=[json.dumps(words(camera)) for camera in cameras],
        additional_env=_sr["dds_profile"](),
        respawn=any(_sr["is_true"]("respawn", camera["respawn"]) for camera in cameras),
        respawn_delay=2.0,
        output="screen",
    )
    return [process, *(viewer for camera in cameras for viewer in _sr["viewers"](camera))]


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and the nodes."""
    return _sr["described"](__file__, ARGUMENTS, nodes)
