"""The launch files, run against stand-ins for the launch packages, which pip does not have."""

import importlib.util
import re
import sys
import types
from pathlib import Path
from types import SimpleNamespace

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
    assert (node["package"], node["executable"], node["name"]) == (
        "difiisr_ros", "sr_node", "sr_node"
    )  # fmt: skip
    assert dict(node["remappings"]) == {
        "image_raw": "/thermal/image_raw",
        "camera_info": "/thermal/camera_info",
        "sr/image_raw": "/thermal/sr",
        "sr/camera_info": "/thermal/sr/camera_info",
    }


def test_result_can_be_where_image_transport_looks_for_its_info(load):
    node = started_node(load, output_image_raw="true", output="/front/sr/")
    remaps = dict(node["remappings"])
    assert remaps["sr/image_raw"] == "/front/sr/image_raw"
    assert remaps["sr/camera_info"] == "/front/sr/camera_info"


def test_node_parameters_come_from_file_then_arguments(load):
    file, overrides = started_node(load)["parameters"]
    assert (Path(file).name, Path(file).is_file()) == ("sr.yaml", True)
    # Nothing of the file is overridden unasked but what launch stands for.
    assert overrides == {"autostart": True, "use_sim_time": False}
    chosen = {"model": "bicubic", "device": "cpu", "backend": "torch"}
    _, overrides = started_node(load, **chosen, autostart="false")["parameters"]
    assert overrides == {**chosen, "autostart": False, "use_sim_time": False}


def test_node_log_level_and_namespace(load):
    node = started_node(load, log_level="debug", namespace="front")
    assert node["namespace"] == "front"
    assert node["arguments"][-2:] == ["--log-level", "debug"]


def test_dds_profile_is_set(load):
    actions = node_actions(load)
    variables = dict(entity.positional for entity in of_kind(actions, "SetEnvironmentVariable"))
    assert set(variables) == set(DDS_VARIABLES)
    assert all(Path(profile).is_file() for profile in variables.values())
    # The variables must be set before the node starts.
    assert type(actions[-1]).__name__ == "LifecycleNode"


@pytest.mark.parametrize("variable", DDS_VARIABLES)
def test_the_users_own_dds_profile_stays(load, monkeypatch, variable):
    monkeypatch.setenv(variable, "/my/profile.xml")
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


def test_replay_needs_the_bag_only_and_records_beside_it(replay):
    given = defaults(replay)
    assert {name for name, default in given.items() if default is None} == {"bag"}
    assert texts([given["output"]]) == ["<bag>_sr"]


def test_replay_hands_over_only_arguments_that_the_node_knows(load, replay):
    (include,) = of_kind(replay, "IncludeLaunchDescription")
    (source,) = include.positional
    assert Path(source.positional[0]) == LAUNCH / "sr.launch.py"
    handed = dict(include.named["launch_arguments"])
    assert set(handed) <= set(defaults(described(load("sr.launch.py"))))
    assert handed["use_sim_time"] == "true"


def process(replay, *verbs):
    """The command of the process that begins so, wherever it is started."""
    handlers = [e.positional[0].named["on_exit"] for e in of_kind(replay, "RegisterEventHandler")]
    found = of_kind([*replay, *(action for actions in handlers for action in actions)],
                    "ExecuteProcess")  # fmt: skip
    (chosen,) = (e for e in found if texts(e.named["cmd"])[: len(verbs)] == list(verbs))
    return chosen, texts(chosen.named["cmd"])


def following(replay, action):
    """What is started when the process has ended."""
    handlers = [entity.positional[0].named for entity in of_kind(replay, "RegisterEventHandler")]
    (actions,) = (named["on_exit"] for named in handlers if named["target_action"] is action)
    return actions


def test_replay_records_camera_and_result(replay):
    record, command = process(replay, "ros2", "bag", "record")
    assert record in replay  # from the beginning
    assert command[command.index("--output") + 1] == "<output>"
    pattern = command[command.index("--regex") + 1]
    names = {"image": "/t/image_raw", "camera_info": "/t/camera_info", "result": "/t/sr"}
    for name, topic in names.items():
        pattern = pattern.replace(f"<{name}>", topic)
    for topic in (*names.values(), "/t/sr/camera_info", "/diagnostics"):
        assert re.fullmatch(pattern, topic), topic
    for topic in ("/t/sr/other", "/x/t/sr", "/clock", "/t/image_raw/camera_info"):
        assert not re.fullmatch(pattern, topic), topic
    # Log times of the machine's clock: the bag's clock moves in steps.
    assert "--use-sim-time" not in command


def test_replay_plays_when_the_node_has_started(replay):
    wait, command = process(replay, "ros2", "topic", "echo")
    assert wait in replay
    assert command[-2:] == ["/diagnostics", "diagnostic_msgs/msg/DiagnosticArray"]
    (play,) = following(replay, wait)
    assert texts(play.named["cmd"])[:4] == ["ros2", "bag", "play", "<bag>"]


@pytest.mark.parametrize(
    ("name", "message", "started"),
    [
        ("sr_node: super-resolution", "unconfigured", False),
        ("sr_node: super-resolution", "inactive", False),
        ("sr_node: super-resolution", "waiting for a subscriber of the result", True),
        ("sr_node: super-resolution", "on_configure failed: no model 'x'", True),
        ("motor driver", "9.0 Hz", False),
    ],
)
def test_replay_knows_a_started_node_by_its_diagnostics(load, name, message, started):
    expression = load("replay.launch.py").NODE_HAS_STARTED
    status = SimpleNamespace(name=name, message=message)
    # As `ros2 topic echo --filter` evaluates it.
    evaluated = (lambda m: eval(expression))(SimpleNamespace(status=[status]))
    assert evaluated is started


def test_replay_gives_the_bags_clock_and_time_for_discovery(replay):
    _, command = process(replay, "ros2", "bag", "play")
    assert "--clock" in command
    assert command[command.index("--rate") + 1] == "<rate>"
    assert command[command.index("--delay") + 1] == "<delay>"
    assert command[-3:] == ["--topics", "<image>", "<camera_info>"]


def test_replay_ends_when_the_bag_ends(replay):
    play, _ = process(replay, "ros2", "bag", "play")
    (finish,) = following(replay, play)
    assert finish.named["period"].positional == ("linger",)
    assert [type(action).__name__ for action in finish.named["actions"]] == ["Shutdown"]


@pytest.mark.parametrize("name", ["sr.launch.py", "replay.launch.py"])
def test_real_launch_accepts_the_file(name):
    pytest.importorskip("launch_ros", reason="launch_ros comes with a ROS distribution only")
    from launch.launch_description_sources import get_launch_description_from_python_launch_file

    description = get_launch_description_from_python_launch_file(str(LAUNCH / name))
    assert description.get_launch_arguments()
