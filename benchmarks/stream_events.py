"""Simulated streams with every event of a camera, and an hour without: ``stream_events.json``.

``python -m benchmarks.stream_events [--minutes 60] [--out FILE]`` in the checkout. A noisy 160x120
camera pans over landscapes of 1/f texture, edges and hot objects that move; each kind of event
comes at several sizes, noises and speeds of the pan. Sizes are in shares of the span.
"""

import time
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import cyclopts
import numpy as np
from tqdm import tqdm

from difiisr_models.events import EventDetector
from difiisr_models.files import write_json

HEIGHT, WIDTH, RATE = 120, 160, 9
NOISES, SPEEDS = (0.005, 0.01, 0.02, 0.03), (0.0, 1.0, 4.0, 10.0)  # of the span; pixels a frame
SIZES = {
    "repeat": (1, 4),
    "offset": (-1.5, -0.3, -0.08, 0.08, 0.3, 1.5),
    "gain": (0.3, 0.6, 0.85, 1.2, 2.5),
    "flat": (-1.0, 0.0, 1.0),
    "flicker": (0.1, 0.2, -0.2),
    "cut": (0.0, 0.5),
}
AT = 12  # frame of the event


def landscape(rng: np.random.Generator, height: int = 400, width: int = 1200) -> np.ndarray:
    """A scene of span about 1."""
    down, right = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    power = 1 / np.maximum(np.hypot(down, right), 1 / width) ** rng.uniform(1.2, 1.8)
    phase = rng.normal(size=(2, *power.shape))
    scene = np.fft.irfft2(power * (phase[0] + 1j * phase[1]), (height, width))
    scene /= np.ptp(np.quantile(scene, (0.01, 0.99)))
    scene += rng.uniform(-0.4, 0.4) * np.linspace(0, 1, height)[:, None]  # ground and sky
    for _ in range(60):
        top, left = rng.integers(0, height), rng.integers(0, width)
        tall, wide = rng.integers(5, 80, 2)
        scene[top : top + tall, left : left + wide] += rng.normal(0, 0.2)
    return (scene / np.ptp(np.quantile(scene, (0.002, 0.998)))).astype(np.float32)


def pan(
    rng: np.random.Generator, frames: int, noise: float, speed: float, minute: int = 60 * RATE
) -> Iterator[np.ndarray]:
    """Frames ``(120, 160)`` of a camera that pans, before noise is rounded, span about 1.

    ``noise``: of a pixel, share of the span; rows, columns and pixels have offsets of half of it;
    ``speed``: typical, pixels a frame; after ``minute`` frames another landscape is begun.
    """
    pattern = sum(rng.normal(0, noise / 2, s) for s in ((HEIGHT, 1), (1, WIDTH), (HEIGHT, WIDTH)))
    for first in range(0, frames, minute):
        scene = landscape(rng)
        room = np.array(scene.shape) - (HEIGHT, WIDTH) - 2
        place, velocity = rng.uniform(0, 1, 2) * room, np.zeros(2)
        objects = rng.uniform(-0.5, 1.5, (4, 2)) * (HEIGHT, WIDTH)
        paces, heats = rng.normal(0, 2, (4, 2)), rng.uniform(0.2, 1.5, 4)
        y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
        for _ in range(min(minute, frames - first)):
            velocity = 0.95 * velocity + rng.normal(0, 0.3 * speed, 2)
            place = place + velocity
            velocity = np.where((place < 0) | (place > room), -velocity, velocity)
            place = np.clip(place, 0, room)
            (top, left), (down, right) = place.astype(int), place % 1
            view = scene[top : top + HEIGHT + 1, left : left + WIDTH + 1]
            view = view[:-1] * (1 - down) + view[1:] * down
            frame = view[:, :-1] * (1 - right) + view[:, 1:] * right
            objects = objects + paces
            for (oy, ox), heat in zip(objects, heats, strict=True):
                frame = frame + heat * ((x - ox) ** 2 + 0.3 * (y - oy) ** 2 < 40)
            yield frame + pattern + rng.normal(0, noise, frame.shape)


def with_event(kind: str, size: float, noise: float, speed: float, seed: int) -> list[np.ndarray]:
    """Frames of span 1 with an event of that size from frame 12 on."""
    rng = np.random.default_rng(seed)
    frames = list(pan(rng, AT + 10, noise, speed))
    if kind == "repeat":
        frames[AT : AT + int(size)] = [frames[AT - 1]] * int(size)
    elif kind == "offset":
        frames[AT:] = [frame + size for frame in frames[AT:]]
    elif kind == "gain":
        frames[AT:] = [size * frame + 0.2 for frame in frames[AT:]]
    elif kind == "flat":
        shutter = np.median(frames[AT]) + size + 0.05 * np.linspace(-1, 1, WIDTH) ** 2
        frames[AT] = shutter + rng.normal(0, noise, (HEIGHT, WIDTH))
    elif kind == "flicker":
        frames[AT::2] = [(1 + size) * frame + size for frame in frames[AT::2]]
    else:
        frames[AT:] = [frame + size for frame in pan(rng, 10, noise, speed)]
    return frames


def counts(frame: np.ndarray, span: float = 800.0) -> np.ndarray:
    """A frame of span 1 as a 14-bit camera gives it, uint16."""
    return np.rint(4000 + span * frame).clip(0, 16383).astype(np.uint16)


def kinds(frames: Iterator[np.ndarray] | list[np.ndarray], span: float = 800.0) -> list[str]:
    """What the detector calls each of the frames, which are of span 1."""
    detector = EventDetector()
    return [detector.update(counts(frame, span)).kind for frame in frames]


def measure(*, minutes: float = 60.0, repeats: int = 2, out: Path | None = None) -> None:
    """Print, and write ``out``; ``repeats``: streams of each kind, size, noise and speed."""
    found = {}
    for kind, sizes in tqdm(SIZES.items(), disable=None):
        for size in sizes:
            right, others = 0, Counter[str]()
            cases = list(product(NOISES, SPEEDS, range(repeats)))
            for seed, (noise, speed, _) in enumerate(cases):
                seen = kinds(with_event(kind, size, noise, speed, seed))
                is_found = seen[AT + (3 if kind == "flicker" else 0)] == kind
                right += is_found
                others.update([] if is_found else [f"{seen[AT]} at {noise}, {speed}"])
                others.update(f"{k} elsewhere" for k in seen[1:AT] if k != "normal")
            found[f"{kind} {size}"] = {"streams": len(cases), "found": right, **others}
            print(f"{kind} {size}", found[f"{kind} {size}"])
    alarms, frames, started = Counter[str](), 0, time.perf_counter()
    each = round(minutes * 60 * RATE / len(NOISES) / len(SPEEDS))
    for seed, (noise, speed) in enumerate(product(NOISES, SPEEDS)):
        stream = pan(np.random.default_rng(1000 + seed), each, noise, speed, minute=each)
        counted = Counter(kinds(tqdm(stream, total=each, disable=None)))
        alarms.update({f"{k} at {noise}, {speed}": n for k, n in counted.items() if k != "normal"})
        frames += counted.total()
    hour = {"minutes": minutes, "frames": frames, "alarms": alarms}
    print(hour, f"{1e3 * (time.perf_counter() - started) / frames:.2f} ms a frame, simulated too")
    if out is not None:
        write_json(out, {"events": found, "without": hour})


if __name__ == "__main__":
    cyclopts.run(measure)
