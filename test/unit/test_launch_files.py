"""The launch files, run against stand-ins for the launch packages, which pip does not have."""

import importlib.util
import sys
import types
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
STAND_INS = {
    "launch": ["LaunchDescription"],
    "launch.actions": [
        "DeclareLaunchArgument",
        "ExecuteProcess",
        "IncludeLaunchDescription",
        "OpaqueFunction",
        "RegisterEventHandler",
        "SetEnvironmentVariable",
        "Shutdown",
        "TimerAction",
    ],
    "launch.event_handlers": ["OnProcessExit"],
    "launch.launch_description_sources": ["PythonLaunchDescriptionSource"],
    "launch.substitutions": ["LaunchConfiguration"],
    "launch_ros": [],
    "launch_ros.actions": ["LifecycleNode"],
}
DDS_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")


class Recorded:
    """Remembers what it was made with."""

    def __init__(self, *positional, **named):
        self.positional, self.named = positional, named

    def perform(self, values):  # of a LaunchConfiguration
        return values[self.positional[0]]


@pytest.fixture
def load(monkeypatch):
    """Imports a launch file with the stand-ins in place."""
    for module, names in STAND_INS.items():
        stand_in = types.ModuleType(module)
        for name in names:
            setattr(stand_in, name, type(name, (Recorded,), {}))
        monkeypatch.setitem(sys.modules, module, stand_in)
    for name in DDS_VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def import_file(name):
        spec = importlib.util.spec_from_file_location(name.replace(".", "_"), LAUNCH / name)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return import_file


def of_kind(entities, kind):
    return [entity for entity in entities if type(entity).__name__ == kind]


def described(module):
    (entities,) = module.generate_launch_description().positional
    return entities


def defaults(entities):
    declared = of_kind(entities, "DeclareLaunchArgument")
    return {entity.positional[0]: entity.named["default_value"] for entity in declared}


def node_actions(load, **arguments):
    entities = described(load("sr.launch.py"))
    (opaque,) = of_kind(entities, "OpaqueFunction")
    return opaque.named["function"]({**defaults(entities), **arguments})


def started_node(load, **arguments):
    (node,) = of_kind(node_actions(load, **arguments), "LifecycleNode")
    return node.named


@pytest.mark.parametrize("name", ["sr.launch.py", "replay.launch.py"])
def test_every_argument_is_documented(load, name):
    declared = of_kind(described(load(name)), "DeclareLaunchArgument")
    assert declared
    for entity in declared:
        assert len(entity.named["description"]) > 5


def test_stock_result_is_on_thermal_sr(load):
    node = started_node(load)
    assert (node["package"], node["executable"]) == ("difiisr_ros", "sr_node")
    assert dict(node["remappings"]) == {
        "image_raw": "/thermal/image_raw",
        "camera_info": "/thermal/camera_info",
        "sr/image_raw": "/thermal/sr",
        "sr/camera_info": "/thermal/sr/camera_info",
    }


def test_result_can_be_where_image_transport_looks_for_its_info(load):
    remaps = dict(started_node(load, output_image_raw="true")["remappings"])
    assert remaps["sr/image_raw"] == "/thermal/sr/image_raw"
    assert remaps["sr/camera_info"] == "/thermal/sr/camera_info"


def test_node_parameters_come_from_file_then_arguments(load):
    file, overrides = started_node(load)["parameters"]
    assert Path(file).is_file()
    assert overrides == {"autostart": True, "use_sim_time": False}
    _, overrides = started_node(load, model="bicubic", device="cpu", autostart="false")[
        "parameters"
    ]
    assert overrides["model"] == "bicubic"
    assert overrides["device"] == "cpu"
    assert overrides["autostart"] is False


def test_node_log_level_and_namespace(load):
    node = started_node(load, log_level="debug", namespace="front")
    assert node["namespace"] == "front"
    assert node["arguments"][-2:] == ["--log-level", "debug"]


def test_dds_profile_is_set_unless_the_user_has_one(load, monkeypatch):
    actions = node_actions(load)
    variables = dict(entity.positional for entity in of_kind(actions, "SetEnvironmentVariable"))
    assert set(variables) == set(DDS_VARIABLES)
    assert all(Path(profile).is_file() for profile in variables.values())
    # The variables must be set before the node starts.
    assert type(actions[-1]).__name__ == "LifecycleNode"
    monkeypatch.setenv(DDS_VARIABLES[0], "/my/profile.xml")
    assert not of_kind(node_actions(load), "SetEnvironmentVariable")


def texts(command):
    """Command line with launch configurations shown as <name>."""
    parts = [part if isinstance(part, list) else [part] for part in command]
    return [
        "".join(p if isinstance(p, str) else f"<{p.positional[0]}>" for p in part) for part in parts
    ]


@pytest.fixture
def replay(load):
    return described(load("replay.launch.py"))


def test_replay_needs_bag_and_output_only(replay):
    needed = {name for name, default in defaults(replay).items() if default is None}
    assert needed == {"bag", "output"}


def test_replay_hands_over_only_arguments_that_the_node_knows(load, replay):
    (include,) = of_kind(replay, "IncludeLaunchDescription")
    (source,) = include.positional
    assert Path(source.positional[0]) == LAUNCH / "sr.launch.py"
    handed = dict(include.named["launch_arguments"])
    assert set(handed) <= set(defaults(described(load("sr.launch.py"))))
    assert handed["use_sim_time"] == "true"


def test_replay_records_the_result_with_its_info(replay):
    (record,) = of_kind(replay, "ExecuteProcess")
    command = texts(record.named["cmd"])
    assert command[:3] == ["ros2", "bag", "record"]
    assert command[command.index("--output") + 1] == "<output>"
    assert command[-1] == "^<result>(/camera_info)?$"


def test_replay_plays_after_a_delay_and_then_ends(replay):
    (timer,) = of_kind(replay, "TimerAction")
    (play,) = timer.named["actions"]
    command = texts(play.named["cmd"])
    assert command[:4] == ["ros2", "bag", "play", "<bag>"]
    assert "--clock" in command
    assert command[-2:] == ["<image>", "<camera_info>"]
    (handler,) = of_kind(replay, "RegisterEventHandler")
    (on_exit,) = handler.positional
    assert on_exit.named["target_action"] is play
    (finish,) = on_exit.named["on_exit"]
    assert [type(action).__name__ for action in finish.named["actions"]] == ["Shutdown"]


@pytest.mark.parametrize("name", ["sr.launch.py", "replay.launch.py"])
def test_real_launch_accepts_the_file(name):
    pytest.importorskip("launch_ros", reason="launch_ros comes with a ROS distribution only")
    from launch.launch_description_sources import get_launch_description_from_python_launch_file

    description = get_launch_description_from_python_launch_file(str(LAUNCH / name))
    assert description.get_launch_arguments()
