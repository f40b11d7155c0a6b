"""Runs the demo: ``python -m difiisr_ros.demo``, or ``make demo``.

A thermal recording is played through DDS to the node, its results are recorded by a second
process, and a picture and a line of numbers are made of them. Without ROS the same recording
goes through the offline replay instead.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.rosbag2 import ReaderError

from difiisr_models import load_upscaler
from difiisr_ros.bag_reader import IMAGE_TYPE, BagReader, choose_image_topic, stamp_of
from difiisr_ros.bag_writer import STORE
from difiisr_ros.demo.live import SR_TOPIC, Outcome, missing_ros, run_live
from difiisr_ros.demo.panel import PanelImage, draw_panel
from difiisr_ros.demo.processes import ProcessFailed
from difiisr_ros.demo.scene import KELVIN_PER_COUNT, Scene
from difiisr_ros.demo.scene_bag import frame_of_stamp, write_scene_bag
from difiisr_ros.image_codec import image_to_array
from difiisr_ros.image_stream import ImageStream
from difiisr_ros.replay import replay

SCENE_FRAMES = 90  # ten seconds
SCENE_SEED = 0
ZERO_CELSIUS = 273.15  # kelvin


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; 0, 1 when a process failed, 2 for a bad argument or recording."""
    options = _parse(argv)
    try:
        return _run(options)
    except ProcessFailed as error:
        print(f"demo failed: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, ReaderError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m difiisr_ros.demo", description=__doc__)
    parser.add_argument("--bag", type=Path, help="rosbag2 to play (default: a procedural scene)")
    parser.add_argument("--topic", help="its image topic (default: the only one)")
    parser.add_argument("--model", default="difiisr-rt-x4", help="name or path (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (%(default)s)")
    parser.add_argument("--frames", type=int, help="play only the first so many")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder (%(default)s)")
    parser.add_argument(
        "--celsius",
        nargs=2,
        type=float,
        metavar=("SCALE", "OFFSET"),
        help="degrees in the picture are SCALE x counts + OFFSET (default: counts are shown)",
    )
    return parser.parse_args(argv)


def _run(options: argparse.Namespace) -> int:
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    bag, celsius = options.bag, options.celsius
    if bag is None:
        bag, celsius = out / "scene", (KELVIN_PER_COUNT, -ZERO_CELSIUS)
        frames = options.frames or SCENE_FRAMES
        print(f"scene: {frames} frames of 160x120 mono16 at 9 Hz, {KELVIN_PER_COUNT} K per count")
        write_scene_bag(bag, frames, SCENE_SEED, force=True)
    elif bag.resolve() == (out / "sr").resolve():
        raise ValueError(f"{bag} is where the demo records to; choose another folder with --out")
    with BagReader(bag) as reader:
        topic = choose_image_topic(reader.connections, options.topic)
    upscaler = load_upscaler(options.model, device=options.device)

    reason = missing_ros()
    if reason:
        print(f"no ROS in this Python ({reason}): running the offline replay instead of DDS")
        outcome, way = _run_replay(bag, topic, upscaler, options.frames, out), "offline replay"
    else:
        ros = os.environ.get("ROS_DISTRO", "from wheels")
        print(f"playing {topic} of {bag} to the node over DDS (ROS {ros}) ...", flush=True)
        outcome = run_live(bag, topic, options.model, options.device, options.frames, out)
        way = "over DDS"
    _draw(bag, topic, out, upscaler.name, celsius, is_scene=options.bag is None)

    p50, p90, p99 = np.percentile(outcome.latencies, (50, 90, 99)) * 1e3
    print(f"recorded {out / 'sr'}, picture {out / 'panel.png'}")
    print(
        f"frames in {outcome.frames_in}, out {outcome.frames_out}, "
        f"dropped {outcome.frames_in - outcome.frames_out}; "
        f"latency p50 {p50:.0f} ms, p90 {p90:.0f} ms, p99 {p99:.0f} ms; "
        f"{upscaler.name}, {outcome.backend}, {way}"
    )
    return 0


def _run_replay(bag: Path, topic: str, upscaler: Any, frames: int | None, out: Path) -> Outcome:
    report = replay(
        bag,
        out / "sr",
        upscaler,
        image_topic=topic,
        sr_topic=SR_TOPIC,
        only_sr=True,
        force=True,
        frames=frames,
    )
    for line in [*report.warnings, *report.malformed, *filter(None, [report.fault])]:
        print(f"warning: {line}", file=sys.stderr)
    if not report.frames_out:
        raise ValueError(f"no frame of {topic} in {bag} could be super-resolved")
    backend = f"{upscaler.backend} on {upscaler.device}"
    return Outcome(report.frames_in, report.frames_out, report.latencies, backend)


def _draw(
    bag: Path, topic: str, out: Path, model: str, celsius: Sequence[float] | None, is_scene: bool
) -> None:
    """Save the panel of the result in the middle of the recording."""
    with BagReader(out / "sr") as reader:
        stamps = [stamp_of(raw) for _, _, raw in reader.messages({SR_TOPIC})]
    stamp = stamps[len(stamps) // 2]
    counts = _frame(bag, topic, stamp)
    bicubic = ImageStream().upscale(load_upscaler("bicubic"), counts)
    images = [
        PanelImage("input", _grey(counts)),
        PanelImage("bicubic", _grey(bicubic)),
        PanelImage(model, _grey(_frame(out / "sr", SR_TOPIC, stamp))),
    ]
    unit = "counts"
    if celsius is not None:
        unit, (scale, offset) = "degrees Celsius", celsius
        images = [PanelImage(image.title, image.pixels * scale + offset) for image in images]
    if is_scene:
        truth = Scene(SCENE_SEED).truth(frame_of_stamp(stamp)) - ZERO_CELSIUS
        images[1:] = [
            PanelImage(f"{image.title}, {_psnr(image.pixels, truth):.2f} dB", image.pixels)
            for image in images[1:]
        ]
        images.append(PanelImage("truth", truth))
    draw_panel(out / "panel.png", images, unit)


def _frame(bag: Path, topic: str, stamp: int) -> NDArray[Any]:
    with BagReader(bag) as reader:
        for _, _, raw in reader.messages({topic}):
            if stamp_of(raw) == stamp:
                return image_to_array(STORE.deserialize_cdr(raw, IMAGE_TYPE))
    raise ValueError(f"{bag} has no frame on {topic} with the stamp {stamp} ns")


def _grey(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """(H, W) or (H, W, 3) -> (H, W) for display."""
    grey = pixels if pixels.ndim == 2 else pixels.mean(axis=-1)
    return grey.astype(np.float32)


def _psnr(result: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    """Peak signal-to-noise ratio in dB, the peak being the span of the truth."""
    error = float(np.mean((result - truth) ** 2))
    return 20 * float(np.log10(np.ptp(truth) / np.sqrt(error)))


if __name__ == "__main__":
    sys.exit(main())
