"""The demo over DDS: camera (player), node and recorder as three processes of a private domain."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from difiisr_models.weights import share_dir
from difiisr_ros.bag_reader import DIAGNOSTICS_TYPE, BagReader, choose_info_topic
from difiisr_ros.bag_writer import STORE
from difiisr_ros.demo.message_log import read_log
from difiisr_ros.demo.processes import Processes, ProcessFailed

SR_TOPIC = "/thermal/sr"
START_PATIENCE = 180.0  # seconds for a process to be ready, loading a large model included
QUIET = 3.0  # seconds without a result after which the stream counts as over
LAST_DOMAIN = 101  # highest DDS domain whose ports are no ephemeral ports on Linux


@dataclass(frozen=True)
class Outcome:
    """What went in and came out, and how long each answered frame took (seconds)."""

    frames_in: int
    frames_out: int
    latencies: list[float]
    backend: str


def missing_ros() -> str:
    """Why there is no ROS in this Python, or "" where there is."""
    check = "import rclpy, sensor_msgs.msg, diagnostic_msgs.msg"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    return (
        (result.stderr.strip().splitlines() or ["import failed"])[-1] if result.returncode else ""
    )


def dds_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` with a DDS domain of its own and the profile that large images need."""
    profile = str(share_dir() / "config" / "fastdds.xml")
    return {
        "AMENT_PREFIX_PATH": sys.prefix,  # the wheels' own; a sourced distribution's wins
        _profile_variable(environment): profile,
        **environment,
        "ROS_DOMAIN_ID": str(1 + secrets.randbelow(LAST_DOMAIN)),
    }


def _profile_variable(environment: Mapping[str, str]) -> str:
    """Where Fast DDS looks for a profile; from Kilted on it warns of the old name."""
    old = environment.get("ROS_DISTRO") in ("humble", "iron", "jazzy")
    return f"{'FASTRTPS' if old else 'FASTDDS'}_DEFAULT_PROFILES_FILE"


def run_live(
    bag: Path, topic: str, model: str, device: str, frames: int | None, out: Path
) -> Outcome:
    """Play ``bag`` to a node running ``model`` and record its results into ``out / "sr"``.

    Raises:
        ProcessFailed: a process died, nobody listened, or nothing was recorded.
    """
    played, recorded = out / "played.txt", out / "recorded.txt"
    for log in (played, recorded):
        log.unlink(missing_ok=True)
    with BagReader(bag) as reader:
        info_topic = choose_info_topic(reader.connections, topic, None)
    with Processes(out, dds_environment(os.environ)) as processes:
        processes.start(
            "node", "difiisr_ros.sr_node", *_node_arguments(topic, info_topic, model, device)
        )
        processes.start(
            "recorder", "difiisr_ros.demo.recorder", str(out / "sr"), SR_TOPIC, str(recorded)
        )
        processes.wait_until(
            lambda: "ready" in processes.log("recorder").read_text(errors="replace"),
            START_PATIENCE,
            "waiting for the node's result topics",
        )
        limit = [] if frames is None else ["--frames", str(frames)]
        processes.start("player", "difiisr_ros.demo.player", str(bag), topic, str(played), *limit)
        processes.wait_for_end("player")
        ended = time.monotonic()
        processes.wait_until(
            lambda: _is_over(read_log(played), read_log(recorded), ended),
            float("inf"),
            "waiting for the last results",
        )
        processes.stop("recorder")
        processes.stop("node")
    sent, received = read_log(played), read_log(recorded)
    if not received:
        raise ProcessFailed(f"no result was recorded on {SR_TOPIC}; logs in {out}")
    sent_at = dict(sent)
    latencies = [(at - sent_at[stamp]) / 1e9 for stamp, at in received if stamp in sent_at]
    return Outcome(len(sent), len(received), latencies, _backend(out / "sr"))


def _node_arguments(topic: str, info_topic: str | None, model: str, device: str) -> list[str]:
    remaps = {
        "image_raw": topic,
        "camera_info": info_topic or f"{topic}/no_camera_info",
        "sr/image_raw": SR_TOPIC,
        "sr/camera_info": f"{SR_TOPIC}/camera_info",
    }
    parameters = {"autostart": "true", "model": model, "device": device}
    return [
        "--ros-args",
        "--params-file",
        str(share_dir() / "config" / "sr.yaml"),
        *(part for name, value in parameters.items() for part in ("-p", f"{name}:={value}")),
        *(part for name, value in remaps.items() for part in ("-r", f"{name}:={value}")),
    ]


def _is_over(sent: list[tuple[int, int]], received: list[tuple[int, int]], ended: float) -> bool:
    """Whether all frames are answered, or no further answer is to be expected."""
    if len(received) >= len(sent):
        return True
    now = time.monotonic()
    if not received:
        return now - ended > START_PATIENCE
    sent_at = dict(sent)
    slowest = max((at - sent_at.get(stamp, at)) / 1e9 for stamp, at in received)
    return now - max(ended, received[-1][1] / 1e9) > QUIET + 2 * slowest


def _backend(bag: Path) -> str:
    """Backend and device as the node's diagnostics named them last."""
    named = "backend unknown"
    with BagReader(bag) as reader:
        for _, _, raw in reader.messages({"/diagnostics"}):
            for status in STORE.deserialize_cdr(raw, DIAGNOSTICS_TYPE).status:
                values = {value.key: value.value for value in status.values}
                if "backend" in values:
                    named = f"{values['backend']} on {values['device']}"
    return named
