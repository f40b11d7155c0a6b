"""``difiisr info``: what a model is and costs, and what a recording shows of its camera."""

from __future__ import annotations

import shlex
import time
from collections import defaultdict
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from difiisr_models import Camera, Runtime, Stream, Upscaler, load_upscaler
from difiisr_models.camera_files import CameraFile, guess_cameras, read_camera_file
from difiisr_models.upscaler import STAGE, check_frame
from difiisr_ros import bags
from difiisr_ros.commands import arguments
from difiisr_ros.commands.answers import Answer, answers
from difiisr_ros.image_codec import FALSE_COLOUR, is_false_colour

JUDGED_FRAMES = 30  # of a recording
EVENT_FRAMES = 1000  # of a recording, that events are looked for in
_PATTERNS = ("rows", "columns", "pixels")
_WARM_UP_FRAMES = 3
_FRAMES = 15
_FEWEST_FRAMES = 3  # of a model that takes longer than _PATIENCE for more
_PATIENCE = 30.0  # seconds


@answers
def info(
    model: str | None = None,
    /,
    *,
    bag: Path | None = None,
    topic: str | None = None,
    camera: arguments.KnownCamera = arguments.AskedCamera(),
    runtime: arguments.RuntimeOptions = Runtime(),
    size: arguments.ImageSize | None = None,
    parity: Literal["tiny", "full"] | None = None,
    parity_data: Path | None = None,
) -> Answer:
    """Say what a model is and what a frame costs, or what a recording shows of its camera.

    Args:
        model: model name, or path of weights.
        bag: recording, rosbag2 folder or storage file: say what its first frames show.
        topic: of its images; default: the only one.
        camera: default: it is guessed.
        size: also time each stage of mono16 frames of this size, WIDTHxHEIGHT as in 160x120.
        parity: also compare the published network of this size with the reference's outputs.
        parity_data: folder of the recorded outputs, tiny_expected.safetensors, ...; they are not
            part of the package.

    The exit code is 1 where the published network computes something else.
    """
    if model is None and bag is None:
        raise ValueError("name a model, or a recording: --bag BAG")
    if parity and parity_data is None:
        raise ValueError("--parity needs --parity-data DIR, the reference's recorded outputs")
    facts: dict[str, Any] = {}
    if bag is not None:
        facts |= _recording(bag, topic, camera.camera, camera.known)
    if model is not None:
        facts |= _model(model, runtime, size)
    if parity and parity_data is not None:
        facts |= _parity(parity, parity_data)
    lines = []
    for name, value in facts.items():
        for text in value if isinstance(value, list) else [value]:
            lines.append(f"{name:<11} {text}")
            name = ""
    code = int(any("FAILED" in line for line in facts.get("parity", [])))
    return Answer(facts, "\n".join(lines), code)


def _model(model: str, runtime: Runtime, size: tuple[int, int] | None) -> dict[str, Any]:
    upscaler = load_upscaler(model, runtime=arguments.as_asked(runtime))
    # Operations are counted in plain torch: other backends hide them, CUDA graphs repeat them.
    in_torch = upscaler
    if (upscaler.backend, upscaler.device, runtime.compile) != ("torch", "cpu", False):
        in_torch = load_upscaler(model, device="cpu", backend="torch")
    with FlopCounterMode(display=False) as counter:
        in_torch(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64))
    passed_over = [f"not {backend}: {reason}" for backend, reason in upscaler.passed_over]
    facts = {
        "name": upscaler.name,
        "scale": upscaler.scale,
        "parameters": upscaler.parameter_count,
        "sha256": upscaler.weights_sha256 or "(no weights)",
        "cost": f"{counter.get_total_flops() / 1e9:.2f} GFLOP for a 64x64 frame",
        "backend": [f"{upscaler.backend} on {upscaler.device}", *passed_over],
    }
    return facts | ({"profile": _profile(upscaler, *size)} if size else {})


def _recording(path: Path, topic: str | None, asked: str | None, camera: Camera) -> dict[str, Any]:
    """``asked``: name of the camera; rows of telemetry that its frames show are cut unless told."""
    stream, last, seen, refused, times = Stream(), None, None, "", []
    stream.set_camera(camera)
    with bags.open_bag(path) as bag:
        topic = bags.choose_image_topic(bag, topic)
        for message in islice(bag.messages({topic}), EVENT_FRAMES):
            try:
                frame, stamp = bags.read_frame(message, camera), bags.stamp_of(message.data)
                check_frame(frame.pixels)
            except ValueError as error:
                refused = refused or str(error)
                continue
            pixels = frame.shown_to(stream)
            stream.begin_frame(pixels, stamp)
            stream.see(pixels if pixels.ndim == 2 else pixels[..., 0].copy())
            times.append((stamp, message.time))
            if len(times) <= JUDGED_FRAMES:
                last, seen = frame, stream.seen
        infos, count = bags.topics_of(bag, bags.CAMERA_INFO_TYPE), bag.count(topic)
        fault = bag.fault
    if last is None or seen is None:
        raise ValueError(f"{path}: no frame of {topic} is readable: {refused or 'there is none'}")
    image, pixels = last.image, last.pixels
    beside = bags.info_topic_beside(topic)
    info = beside if beside in infos else infos[0] if len(infos) == 1 else None
    encoding, guessed = [image.encoding], list[CameraFile]()
    if is_false_colour(image):
        encoding.append(FALSE_COLOUR.format("it"))
    else:
        guessed += guess_cameras(image.encoding, image.width, image.height, np.median(pixels))
    likely = asked or " or ".join(f"{found.name} ({found.title})" for found in guessed) or "unknown"
    # What is guessed stands, but for what is asked.
    known = asdict(arguments.AskedCamera(camera=asked).known)
    name = asked or next((found.name for found in guessed), None)
    is_whole = pixels.shape == (image.height, image.width)
    if name and is_whole and (rows := read_camera_file(name).telemetry_rows(pixels)):
        return _recording(path, topic, asked, replace(camera, telemetry_rows=rows))
    parts = ", ".join(f"{name} {getattr(seen.pattern, name):.3g}" for name in _PATTERNS)
    words = ["ros2", "launch", "difiisr_ros", "sr.launch.py", f"image:={bags.raw_topic(topic)}"]
    words += [f"transport:={topic.rpartition('/')[2]}"] if topic != bags.raw_topic(topic) else []
    words += [f"camera:={name}"] if name else []
    words += [f"camera_info:={info}"] if info not in (None, beside) else []
    words += [f"{key}:={given}" for key, given in asdict(camera).items() if given != known[key]]
    facts = {
        "topic": f"{topic}, {count} images",
        "encoding": encoding,
        "size": f"{image.width}x{image.height}",
        "rate": _rate(times),
        "span": f"{seen.span:.6g} counts, 0.2 to 99.8 %",
        "measured": f"{seen.coldest:.6g} to {seen.hottest:.6g} counts",
        "range": f"{seen.range.lo:.6g} to {seen.range.hi:.6g} counts",
        "noise": f"{seen.noise:.4g} counts, {seen.noise_percent:.2f} % of the span",
        "pattern": f"{parts} counts",
        "invalid": f"{seen.invalid_count} pixels",
        "events": f"{stream.events.text} in {len(times)} frames",
        "camera": likely,
        "camera_info": info or ", ".join(infos) or "none",
        "damaged": fault,
        "refused": refused,
        "launch": shlex.join(words),
    }
    return {name: value for name, value in facts.items() if value}


def _rate(times: list[tuple[int, int]]) -> str:
    """Of frames with their stamps and times in the recording, nanoseconds; stamps come first."""
    for clock in zip(*times, strict=True):
        periods = np.diff(clock)
        if len(periods) and np.median(periods) > 0:
            return f"{1e9 / np.median(periods):.3g} Hz"
    return "unknown"


def _profile(upscaler: Upscaler, height: int, width: int) -> list[str]:
    """Where the milliseconds of mono16 frames go, stage by stage.

    On the GPU a stage lasts from its first kernel to its last. ``network`` is the part of ``tiles``
    that is not cutting and blending, ``frame`` the whole. A slow model is given fewer frames.
    """
    rng, stream = np.random.default_rng(0), Stream()
    counts = 22000 + np.add.outer(np.arange(height), np.arange(width)) % 400
    frames = (counts + rng.integers(0, 20, (_FRAMES, *counts.shape))).astype(np.uint16)
    for frame in frames[:_WARM_UP_FRAMES]:
        started = time.monotonic()
        upscaler(frame, stream)
        took = time.monotonic() - started
    count = max(_FEWEST_FRAMES, min(_FRAMES, int(_PATIENCE / max(took, 1e-6))))
    gpu = [ProfilerActivity.CUDA] if upscaler.device.startswith("cuda") else []
    with profile(activities=[ProfilerActivity.CPU, *gpu]) as profiler:
        for frame in frames[:count]:
            upscaler(frame, stream)
    stages = [event for event in profiler.events() if event.name.startswith(STAGE)]
    on_cpu = [event for event in stages if event.device_type == DeviceType.CPU]
    begun = [e.time_range.start for e in on_cpu if e.name == STAGE + "frame"]
    times: dict[str, NDArray] = defaultdict(lambda: np.zeros((2, count)))  # CPU, GPU; frames
    for event in stages:  # a stage may come several times per frame
        frame = np.searchsorted(begun, event.time_range.start, "right") - 1
        on_device = int(event.device_type == DeviceType.CUDA)
        times[event.name][on_device, frame] += event.time_range.elapsed_us() / 1e3
    lines = [
        f"{width}x{height} mono16, median ms per frame with the profiler running",
        f"{'stage':<12} {'CPU':>8} {'GPU':>8}",
    ]
    for name, (host, device) in zip(times, np.median([*times.values()], axis=2), strict=True):
        stage = name.removeprefix(STAGE)
        stage = "  network" if stage == "network" else stage  # a part of the tiles
        lines.append(f"{stage:<12} {host:8.2f} {f'{device:.2f}' if device else '-':>8}")
    return lines


def _parity(size: Literal["tiny", "full"], folder: Path) -> dict[str, Any]:
    from difiisr_models.published.parity import TOLERANCE, run_parity

    lines = []
    for row in run_parity(size, folder):
        ties = f", {row.ties_settled} ties settled as recorded" if row.ties_settled else ""
        verdict = "ok" if row.passed else "FAILED"
        lines.append(f"{row.name}: {row.max_abs_diff:.1e} {verdict}{ties}")
    return {"parity": [*lines, f"largest absolute difference allowed: {TOLERANCE:.0e}"]}
