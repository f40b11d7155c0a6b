"""The launch files, run against stand-ins for the launch packages, which pip does not have.

test/ros/test_real_launch.py runs them for real where it can.
"""

import importlib.util
import json
import re
import sys
import types
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
STAND_INS = (
    *("launch", "launch.actions", "launch.substitutions"),
    *("launch_ros", "launch_ros.actions"),
)
DDS_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")


class Recorded:
    """Remembers what it was made with."""

    def __init__(self, *positional, **named):
        self.positional, self.named = positional, named

    def perform(self, values):  # of a LaunchConfiguration
        return values[self.positional[0]]


class StandIn(types.ModuleType):
    """A module in which every name is such a class."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, type(name, (Recorded,), {}))
        return getattr(self, name)


@pytest.fixture
def load(monkeypatch):
    """Imports a launch file with the stand-ins in place."""
    for module in STAND_INS:
        monkeypatch.setitem(sys.modules, module, StandIn(module))
    for name in (*DDS_VARIABLES, "ROS_DISTRO"):
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


def made(load, name, /, **arguments):
    """The actions that the file makes of these arguments."""
    entities = described(load(name))
    (opaque,) = of_kind(entities, "OpaqueFunction")
    return opaque.named["function"]({**defaults(entities), **arguments})


def started_node(load, /, **arguments):
    (node,) = of_kind(made(load, "sr.launch.py", **arguments), "LifecycleNode")
    return node.named


@pytest.mark.parametrize(
    ("chosen", "camera", "output", "image"),
    [
        # Without a namespace /thermal/sr; with one everything moves there.
        ({}, ("thermal/image_raw", "thermal/camera_info"), "thermal/sr", ""),
        ({"image": "/a/b/i"}, ("/a/b/i", "/a/b/camera_info"), "/a/b/sr", ""),
        ({"image": "image_raw"}, ("image_raw", "camera_info"), "sr", ""),
        ({"image": "/image_raw"}, ("/image_raw", "/camera_info"), "/sr", ""),
        ({"camera_info": "/b"}, ("thermal/image_raw", "/b"), "thermal/sr", ""),
        ({"output": "/c/sr/"}, ("thermal/image_raw", "thermal/camera_info"), "/c/sr", ""),
        # Where image_transport looks for the camera_info of that image.
        ({"image": "a", "output_image_raw": "True"}, ("a", "camera_info"), "sr", "/image_raw"),
    ],
)
def test_topics_are_beside_the_image_unless_they_are_given(load, chosen, camera, output, image):
    node = started_node(load, **chosen)
    assert [node[key] for key in ("package", "executable", "name")] == [
        "difiisr_ros", "sr_node", "sr_node"
    ]  # fmt: skip
    below = ("camera_info", "temperature", "preview", "uncertainty", "stream_state")
    assert dict(node["remappings"]) == {
        **dict(zip(("image_raw", "camera_info"), camera, strict=True)),
        **{"sr/image_raw": output + image, "shutter_flag": "flag_state"},
        **{f"sr/{name}": f"{output}/{name}" for name in below},
    }


def test_node_parameters_come_from_file_then_arguments(load):
    file, overrides = started_node(load)["parameters"]
    assert (Path(file).name, Path(file).is_file()) == ("sr.yaml", True)
    # Nothing of the file is overridden unasked but what launch stands for.
    assert overrides == {"autostart": True}
    chosen = {"model": "bicubic", "device": "cpu", "backend": "torch"}
    numbers = {"steps": 3, "fidelity": 0.5}
    words = {name: str(value) for name, value in numbers.items()}
    for true, false in (("true", "false"), ("True", "False"), ("1", "0")):
        node = started_node(load, **chosen, **words, autostart=false, use_sim_time=true)
        switches = {"autostart": False, "use_sim_time": True}
        assert node["parameters"][1] == {**chosen, **numbers, **switches}


def test_a_camera_s_file_gives_parameters_and_topics_under_the_user_s_own(load, tmp_path):
    node = started_node(load, camera="optris", scale="0.2")
    assert node["parameters"][1].items() >= {"unit": "celsius", "scale": 0.2}.items()
    assert dict(node["remappings"])["image_raw"] == "thermal_image"
    own = tmp_path / "own.yaml"
    own.write_text("/**:\n  ros__parameters:\n    offset: 5.0\n")
    node = started_node(load, camera="optris", params_file=str(own), image="/a/image")
    assert node["parameters"][0] == str(own)
    assert node["parameters"][1].items() >= {"unit": "celsius", "scale": 0.1}.items()
    assert "offset" not in node["parameters"][1]
    assert dict(node["remappings"])["image_raw"] == "/a/image"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"autostart": "yes"}, "autostart must be true or false, got 'yes'"),
        ({"output_image_raw": "yes"}, "output_image_raw must be true or false, got 'yes'"),
        ({"params_file": "/no/such.yaml"}, "params_file: no file /no/such.yaml"),
        ({"camera": "bozon"}, "no camera 'bozon'; known are boson, "),
    ],
)
def test_what_cannot_be_launched_is_refused(load, given, reason):
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(reason)):
        started_node(load, **given)


@pytest.mark.parametrize(
    ("launched", "words", "reason"),
    [
        ("sr.launch.py", ["imgae:=/a"], "no argument 'imgae'; did you mean image?"),
        ("sr.launch.py", ["xyz:=/a"], "no argument 'xyz'; there are image"),
        ("sr.launch.py", ["image:=/a", "name:=x"], ""),
        ("bringup.launch.py", ["robot:=r2"], ""),
    ],
)
def test_unknown_arguments_are_refused_but_not_those_of_a_file_around(
    load, monkeypatch, launched, words, reason
):
    monkeypatch.setattr(sys, "argv", ["ros2", "launch", "difiisr_ros", launched, *words])
    if not reason:
        assert started_node(load)["name"] == "sr_node"
        return
    with pytest.raises(ValueError, match=re.escape(reason)):
        started_node(load)


def test_name_namespace_log_level_and_respawn(load):
    node = started_node(load, name="front_sr", namespace="front", log_level="debug", respawn="true")
    assert (node["name"], node["namespace"], node["respawn"]) == ("front_sr", "front", True)
    assert node["arguments"][-2:] == ["--log-level", "debug"]
    assert node["parameters"][1]["on_failure"] == "exit"  # a node that waits is never started again
    retrying = started_node(load, respawn="true", on_failure="retry")["parameters"][1]
    assert retrying["on_failure"] == "retry"
    assert started_node(load)["respawn"] is False


def test_rviz_and_foxglove_show_the_topics_that_are_launched(load, tmp_path):
    file = tmp_path / "layout.json"
    chosen = {"image": "cam/image_raw", "namespace": "front", "name": "sr1"}
    (rviz,) = of_kind(made(load, "sr.launch.py", rviz="true", foxglove=str(file), **chosen), "Node")
    assert rviz.named["namespace"] == "front"
    config = yaml.safe_load(Path(rviz.named["arguments"][1]).read_text())
    displays = config["Visualization Manager"]["Displays"]
    stock = [display["Topic"]["Value"] for display in displays if "Topic" in display]
    shown = [dict(rviz.named["remappings"]).get(topic, topic) for topic in stock]
    assert shown == ["cam/image_raw", "cam/sr", "cam/sr/preview"]
    layout = json.loads(file.read_text())["configById"]
    assert layout["Image!result"]["imageMode"] == {
        "imageTopic": "/front/cam/sr", "calibrationTopic": "/front/cam/sr/camera_info"
    }  # fmt: skip
    assert layout["Image!input"]["imageMode"]["imageTopic"] == "/front/cam/image_raw"
    assert layout["DiagnosticStatusPanel!node"]["selectedName"] == "front/sr1: super-resolution"


def test_the_layouts_are_what_their_programs_read():
    """RViz's own list of classes, and LayoutData of Lichtblick, Foxglove's open fork."""
    config = LAUNCH.parent / "config"
    rviz = yaml.safe_load((config / "sr.rviz").read_text())["Visualization Manager"]
    assert {one["Class"] for one in rviz["Displays"]} == {"rviz_default_plugins/Image"}
    assert {one["Class"] for one in rviz["Tools"]} == {"rviz_default_plugins/MoveCamera"}
    layout = json.loads((config / "foxglove.json").read_text())
    keys = {"configById", "globalVariables", "userNodes", "playbackConfig", "layout"}
    assert set(layout) == keys

    def panels(node):
        if isinstance(node, str):
            return [node]
        assert set(node) == {"direction", "splitPercentage", "first", "second"}
        assert node["direction"] in ("row", "column")
        assert 0 < node["splitPercentage"] < 100
        return panels(node["first"]) + panels(node["second"])

    assert sorted(panels(layout["layout"])) == sorted(layout["configById"])
    for name, panel in layout["configById"].items():
        if name.startswith("Image!"):
            assert set(panel) == {"foxglovePanelTitle", "imageMode"}
            assert set(panel["imageMode"]) <= {"imageTopic", "calibrationTopic"}
        else:
            assert name.startswith("DiagnosticStatusPanel!")
            assert set(panel) == {"topicToRender", "selectedName"}


CAMERAS = """
cameras:
  - {name: front_sr, image: /front/thermal/image_raw, model: bicubic, lazy: false}
  - {name: rear_sr, image: /rear/thermal/image_raw, namespace: rear, seed: 3}
"""


def test_each_camera_of_the_list_has_its_node(load, tmp_path):
    (tmp_path / "cameras.yaml").write_text(CAMERAS)
    file = str(tmp_path / "cameras.yaml")
    front, rear = of_kind(
        made(load, "multi_camera.launch.py", cameras=file, shared="false"), "LifecycleNode"
    )
    assert dict(front.named["remappings"])["sr/image_raw"] == "/front/thermal/sr"
    assert front.named["parameters"][1] == {"model": "bicubic", "lazy": False, "autostart": True}
    assert (rear.named["name"], rear.named["namespace"]) == ("rear_sr", "rear")
    assert rear.named["parameters"][1] == {"seed": 3, "autostart": True}

    (process,) = made(load, "multi_camera.launch.py", cameras=file, shared="true")
    assert process.named["executable"] == "sr_nodes"
    first, second = map(json.loads, process.named["arguments"])
    assert first[:2] == ["-r", "__node:=front_sr"]
    for words, expected in (
        (first, ['model:="bicubic"', "lazy:=false", "image_raw:=/front/thermal/image_raw"]),
        (second, ["__ns:=/rear", "seed:=3", "sr/camera_info:=/rear/thermal/sr/camera_info"]),
    ):
        assert set(expected) <= set(words)
    assert_has_profile(process.named["additional_env"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cameras: []", "a list of arguments"),
        ("cameras: [{image: /a/i, modle: x}]", "did you mean model?"),
        ("cameras: [{image: /a/i}, {image: /b/i}]", "one name and namespace"),
        ("cameras: [{image: /a/i, name: a}, {image: /a/i, name: b}]", "one output"),
    ],
)
def test_a_list_that_cannot_work_is_refused(load, tmp_path, text, reason):
    (tmp_path / "cameras.yaml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(reason)):
        made(load, "multi_camera.launch.py", cameras=str(tmp_path / "cameras.yaml"))


def assert_has_profile(environment, variable=DDS_VARIABLES[0]):
    ((name, profile),) = environment.items()
    assert (name, Path(profile).is_file()) == (variable, True)


@pytest.mark.parametrize(
    ("distribution", "variable"),
    [("", DDS_VARIABLES[0]), ("kilted", DDS_VARIABLES[0]), ("jazzy", DDS_VARIABLES[1])],
)
def test_dds_profile_is_set_unless_the_user_set_one(load, monkeypatch, distribution, variable):
    monkeypatch.setenv("ROS_DISTRO", distribution)
    assert_has_profile(started_node(load)["additional_env"], variable)
    monkeypatch.setenv(variable, "/my/profile.xml")
    assert started_node(load)["additional_env"] == {}
