"""``difiisr demo``: a thermal stream played through DDS, super-resolved, recorded and shown; and
``difiisr scene``: that stream alone.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter
from cyclopts.validators import Number

from difiisr_models import Stream, Upscaler, load_upscaler
from difiisr_models.weights import share_dir
from difiisr_ros import bags, node_process
from difiisr_ros import scene as pan
from difiisr_ros.bag_writing import write_bag
from difiisr_ros.commands.answers import Answer, answers
from difiisr_ros.commands.arguments import Count
from difiisr_ros.commands.upscale import draw_panel
from difiisr_ros.image_codec import image_to_array
from difiisr_ros.node_process import NodeProcess, ProcessFailed
from difiisr_ros.replay import replay

SR_TOPIC = "/thermal/sr"
SCENE_FRAMES = 90  # ten seconds; fewer at a lower rate
SCENE_SEED = 0
ZERO_CELSIUS = 273.15  # kelvin
MODELS = ("difiisr-rtv-s-x4" if find_spec("cv2") else "difiisr-rt-x4", "bicubic")  # from the best
MARGIN = 1.7  # the machine plays, records and computes at once
SLOWEST = 0.7  # Hz; a model that does not hold it is not chosen
SHOWN = 16  # frame of the picture; the same in every run
QUIET = 3.0  # seconds without a result, and what ten frames take: the stream counts as over
NEXT = """next:
  difiisr demo --bag YOUR_BAG                    the same with your recording
  difiisr upscale YOUR_IMAGES OUT --compare      your images and videos
  ros2 launch difiisr_ros sr.launch.py image:=/your/camera/image_raw"""


@answers
def demo(
    *,
    bag: Path | None = None,
    topic: str | None = None,
    model: str | None = None,
    device: str = "auto",
    rate: Annotated[float, Parameter(validator=Number(gt=0))] | None = None,
    frames: Count | None = None,
    out: Path = Path("out/demo"),
) -> Answer:
    """Play a thermal recording through DDS to the node, record its results and draw one.

    Without ROS the recording goes through the offline replay instead. The node and the topics are
    in the DDS domain ROS_DOMAIN_ID, or in a free one where that is not set.

    Args:
        bag: rosbag2 to play; without it a simulated camera pans over an infrared photograph.
        topic: its image topic; without it the only one.
        model: name or path; without it the best that this machine holds.
        device: auto, cpu, cuda or cuda:N.
        rate: frames a second; without it the recording's, or what this machine holds.
        frames: play only the first so many.
        out: folder for the picture, the recording and the logs.
    """
    out.mkdir(parents=True, exist_ok=True)
    is_scene = bag is None
    if bag is None:
        bag = out / "scene"
        pan.write_scene_bag(bag, frames or SCENE_FRAMES, SCENE_SEED, force=True)
    elif bag.resolve() == (out / "sr").resolve():
        raise ValueError(f"{bag} is where the demo records to; choose another folder with --out")
    with bags.open_bag(bag) as reader:
        topic = bags.choose_image_topic(reader, topic)
    upscaler, takes, speed = _choose(bag, topic, [model] if model else MODELS, device, rate)
    if is_scene:
        frames = frames or max(round(SCENE_FRAMES * min(speed, 1.0)), 10)
    if reason := node_process.missing_ros():
        print(
            f"no ROS in this Python ({reason}): running the offline replay instead of DDS",
            file=sys.stderr,
        )
        sent, latencies, backend = _replayed(bag, topic, upscaler, frames, out)
        way = "offline replay"
    else:
        where = share_dir() / "config"
        given = os.environ.get("ROS_DOMAIN_ID")
        domain = node_process.own_domain(int(given) if given else None)
        print(
            f"playing {topic} to the node over DDS, domain {domain}. To watch (--frames 900 plays "
            f"longer):\n  ROS_DOMAIN_ID={domain} rviz2 -d {where / 'sr.rviz'}\n"
            f"  ROS_DOMAIN_ID={domain} ros2 launch foxglove_bridge foxglove_bridge_launch.xml, "
            f"and import {where / 'foxglove.json'} in Foxglove",
            file=sys.stderr,
        )
        parameters = {"model": model or upscaler.name, "device": device}
        patience = QUIET + 10 * takes
        sent, latencies, backend = _played(bag, topic, parameters, frames, speed, patience, out)
        way = "over DDS"
    _draw(bag, topic, out, upscaler, sent, is_scene)
    p50, p90, p99 = (1e3 * np.percentile(latencies, (50, 90, 99))).tolist()
    dropped, picture = sent - len(latencies), out / "panel.png"
    facts = {
        "frames_in": sent, "frames_out": len(latencies), "dropped": dropped,
        "latency_ms": {"p50": p50, "p90": p90, "p99": p99}, "model": upscaler.name,
        "backend": backend, "way": way, "recording": str(out / "sr"), "picture": str(picture),
    }  # fmt: skip
    text = (
        f"recorded {out / 'sr'}, picture {picture}\n"
        f"frames in {sent}, out {len(latencies)}, dropped {dropped}; "
        f"latency p50 {p50:.0f} ms, p90 {p90:.0f} ms, p99 {p99:.0f} ms; "
        f"{upscaler.name}, {backend}, {way}\n{NEXT}"
    )
    return Answer(facts, text)


@answers
def scene(out_bag: Path, /, *, frames: Count = 90, seed: int = 0, force: bool = False) -> Answer:
    """Record the scene of the demo: a pan over an infrared photograph.

    Args:
        out_bag: rosbag2 folder to make.
        frames: number of frames, at 9 Hz.
        seed: another seed, another scene.
        force: replace an existing OUT_BAG.
    """
    pan.write_scene_bag(out_bag, frames, seed, force)
    text = (
        f"{out_bag}: {frames} frames, {pan.WIDTH}x{pan.HEIGHT} mono16 at {pan.FRAME_RATE:g} Hz "
        f"on {pan.IMAGE_TOPIC}; kelvin = {pan.KELVIN_PER_COUNT:g} x counts"
    )
    facts = {"recording": str(out_bag), "frames": frames, "topic": pan.IMAGE_TOPIC, "seed": seed}
    return Answer(facts | {"kelvin_per_count": pan.KELVIN_PER_COUNT}, text)


def _choose(
    bag: Path, topic: str, models: Sequence[str], device: str, rate: float | None
) -> tuple[Upscaler, float, float]:
    """The first of the models that holds the rate, its seconds a frame, and the speed to play at.

    Says so.
    """
    with bags.open_bag(bag) as reader:
        messages = list(islice(reader.messages({topic}), 10))
    if not messages:
        raise ValueError(f"{bag} has no image on {topic}")
    frames = [image_to_array(bags.parse_message(m.data, bags.IMAGE_TYPE)) for m in messages[:4]]
    periods = np.diff([message.time for message in messages])
    own = 1e9 / max(np.median(periods), 1) if len(periods) else 1.0
    for name in models:
        upscaler, times = load_upscaler(name, device=device), []
        for turn in range(4):
            frame = np.roll(frames[turn % len(frames)], turn, axis=1)  # a repeat is not computed
            started = time.monotonic()
            upscaler(frame)
            times.append(time.monotonic() - started)
        takes = min(times[1:])
        held = 1 / (MARGIN * takes)
        if held >= min(SLOWEST, own):
            break
    chosen = rate or min(own, max(held, SLOWEST))
    height, width = frames[0].shape[:2]
    print(
        f"{upscaler.name} takes {1e3 * takes:.0f} ms here for {width}x{height}, so "
        f"the recording, {own:.3g} Hz, is played at {chosen:.2g} Hz.",
        file=sys.stderr,
    )
    return upscaler, takes, chosen / own


def _replayed(
    bag: Path, topic: str, upscaler: Upscaler, frames: int | None, out: Path
) -> tuple[int, list[float], str]:
    """Frames in, the seconds that each answer took, and the backend, of the offline replay."""
    report = replay(
        bag, out / "sr", upscaler,
        image_topic=topic, sr_topic=SR_TOPIC, only_sr=True, force=True, frames=frames,
    )  # fmt: skip
    for line in [*report.warnings, *report.malformed, *report.faults]:
        print(f"warning: {line}", file=sys.stderr)
    if not report.frames_out:
        raise ValueError(f"no frame of {topic} in {bag} could be super-resolved")
    return report.frames_in, report.latencies, f"{upscaler.backend} on {upscaler.device}"


def _played(
    bag: Path,
    topic: str,
    parameters: dict[str, str],
    frames: int | None,
    speed: float,
    patience: float,
    out: Path,
) -> tuple[int, list[float], str]:
    """The same of a node in a process of its own; ProcessFailed where it answers nothing."""
    os.environ.update(node_process.dds_environment())
    from difiisr_ros.node_peer import NodePeer

    info_of_result = f"{SR_TOPIC}/camera_info"
    with ExitStack() as stack:
        reader = stack.enter_context(bags.open_bag(bag))
        info = bags.choose_info_topic(reader, topic)
        writer = stack.enter_context(write_bag(out / "sr", force=True))
        kinds = {SR_TOPIC: bags.IMAGE_TYPE, info_of_result: bags.CAMERA_INFO_TYPE}
        kinds |= {"/diagnostics": bags.DIAGNOSTICS_TYPE}
        recorded = {name: writer.add(bags.ros_topic(name, kind)) for name, kind in kinds.items()}

        def record(name: str, raw: bytes) -> None:
            writer.write(bags.Message(recorded[name], time.time_ns(), raw))

        peer = stack.enter_context(NodePeer(topic, SR_TOPIC, info, record))
        remaps = {"image_raw": topic, "camera_info": info or f"{topic}/no_camera_info"}
        remaps |= {"sr/image_raw": SR_TOPIC, "sr/camera_info": info_of_result}
        arguments = node_process.ros_arguments({"autostart": "true"} | parameters, remaps)
        node = stack.enter_context(NodeProcess(out / "node.log", *arguments))

        def timed() -> Iterator[tuple[float, bytes, str]]:
            first = None
            for message in reader.messages([name for name in (topic, info) if name]):
                if message.topic.name == topic and len(peer.sent) == frames:
                    return
                first = message.time if first is None else first
                at = (message.time - first) / 1e9 / speed
                yield at, bytes(message.data), message.topic.name

        node.wait_until(peer.is_connected, node_process.START_PATIENCE, "its topics")
        peer.play(node, timed(), patience)
        if code := node.stop():
            raise ProcessFailed(f"the node ended with exit code {code}; its log is in {out}")
    latencies = [(arrived - sent) / 1e9 for sent, arrived in peer.answers()]
    if not latencies:
        raise ProcessFailed(f"no result was recorded on {SR_TOPIC}; the node's log is in {out}")
    return len(peer.sent), latencies, f"{peer.identity['backend']} on {peer.identity['device']}"


def _draw(bag: Path, topic: str, out: Path, up: Upscaler, sent: int, is_scene: bool) -> None:
    """Save the panel of the answered frame next to number ``SHOWN`` of those ``sent``, in counts.

    A recurrent model is shown without its past, too. That of the scene is in degrees Celsius, and
    shows its truth beside.
    """
    results, picture = out / "sr", out / "panel.png"
    *_, (wanted, _) = islice(_stamped(bag, topic), min(sent, SHOWN))
    stamp = min((at for at, _ in _stamped(results, SR_TOPIC)), key=lambda at: abs(at - wanted))
    raws = (
        next(raw for at, raw in _stamped(*where) if at == stamp)
        for where in ((bag, topic), (results, SR_TOPIC))
    )
    counts, result = (image_to_array(bags.parse_message(raw, bags.IMAGE_TYPE)) for raw in raws)
    shown = [("input", counts), ("bicubic", load_upscaler("bicubic")(counts))]
    if up.is_recurrent:
        shown.append((f"{up.name}, this frame alone", up(counts, Stream())))
    title = f"{up.name}, all frames so far" if up.is_recurrent else up.name
    shown.append((title, result))
    grey = [(name, one if one.ndim == 2 else one.mean(axis=-1)) for name, one in shown]
    if not is_scene:
        draw_panel(picture, grey, "counts")
        return
    truth, images = pan.Scene(SCENE_SEED).truth(pan.frame_of_stamp(stamp)) - ZERO_CELSIUS, []
    for title, pixels in grey:
        celsius = pan.KELVIN_PER_COUNT * pixels.astype(np.float32) - ZERO_CELSIUS
        if celsius.shape == truth.shape:
            rmse = np.sqrt(np.mean((celsius - truth) ** 2))
            title += f", {20 * np.log10(np.ptp(truth) / rmse):.2f} dB"
        images.append((title, celsius))
    draw_panel(picture, [*images, ("truth", truth)], "\N{DEGREE SIGN}C")


def _stamped(bag: Path, topic: str) -> Iterator[tuple[int, bytes]]:
    with bags.open_bag(bag) as reader:
        for message in reader.messages({topic}):
            yield bags.stamp_of(message.data), message.data
