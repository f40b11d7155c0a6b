"""launch/sr.launch.py with stand-ins for `launch`, which is not installable without ROS."""

import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

LAUNCH_FILE = Path(__file__).resolve().parents[2] / "launch" / "sr.launch.py"
PROFILE_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")


class LaunchConfiguration:
    def __init__(self, name):
        self.name = name

    def perform(self, context):
        return context[self.name]


@pytest.fixture
def launch(monkeypatch):
    """Run the file with stand-ins; call the result with launch arguments for its actions."""
    modules = {
        "launch": {"LaunchDescription": lambda entities: entities},
        "launch.actions": {
            "DeclareLaunchArgument": lambda name, **fields: (name, fields),
            "OpaqueFunction": lambda function: function,
            "SetEnvironmentVariable": lambda name, value: (name, value),
        },
        "launch.substitutions": {"LaunchConfiguration": LaunchConfiguration},
        "launch_ros": {},
        "launch_ros.actions": {"LifecycleNode": lambda **fields: SimpleNamespace(**fields)},
    }
    for name, contents in modules.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    for name in PROFILE_VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def start(**arguments):
        *declared, actions = runpy.run_path(str(LAUNCH_FILE))["generate_launch_description"]()
        values = {name: fields["default_value"] for name, fields in declared}
        assert arguments.keys() <= values.keys()
        *environment, node = actions(values | arguments)
        return SimpleNamespace(declared=dict(declared), environment=dict(environment), node=node)

    return start


def test_every_argument_is_described(launch):
    declared = launch().declared
    assert {
        "model", "device", "backend", "image", "camera_info", "output", "namespace",
        "params_file", "use_sim_time", "autostart", "log_level",
    } <= declared.keys()  # fmt: skip
    for name, fields in declared.items():
        assert fields["description"], name
        assert isinstance(fields["default_value"], str), name


def test_the_stock_result_is_on_thermal_sr(launch):
    node = launch().node
    assert dict(node.remappings) == {
        "image_raw": "/thermal/image_raw",
        "camera_info": "/thermal/camera_info",
        "sr/image_raw": "/thermal/sr",
        "sr/camera_info": "/thermal/sr/camera_info",
    }
    assert (node.package, node.executable, node.name) == ("difiisr_ros", "sr_node", "sr_node")


def test_image_transport_consumers_find_the_scaled_camera_info(launch):
    remappings = dict(launch(output_image_raw="true", output="/front/sr").node.remappings)
    assert remappings["sr/image_raw"] == "/front/sr/image_raw"
    assert remappings["sr/camera_info"] == "/front/sr/camera_info"


def test_the_default_starts_active_with_the_shipped_parameters(launch):
    params_file, overrides = launch().node.parameters
    assert Path(params_file).name == "sr.yaml"
    assert Path(params_file).is_file()
    # nothing of the file is overridden unasked but what launch stands for
    assert overrides == {"autostart": True, "use_sim_time": False}


def test_arguments_win_over_the_parameter_file(launch):
    _, overrides = launch(model="bicubic", device="cpu", autostart="false").node.parameters
    assert overrides == {
        "model": "bicubic", "device": "cpu", "autostart": False, "use_sim_time": False
    }  # fmt: skip


def test_large_images_get_the_shared_memory_profile(launch):
    environment = launch().environment
    assert environment.keys() == set(PROFILE_VARIABLES)
    assert all(Path(value).is_file() for value in environment.values())


@pytest.mark.parametrize("name", PROFILE_VARIABLES)
def test_the_user_s_own_profile_stays(launch, monkeypatch, name):
    monkeypatch.setenv(name, "/etc/own.xml")
    assert launch().environment == {}


def test_the_real_launch_system_reads_the_file():
    pytest.importorskip("launch_ros", reason="launch_ros comes with a ROS distribution only")
    from launch.launch_description_sources import get_launch_description_from_python_launch_file

    description = get_launch_description_from_python_launch_file(str(LAUNCH_FILE))
    names = {argument.name for argument in description.get_launch_arguments()}
    assert {"image", "output", "model"} <= names
