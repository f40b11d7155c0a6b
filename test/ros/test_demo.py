"""The demo as a user runs it: three processes, real DDS, a recording and a picture at the end."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image as Picture

from difiisr_ros.bag_reader import CAMERA_INFO_TYPE, IMAGE_TYPE, BagReader, stamp_of
from difiisr_ros.bag_writer import STORE, image_bytes, write_bag
from difiisr_ros.demo.live import missing_ros

needs_ros = pytest.mark.skipif(bool(missing_ros()), reason=f"no ROS: {missing_ros()}")


def demo(*arguments, **options):
    command = [sys.executable, "-m", "difiisr_ros.demo", "--device", "cpu", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def finish(process):
    output, error = process.communicate(timeout=200)
    return process.returncode, output, error


def recorded(bag, topic):
    with BagReader(bag) as reader:
        assert reader.fault == ""
        return [bytes(raw) for _, _, raw in reader.messages({topic})]


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
    inputs = {stamp_of(raw): raw for raw in recorded(tmp_path / "scene", "/thermal/image_raw")}
    for raw in results:
        image = STORE.deserialize_cdr(raw, IMAGE_TYPE)
        source = STORE.deserialize_cdr(inputs[stamp_of(raw)], IMAGE_TYPE)
        assert image.header == source.header
        assert (image.width, image.height, image.encoding) == (640, 480, "mono16")
        shrunk = image.data.view("<u2").reshape(120, 4, 160, 4).mean(axis=(1, 3))
        counts = source.data.view("<u2").reshape(120, 160)
        assert np.abs(shrunk - counts).mean() < 0.01 * np.ptp(counts)
    infos = recorded(tmp_path / "sr", "/thermal/sr/camera_info")
    assert infos
    info = STORE.deserialize_cdr(infos[0], CAMERA_INFO_TYPE)
    assert (info.width, info.height, info.k[0], info.k[2]) == (640, 480, 760.0, 319.5)
    with Picture.open(tmp_path / "panel.png") as picture:
        assert picture.width > picture.height > 300


def write_frames(bag, topics, frames, period):
    """A mono8 recording of noise; ``period`` in seconds."""
    noise = np.random.default_rng(0).integers(0, 255, (frames, 32, 40), np.uint8)
    with write_bag(bag) as writer:
        connections = [writer.add_connection(t, IMAGE_TYPE, typestore=STORE) for t in topics]
        for index, pixels in enumerate(noise):
            stamp = STORE.types["builtin_interfaces/msg/Time"](7, index)
            header = STORE.types["std_msgs/msg/Header"](stamp, "boson")
            for connection in connections:
                at = round(index * period * 1e9)
                writer.write(connection, at, image_bytes(header, pixels, "mono8"))


@needs_ros
def test_own_bag_with_a_topic_of_its_own_and_no_camera_info(tmp_path):
    write_frames(tmp_path / "mine", ["/ir", "/other"], 6, 0.2)
    bag, out = tmp_path / "mine", tmp_path / "out"
    code, _, error = finish(demo("--bag", bag, "--model", "bicubic", "--out", out))
    assert code == 2
    assert "/ir" in error
    assert "/other" in error
    process = demo("--bag", bag, "--topic", "/ir", "--model", "bicubic", "--out", out)
    code, output, error = finish(process)
    assert code == 0, output + error
    assert numbers(output)[0][0] == 6
    results = recorded(out / "sr", "/thermal/sr")
    assert STORE.deserialize_cdr(results[0], IMAGE_TYPE).header.frame_id == "boson"
    assert (out / "panel.png").is_file()


def hide_rclpy(folder):
    """An environment in which rclpy cannot be imported."""
    (folder / "rclpy.py").write_text("raise ImportError('no rclpy here')")
    return {**os.environ, "PYTHONPATH": str(folder)}


def test_without_ros_the_same_bag_goes_through_the_replay(tmp_path):
    process = demo(
        *("--model", "bicubic", "--frames", 4, "--out", tmp_path / "out"), env=hide_rclpy(tmp_path)
    )
    code, output, error = finish(process)
    assert code == 0, output + error
    assert "no rclpy here" in output
    (sent, answered, dropped, *_), way = numbers(output)
    assert (sent, answered, dropped) == (4, 4, 0)
    assert way == "torch on cpu, offline replay"
    assert len(recorded(tmp_path / "out" / "sr", "/thermal/sr")) == 4
    assert (tmp_path / "out" / "panel.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "no-such-model"], "no-such-model"),
        (["--model", "bicubic", "--bag", "no-such-bag"], "no-such-bag"),
    ],
)
def test_what_cannot_run_is_said_at_once(tmp_path, arguments, expected):
    code, _, error = finish(demo(*arguments, "--frames", 1, "--out", tmp_path / "out"))
    assert code == 2
    assert expected in error
    assert "Traceback" not in error


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def command_of(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def wait_for_child(process, module):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert process.poll() is None, finish(process)
        found = [pid for pid in children(process.pid) if module in command_of(pid)]
        if found:
            return found[0]
        time.sleep(0.05)
    raise AssertionError(f"no process of {module}")


@needs_ros
@pytest.mark.parametrize("module", ["difiisr_ros.sr_node", "difiisr_ros.demo.player"])
def test_demo_fails_when_a_process_dies_and_leaves_none_behind(tmp_path, module):
    write_frames(tmp_path / "long", ["/ir"], 600, 0.1)
    process = demo("--bag", tmp_path / "long", "--model", "bicubic", "--out", tmp_path / "out")
    wait_for_child(process, "difiisr_ros.demo.player")
    others = children(process.pid)
    os.kill(wait_for_child(process, module), signal.SIGKILL)
    code, _, error = finish(process)
    assert code == 1
    assert "exit code -9" in error
    assert not any("difiisr_ros" in command_of(pid) for pid in others)


@needs_ros
def test_demo_ends_on_sigterm_and_leaves_none_behind(tmp_path):
    write_frames(tmp_path / "long", ["/ir"], 600, 0.1)
    process = demo("--bag", tmp_path / "long", "--model", "bicubic", "--out", tmp_path / "out")
    wait_for_child(process, "difiisr_ros.demo.player")
    others = children(process.pid)
    process.terminate()
    assert finish(process)[0] == 130
    assert not any("difiisr_ros" in command_of(pid) for pid in others)
