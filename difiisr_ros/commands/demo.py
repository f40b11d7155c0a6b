"""``difiisr demo``: a thermal stream played through DDS, super-resolved, recorded and shown."""

from __future__ import annotations

import math
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from difiisr_ros import bags
from difiisr_ros.commands.arguments import Count
from difiisr_ros.image_codec import image_to_array
from difiisr_ros.node_process import (
    START_PATIENCE,
    NodeProcess,
    ProcessFailed,
    dds_environment,
    missing_ros,
    ros_arguments,
)

if TYPE_CHECKING:
    from difiisr_models import Upscaler
    from difiisr_ros.node_peer import NodePeer

SR_TOPIC = "/thermal/sr"
SCENE_FRAMES = 90  # ten seconds
SCENE_SEED = 0
ZERO_CELSIUS = 273.15  # kelvin
QUIET = 3.0  # seconds without a result after which the stream counts as over
CROP = 5  # the picture's zoomed window is a fifth of the frame in each direction


def demo(
    *,
    bag: Path | None = None,
    topic: str | None = None,
    model: str = "difiisr-rt-x4",
    device: str = "auto",
    frames: Count | None = None,
    out: Path = Path("out/demo"),
) -> None:
    """Play a thermal recording through DDS to the node, record its results and draw one.

    Without ROS the recording goes through the offline replay instead.

    Args:
        bag: rosbag2 to play; without it a procedural scene is.
        topic: its image topic; without it the only one.
        model: name or path.
        device: auto, cpu, cuda or cuda:N.
        frames: play only the first so many.
        out: folder for the picture, the recording and the logs.
    """
    from difiisr_models import load_upscaler
    from difiisr_ros.scene import KELVIN_PER_COUNT, write_scene_bag

    out.mkdir(parents=True, exist_ok=True)
    is_scene = bag is None
    if is_scene:
        bag, count = out / "scene", frames or SCENE_FRAMES
        print(f"scene: {count} frames of 160x120 mono16 at 9 Hz, {KELVIN_PER_COUNT} K per count")
        write_scene_bag(bag, count, SCENE_SEED, force=True)
    elif bag.resolve() == (out / "sr").resolve():
        raise ValueError(f"{bag} is where the demo records to; choose another folder with --out")
    with bags.open_bag(bag) as reader:
        topic = bags.choose_image_topic(reader, topic)
    upscaler = load_upscaler(model, device=device)
    if reason := missing_ros():
        print(f"no ROS in this Python ({reason}): running the offline replay instead of DDS")
        sent, latencies, backend = _replayed(bag, topic, upscaler, frames, out)
        way = "offline replay"
    else:
        ros = os.environ.get("ROS_DISTRO", "from wheels")
        print(f"playing {topic} of {bag} to the node over DDS (ROS {ros}) ...", flush=True)
        sent, latencies, backend = _played(bag, topic, model, device, frames, out)
        way = "over DDS"
    _draw(bag, topic, out, upscaler.name, is_scene)
    p50, p90, p99 = 1e3 * np.percentile(latencies, (50, 90, 99))
    print(f"recorded {out / 'sr'}, picture {out / 'panel.png'}")
    print(
        f"frames in {sent}, out {len(latencies)}, dropped {sent - len(latencies)}; "
        f"latency p50 {p50:.0f} ms, p90 {p90:.0f} ms, p99 {p99:.0f} ms; "
        f"{upscaler.name}, {backend}, {way}"
    )


def _replayed(
    bag: Path, topic: str, upscaler: Upscaler, frames: int | None, out: Path
) -> tuple[int, list[float], str]:
    """Frames in, the seconds that each answer took, and the backend, of the offline replay."""
    from difiisr_ros.replay import replay

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
    bag: Path, topic: str, model: str, device: str, frames: int | None, out: Path
) -> tuple[int, list[float], str]:
    """The same of a node in a process of its own; ProcessFailed where it answers nothing."""
    os.environ.update(dds_environment())
    from difiisr_ros.node_peer import NodePeer

    with ExitStack() as stack:
        reader = stack.enter_context(bags.open_bag(bag))
        info_topic = bags.choose_info_topic(reader, topic)
        kinds = {
            SR_TOPIC: bags.IMAGE_TYPE,
            f"{SR_TOPIC}/camera_info": bags.CAMERA_INFO_TYPE,
            "/diagnostics": bags.DIAGNOSTICS_TYPE,
        }
        writer = stack.enter_context(bags.write_bag(out / "sr", force=True))
        recorded = {name: writer.add(bags.ros_topic(name, kind)) for name, kind in kinds.items()}

        def record(name: str, raw: bytes) -> None:
            writer.write(bags.Message(recorded[name], time.time_ns(), raw))

        peer = stack.enter_context(NodePeer(topic, SR_TOPIC, info_topic, record))
        remaps = {
            "image_raw": topic,
            "camera_info": info_topic or f"{topic}/no_camera_info",
            "sr/image_raw": SR_TOPIC,
            "sr/camera_info": f"{SR_TOPIC}/camera_info",
        }
        arguments = ros_arguments({"autostart": "true", "model": model, "device": device}, remaps)
        node = stack.enter_context(NodeProcess(out / "node.log", *arguments))
        node.wait_until(peer.is_connected, START_PATIENCE, "its topics")
        begin = None
        for message in reader.messages({topic, info_topic} - {None}):
            if message.topic.name == topic and len(peer.sent) == frames:
                break
            begin = begin or time.monotonic() - message.time / 1e9
            time.sleep(max(begin + message.time / 1e9 - time.monotonic(), 0.0))
            node.check()
            peer.send(bytes(message.data), message.topic.name)
        ended = time.monotonic()
        node.wait_until(lambda: _is_over(peer, ended), math.inf, "the last results")
        if code := node.stop():
            raise ProcessFailed(f"the node ended with exit code {code}; its log is in {out}")
    latencies = [(arrived - sent) / 1e9 for sent, arrived in peer.answers()]
    if not latencies:
        raise ProcessFailed(f"no result was recorded on {SR_TOPIC}; the node's log is in {out}")
    return len(peer.sent), latencies, f"{peer.identity['backend']} on {peer.identity['device']}"


def _is_over(peer: NodePeer, ended: float) -> bool:
    """Whether all frames are answered, or no further answer is to be expected."""
    answers, now = peer.answers(), time.monotonic()
    if not answers:
        return now - ended > START_PATIENCE
    slowest = max(arrived - sent for sent, arrived in answers) / 1e9
    quiet = now - max(ended, answers[-1][1] / 1e9) > QUIET + 2 * slowest
    return quiet or len(answers) == len(peer.sent)


def _draw(bag: Path, topic: str, out: Path, model: str, is_scene: bool) -> None:
    """Save the panel of the result in the middle of the recording, in counts.

    That of the scene is in degrees Celsius, and shows its truth beside.
    """
    from difiisr_models import load_upscaler
    from difiisr_ros.scene import KELVIN_PER_COUNT, Scene, frame_of_stamp

    with bags.open_bag(out / "sr") as reader:
        stamps = [bags.stamp_of(message.data) for message in reader.messages({SR_TOPIC})]
    stamp = stamps[len(stamps) // 2]
    counts = _frame(bag, topic, stamp)
    scale, offset = (KELVIN_PER_COUNT, -ZERO_CELSIUS) if is_scene else (1.0, 0.0)
    truth = Scene(SCENE_SEED).truth(frame_of_stamp(stamp)) - ZERO_CELSIUS if is_scene else None
    images = []
    for title, pixels in (
        ("input", counts),
        ("bicubic", load_upscaler("bicubic")(counts)),
        (model, _frame(out / "sr", SR_TOPIC, stamp)),
    ):
        grey = pixels if pixels.ndim == 2 else pixels.mean(axis=-1)
        values = scale * grey.astype(np.float32) + offset
        if truth is not None and values.shape == truth.shape:
            rmse = np.sqrt(np.mean((values - truth) ** 2))
            title += f", {20 * np.log10(np.ptp(truth) / rmse):.2f} dB"
        images.append((title, values))
    if truth is not None:
        images.append(("truth", truth))
    draw_panel(out / "panel.png", images, "degrees Celsius" if is_scene else "counts")


def _frame(bag: Path, topic: str, stamp: int) -> NDArray:
    with bags.open_bag(bag) as reader:
        for message in reader.messages({topic}):
            if bags.stamp_of(message.data) == stamp:
                return image_to_array(bags.parse_message(message.data, bags.IMAGE_TYPE))
    raise ValueError(f"{bag} has no frame on {topic} with the stamp {stamp} ns")


def window_to_show(frame: NDArray[np.floating]) -> tuple[int, int, int, int]:
    """Left, top, width, height (pixels) of the window where warm things have most contours."""
    from torch import from_numpy
    from torch.nn.functional import avg_pool2d

    rows, columns = sides = [max(side // CROP, 8) for side in frame.shape]
    filled = np.nan_to_num(frame.astype(np.float64), nan=float(np.nanmedian(frame)))
    edges = np.hypot(*np.gradient(filled)) * np.maximum(filled - np.median(filled), 0.0)
    means = avg_pool2d(from_numpy(edges)[None], sides, stride=1)[0].numpy()
    # Frame borders often carry dark rims; an eighth of the window is left out around them.
    y, x = (min(side // 8, n // 3) for side, n in zip(sides, means.shape, strict=True))
    inner = means[y : means.shape[0] - y, x : means.shape[1] - x]
    top, left = np.unravel_index(inner.argmax(), inner.shape)
    return int(left + x), int(top + y), columns, rows


def draw_panel(path: Path, images: list[tuple[str, NDArray[np.floating]]], unit: str) -> None:
    """Save a PNG with the images, (title, (H, W) values), side by side, whole and zoomed.

    The first is the input, whose size sets the window and whose 0.5 to 99.9 percentiles are the
    ends of the colours in every image; ``unit`` labels their bar.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    frame = images[0][1]
    low, high = np.nanpercentile(frame, (0.5, 99.9))
    style = {"cmap": "inferno", "vmin": low, "vmax": max(high, low + 1e-6)}
    size = (4.2 * len(images) + 1.0, 2 * 4.2 * frame.shape[0] / frame.shape[1] + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(2, len(images), squeeze=False)
    for (whole, zoom), (title, pixels) in zip(axes.T, images, strict=True):
        scale = pixels.shape[1] / frame.shape[1]
        x, y, w, h = (round(scale * v) for v in window_to_show(frame))
        shown = whole.imshow(pixels, interpolation="nearest", **style)
        whole.add_patch(Rectangle((x - 0.5, y - 0.5), w, h, fill=False, color="cyan"))
        whole.set_title(title, fontsize=10)
        zoom.imshow(pixels[y : y + h, x : x + w], interpolation="nearest", **style)
        for axis in (whole, zoom):
            axis.set_axis_off()
    figure.colorbar(shown, ax=axes, shrink=0.85, label=unit)
    figure.savefig(path, dpi=110)
