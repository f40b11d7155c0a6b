"""The demo as a user runs it: a node of its own, real DDS, a recording and a picture at the end."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from PIL import Image as Picture

from difiisr_models import load_upscaler
from difiisr_ros import bags, cli
from difiisr_ros.bag_writing import write_bag
from difiisr_ros.commands.recorded_frames import read_recording
from difiisr_ros.commands.recorded_measures import judge
from difiisr_ros.node_process import missing_ros

needs_ros = pytest.mark.skipif(bool(missing_ros()), reason=f"no ROS: {missing_ros()}")


def demo(*arguments, **options):
    command = [sys.executable, "-m", "difiisr_ros.cli", "demo", "--device", "cpu"]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *map(str, arguments)], **piped, **options)


def finish(process):
    output, error = process.communicate(timeout=200)
    return process.returncode, output, error


def recorded(bag, topic):
    with bags.open_bag(bag) as reader:
        assert reader.fault == ""
        return [message.data for message in reader.messages({topic})]


def numbers(output):
    """frames in, frames out, dropped, p50, p90, p99 of the closing line."""
    found = re.search(
        r"^frames in (\d+), out (\d+), dropped (\d+); "
        r"latency p50 (\d+) ms, p90 (\d+) ms, p99 (\d+) ms; bicubic, (.+)$",
        output,
        re.MULTILINE,
    )
    assert found, output
    return [int(n) for n in found.groups()[:6]], found[7]


@needs_ros
def test_scene_through_dds(tmp_path):
    code, output, error = finish(demo("--model", "bicubic", "--frames", 12, "--out", tmp_path))
    assert code == 0, output + error
    (sent, answered, dropped, p50, p90, p99), way = numbers(output)
    assert (sent, dropped) == (12, 12 - answered)
    assert answered >= 6
    assert 0 < p50 <= p90 <= p99
    assert way == "torch on cpu, over DDS"

    results = recorded(tmp_path / "sr", "/thermal/sr")
    assert len(results) == answered
    with Picture.open(tmp_path / "panel.png") as picture:
        assert picture.width > picture.height > 300

    # What it dropped leaves no trace in the frames after it: the others are bit-exact.
    bicubic = load_upscaler("bicubic", device="cpu")
    values = judge(read_recording(tmp_path / "sr", tmp_path / "scene", upscaler=bicubic))
    offline, info = values["offline"], values["camera_info"]
    assert (values["fault"], values["mismatches"]) == ("", {})
    assert offline["exact"] == offline["frames"] == values["sr"]["messages"] == answered
    assert values["drops"]["total"] == dropped
    assert info["right"] == info["messages"] > 0
    assert values["node"]["model"] == "bicubic"


def write_frames(bag, topics, frames, period):
    """A mono8 recording of noise; ``period`` in seconds."""
    noise = np.random.default_rng(0).integers(0, 255, (frames, 32, 40), np.uint8)
    with write_bag(bag) as writer:
        for index, pixels in enumerate(noise):
            stamp = bags.STORE.types["builtin_interfaces/msg/Time"](7, index)
            header = bags.STORE.types["std_msgs/msg/Header"](stamp, "boson")
            raw, at = bags.image_bytes(header, pixels, "mono8"), round(index * period * 1e9)
            for topic in topics:
                writer.write(bags.Message(bags.ros_topic(topic, bags.IMAGE_TYPE), at, raw))


@needs_ros
def test_own_bag_with_a_topic_of_its_own_and_no_camera_info(tmp_path):
    write_frames(tmp_path / "mine", ["/ir", "/other"], 6, 0.2)
    bag, out = tmp_path / "mine", tmp_path / "out"
    code, output, error = finish(
        demo("--bag", bag, "--topic", "/ir", "--model", "bicubic", "--out", out)
    )
    assert code == 0, output + error
    assert numbers(output)[0][0] == 6
    results = recorded(out / "sr", "/thermal/sr")
    assert bags.parse_message(results[0], bags.IMAGE_TYPE).header.frame_id == "boson"
    assert (out / "panel.png").is_file()


def test_without_ros_the_same_bag_goes_through_the_replay(tmp_path):
    (tmp_path / "rclpy.py").write_text("raise ImportError('no rclpy here')")
    hiding = {**os.environ, "PYTHONPATH": str(tmp_path)}
    arguments = ["--model", "bicubic", "--frames", 4, "--out", tmp_path / "out", "--json"]
    process = demo(*arguments, env=hiding)
    code, output, error = finish(process)
    assert code == 0, output + error
    assert "no rclpy here" in error
    facts = json.loads(output)
    assert (facts["frames_in"], facts["frames_out"], facts["dropped"]) == (4, 4, 0)
    assert (facts["backend"], facts["way"]) == ("torch on cpu", "offline replay")
    assert len(recorded(tmp_path / "out" / "sr", "/thermal/sr")) == 4
    assert (tmp_path / "out" / "panel.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "no-such-model"], "no-such-model"),
        (["--model", "bicubic", "--bag", "no-such-bag"], "no-such-bag"),
        (["--model", "bicubic", "--bag", "mine"], "/ir, /other"),
        (["--model", "bicubic", "--bag", "sr", "--topic", "/ir", "--out", "."], "records to"),
    ],
)
def test_what_cannot_run_is_said_at_once(tmp_path, monkeypatch, capsys, arguments, expected):
    monkeypatch.chdir(tmp_path)
    write_frames(tmp_path / "mine", ["/ir", "/other"], 1, 0.2)
    assert cli.main(["demo", "--device", "cpu", "--frames", "1", *arguments]) == 1
    assert expected in capsys.readouterr().err


@pytest.fixture
def playing(tmp_path):
    """The demo of a minute's recording, and its node, while it plays."""
    write_frames(tmp_path / "long", ["/ir"], 600, 0.1)
    out = tmp_path / "out"
    process = demo("--bag", tmp_path / "long", "--model", "bicubic", "--out", out)
    until = time.monotonic() + 60
    while not ((log := out / "node.log").exists() and "active:" in log.read_text()):
        assert process.poll() is None, finish(process)
        assert time.monotonic() < until
        time.sleep(0.05)
    children = psutil.Process(process.pid).children()
    (node,) = (child for child in children if "difiisr_ros.sr_node" in child.cmdline())
    yield process, node
    process.kill()


@needs_ros
def test_demo_fails_when_the_node_dies(playing):
    process, node = playing
    node.send_signal(signal.SIGKILL)
    code, _, error = finish(process)
    assert code == 1
    assert "exit code -9" in error


@needs_ros
def test_demo_ends_on_sigterm_and_leaves_no_node_behind(playing):
    process, node = playing
    process.terminate()
    assert finish(process)[0] == 143
    assert not node.is_running()
