"""What sr_node is started with, and its end by SIGTERM; SIGINT is tested in test_sr_node.py."""

import contextlib
import gc
import itertools
import json
import re
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (pip extra ros, or a sourced distribution)")

import rclpy
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from ros_peer import DOMAIN, Peer, spin_in_thread, wait_until
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image

from difiisr_ros import sr_node
from difiisr_ros.frame_worker import any_computing
from difiisr_ros.image_codec import image_to_array
from difiisr_ros.node_process import NodeProcess
from difiisr_ros.sr_node import SrNode, main, main_of_several

ROOT = Path(__file__).resolve().parents[2]
SUCCESS = TransitionCallbackReturn.SUCCESS


@pytest.fixture
def make_node():
    """Return a function that makes a node of this process from parameters."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=DOMAIN)
    nodes = []

    def make(node_name="sr_node", **parameters):
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        words = ["--ros-args", "-r", f"__node:={node_name}"]
        nodes.append(SrNode(context=context, parameter_overrides=overrides, cli_args=words))
        return nodes[-1]

    yield make
    for node in nodes:
        node.stop_stream()
        node.destroy_node()
    rclpy.try_shutdown(context=context)


def further_pools(pid):
    """How many pools of memory its threads have beside the first one; each reserves 64 MiB."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
    return sum(
        begin % (64 << 20) == 0 and behind == [end, begin + (64 << 20)]
        for (begin, end), behind in itertools.pairwise(spans)
    )


def test_the_command_of_the_readme_starts_the_node_and_sigterm_ends_it_with_0(tmp_path):
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("an installed package has no README beside it")
    (arguments,) = re.findall(
        r"`python -m difiisr_ros\.sr_node --ros-args (.*)`", readme.read_text()
    )
    arguments = arguments.replace("config/", f"{ROOT}/config/").split()
    wrong = ("-p", "fidelty:=0.5")
    killed = NodeProcess(tmp_path / "killed", *arguments, "-p", "model:=bicubic")
    killed.wait_for_log("active:")
    assert killed.stop(signal.SIGKILL) == -signal.SIGKILL  # what it leaves disturbs no other
    node = NodeProcess(tmp_path / "log", *arguments, "-p", "model:=bicubic", *wrong)
    node.wait_for_log("active:")
    assert "there are no parameters fidelty: ignored" in node.log
    assert further_pools(node.pid) == 0
    assert node.stop(signal.SIGTERM) == 0
    assert "Traceback" not in node.log


@pytest.mark.parametrize(
    ("argument", "explanation"),
    [
        ("fidelity:=1", "'fidelity' is of type double, but 1 is integer: write 1.0"),
        ("device:=gpu", "must be one of auto, cpu, cuda, cuda:N"),
    ],
)
def test_a_bad_start_parameter_is_explained(argument, explanation, capfd):
    assert main(["--ros-args", "-p", argument]) == 1
    assert explanation in capfd.readouterr().err


def test_a_file_of_parameters_that_cannot_be_read_is_told_in_one_line(tmp_path, capfd):
    file = tmp_path / "sr.yaml"
    file.write_text("/**: [1, {")
    assert main(["--ros-args", "--params-file", str(file)]) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "[sr_node]" in line]
    assert str(file) in line


@pytest.mark.parametrize(("words", "code"), [('["--params-file", "/nowhere.yaml"]', 2), ("[", 1)])
def test_arguments_of_one_of_several_nodes_that_cannot_be_read_are_told(words, code, capfd):
    assert main_of_several([words]) == code
    error = capfd.readouterr().err
    assert "Traceback" not in error
    assert "[sr_node]" in error


def test_a_reset_while_a_frame_is_computed_spoils_nothing_of_it(make_node):
    node = make_node(model="bicubic", device="cpu", unit="kelvin", no_data="7")
    assert node.trigger_configure() == node.trigger_activate() == SUCCESS
    news, found, peer = node._camera.news, [], Peer()
    node._camera.news = lambda *frame: (news(*frame), node._camera.begin())[0]  # as ~/reset does
    stop = spin_in_thread(node)
    try:
        camera = peer.node.create_publisher(Image, "/image_raw", 5)
        peer.node.create_subscription(Image, "/sr/temperature", found.append, 5)
        pixels = 300 + np.add.outer(np.arange(16), np.arange(20)).astype(np.uint16)
        pixels[5, 9] = 7
        wait_until(lambda: camera.publish(peer.image(pixels)) or time.sleep(0.1) or found)
        assert np.isnan(image_to_array(found[0])[20:24, 36:40]).all()
    finally:
        peer.close()
        stop()


def test_a_signal_while_the_node_is_made_ends_it_with_0(monkeypatch):
    def interrupted():
        rclpy.shutdown()  # as the handler of a signal does
        raise RuntimeError("the given context is not valid")

    monkeypatch.setattr(sr_node, "SrNode", interrupted)
    assert main([]) == 0


def test_a_qos_override_changes_its_topic_alone(make_node):
    node = make_node(
        **{"model": "bicubic", "qos_overrides./sr/image_raw.publisher.reliability": "best_effort"}
    )
    node.trigger_configure()
    for topic, reliability in (("image_raw", "BEST_EFFORT"), ("camera_info", "RELIABLE")):
        wait_until(lambda topic=topic: node.get_publishers_info_by_topic(f"/sr/{topic}"))
        (publisher,) = node.get_publishers_info_by_topic(f"/sr/{topic}")
        assert publisher.qos_profile.reliability.name == reliability


def test_a_transition_that_fails_leaves_no_topic_behind(make_node):
    wrong = {"qos_overrides./sr/camera_info.publisher.reliability": "sensor"}
    node = make_node(model="bicubic", **wrong)
    for _ in range(2):
        node.trigger_configure()
        with contextlib.suppress(RuntimeError):  # Jazzy raises where Kilted returns a failure
            node.trigger_activate()
    wait_until(lambda: not node.get_publishers_info_by_topic("/sr/image_raw"))


def test_transitions_leave_nothing_behind(make_node):
    node = make_node(model="bicubic")
    alive, counts = weakref.WeakSet(), []
    for _ in range(10):
        assert node.trigger_configure() == node.trigger_activate() == SUCCESS
        alive.update((node._upscaler, node._worker))
        assert node.trigger_deactivate() == node.trigger_cleanup() == SUCCESS
        gc.collect()
        counts.append(len(gc.get_objects()))
    assert not alive
    assert not any_computing()
    assert counts[-1] - counts[-6] < 5  # less than one object in a round


def test_a_failed_configure_ends_or_is_tried_again_as_asked(make_node, monkeypatch, tmp_path):
    monkeypatch.setattr(sr_node, "RETRY_PERIOD", 0.1)
    gone = str(tmp_path / "gone")
    ending = make_node(model=gone, autostart=True, on_failure="retry")
    stop = spin_in_thread(ending)
    wait_until(lambda: "no model" in ending._fault)
    ending.set_parameters([Parameter("model", value="bicubic")])
    wait_until(lambda: ending._worker is not None)  # active
    stop()
    words = ["-p", f"model:={gone}", "-p", "autostart:=true", "-p", "on_failure:=exit"]
    node = NodeProcess(tmp_path / "log", *words)
    assert node.wait(60) == 1
    assert "no model" in node.log


def test_two_cameras_of_one_process_share_a_model_and_nothing_else(make_node, tmp_path):
    nodes = [
        make_node("a", device="cpu", model="bicubic-consistent"),
        make_node("b", device="cpu", model="bicubic-consistent", seed=3),
        make_node("c", device="cpu", model="bicubic"),
    ]
    for node in nodes:
        node.trigger_configure()
    a, b, c = (node._upscaler for node in nodes)
    assert a._model is b._model is not c._model
    assert (a.settings.seed, b.settings.seed) == (0, 3)
    nodes[0].set_parameters([Parameter("consistency", value=0.5)])
    assert (a.settings.consistency, b.settings.consistency) == (0.5, "auto")
    cameras = [
        json.dumps(["-r", f"__node:={name}", "-p", "model:=bicubic", "-p", "autostart:=true"])
        for name in ("front", "rear")
    ]
    log = tmp_path / "log"
    command = [sys.executable, ROOT / "scripts" / "sr_nodes", *cameras]
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            wait_until(lambda: all(f"[{n}]: active:" in log.read_text() for n in ("front", "rear")))
            assert further_pools(process.pid) == 0
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("model", ["bicubic", "difiisr-rt-x4"])
def test_build_only_fails_where_no_engine_can_be_built(make_node, tmp_path, model):
    engine = tmp_path / "network.plan"
    node = make_node(model=model, device="cpu", build_only=True, engine=str(engine), autostart=True)
    spin_in_thread(node)
    wait_until(lambda: not node.context.ok())
    assert node.failed
    assert not engine.exists()


def test_without_autostart_it_waits_and_simulated_time_may_stand_still(make_node):
    stop, peer = spin_in_thread(make_node(use_sim_time=True, diagnostics_period=0.1)), Peer()
    try:
        assert peer.state() == "unconfigured"
        clock = peer.node.create_publisher(Clock, "/clock", 1)
        now = Clock()
        now.clock.sec = 4321

        def stamped():
            clock.publish(now)
            return peer.diagnostics and peer.diagnostics[-1].header.stamp == now.clock

        wait_until(stamped)
        assert peer.status()[0].message == "unconfigured"
    finally:
        peer.close()
        stop()
