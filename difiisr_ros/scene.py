"""A procedural thermal street scene with a known truth, and its recording: what the demo looks at.

The truth is rendered at 640x480 in kelvin: a street on a cool evening, ambient about 287 K, with
houses, lamps, persons and cars. The camera sees it through blurring optics and a 160x120 detector
(each pixel integrates 4x4 of the truth), with white noise (NETD) and fixed row and column
patterns, and reports TLinear counts: 0.01 K each, so 29000 counts are 290 K. The same seed gives
the same frames, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sin
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from difiisr_ros.bags import (
    CAMERA_INFO_TYPE,
    IMAGE_TYPE,
    STORE,
    Message,
    image_bytes,
    ros_topic,
    write_bag,
)
from difiisr_ros.brush import Array, Brush

SCALE = 4
WIDTH, HEIGHT = 160, 120
FRAME_RATE = 9.0
KELVIN_PER_COUNT = 0.01
FOCAL = 190.0  # pixels of the 160x120 detector

IMAGE_TOPIC, INFO_TOPIC = "/thermal/image_raw", "/thermal/camera_info"
FRAME_ID = "thermal_optical_frame"
START = 1_700_000_000_000_000_000  # ns; fixed, so that the same seed gives the same bag

_HORIZON = 150.0  # row of the truth where the ground meets the sky
_CAMERA_HEIGHT = 5.0  # metres above the ground
_ROAD = (20.0, 32.0)  # metres from the camera
_PAVEMENT = (14.0, 19.5)

# Flaws of the camera: blur in pixels of the truth, the others in kelvin
_OPTICS_SIGMA = 1.8
_NETD = 0.05
_COLUMN_PATTERN = 0.04
_ROW_PATTERN = 0.03
_ROW_FLICKER = 0.015


class Scene:
    """Frames of the street, by index.

    Args:
        seed: chooses texture, actors and noise.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        rng = np.random.default_rng(seed)
        self._background = _street(rng)
        self._actors = sorted(_actors(rng), key=lambda actor: -actor.depth)
        self._columns = rng.normal(0.0, _COLUMN_PATTERN, (1, WIDTH))
        self._rows = rng.normal(0.0, _ROW_PATTERN, (HEIGHT, 1))

    def truth(self, index: int) -> NDArray[np.float32]:
        """Frame ``index`` before the camera: (480, 640) float32, kelvin."""
        image = self._background.copy()
        for actor in self._actors:
            actor.draw_at(image, index / FRAME_RATE)
        return image

    def frame(self, index: int) -> NDArray[np.uint16]:
        """Frame ``index`` as the camera reports it: (120, 160) uint16 counts of 0.01 K."""
        rng = np.random.default_rng((self.seed, index))
        kelvin = _integrate(_blur(self.truth(index))) + self._columns + self._rows
        kelvin = kelvin + rng.normal(0.0, _ROW_FLICKER, (HEIGHT, 1))
        kelvin = kelvin + rng.normal(0.0, _NETD, (HEIGHT, WIDTH))
        return np.clip(np.rint(kelvin / KELVIN_PER_COUNT), 0, 65535).astype(np.uint16)


def write_scene_bag(target: Path, frames: int, seed: int = 0, force: bool = False) -> None:
    """Write ``frames`` frames of the scene at 9 Hz as mono16 to the rosbag2 folder ``target``.

    Raises:
        FileExistsError: ``target`` exists and is not to be replaced.
    """
    with write_bag(target, force=force) as writer:
        scene = Scene(seed)
        for index in range(frames):
            at = START + round(index / FRAME_RATE * 1e9)
            time = STORE.types["builtin_interfaces/msg/Time"](*divmod(at, 1_000_000_000))
            header = STORE.types["std_msgs/msg/Header"](stamp=time, frame_id=FRAME_ID)
            info = bytes(STORE.serialize_cdr(camera_info(header), CAMERA_INFO_TYPE))
            writer.write(Message(ros_topic(INFO_TOPIC, CAMERA_INFO_TYPE), at, info))
            image = image_bytes(header, scene.frame(index), "mono16")
            writer.write(Message(ros_topic(IMAGE_TOPIC, IMAGE_TYPE), at, image))


def frame_of_stamp(stamp: int) -> int:
    """Index of the frame with that header stamp, nanoseconds."""
    return round((stamp - START) * FRAME_RATE / 1e9)


def camera_info(header: Any) -> Any:
    """CameraInfo of the scene's pinhole camera: no distortion, principal point in the middle."""
    cx, cy = (WIDTH - 1) / 2, (HEIGHT - 1) / 2
    return STORE.types[CAMERA_INFO_TYPE](
        header=header,
        height=HEIGHT,
        width=WIDTH,
        distortion_model="plumb_bob",
        d=np.zeros(5),
        k=np.array([FOCAL, 0, cx, 0, FOCAL, cy, 0, 0, 1.0]),
        r=np.eye(3).reshape(-1),
        p=np.array([FOCAL, 0, cx, 0, 0, FOCAL, cy, 0, 0, 0, 1.0, 0]),
        binning_x=0,
        binning_y=0,
        roi=STORE.types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False),
    )


def _blur(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the optics make of an (H, W) image: Gaussian blur; edges are repeated."""
    radius = int(np.ceil(3 * _OPTICS_SIGMA))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / _OPTICS_SIGMA) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for _ in range(2):  # along the rows, then, transposed, along the columns
        padded = np.pad(image, [(0, 0), (radius, radius)], mode="edge")
        image = (sliding_window_view(padded, len(weights), axis=1) @ weights).T
    return image


def _integrate(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """What each detector pixel collects: means of 4x4 blocks, (4H, 4W) -> (H, W)."""
    height, width = image.shape[0] // SCALE, image.shape[1] // SCALE
    return image.reshape(height, SCALE, width, SCALE).mean(axis=(1, 3))


class Actor(NamedTuple):
    """What crosses the view from side to side for ever.

    Attributes:
        draw: paints it with a brush at its foot, given its gait (rad) and its warmth.
        start: where it is at the beginning, metres to the right.
        depth: metres from the camera.
        speed: m/s; negative: to the left.
        size: 1 is as tall as ``draw`` paints it.
        warmth: added to its temperature, kelvin.
    """

    draw: Callable[[Brush, float, float], None]
    start: float
    depth: float
    speed: float
    size: float
    warmth: float

    def draw_at(self, image: Array, seconds: float) -> None:
        """Paint the actor into the truth ``image`` in place."""
        reach = WIDTH / 2 / FOCAL * self.depth + 2.5  # who leaves on one side comes back
        x = (self.start + self.speed * seconds + reach) % (2 * reach) - reach
        ahead = 1 if self.speed >= 0 else -1
        gait = 2 * pi * abs(self.speed) / 1.4 * seconds + self.start
        self.draw(_brush_at(image, x, self.depth, self.size, ahead), gait, self.warmth)


def _brush_at(image: Array, x: float, depth: float, size: float = 1.0, ahead: int = 1) -> Brush:
    scale = FOCAL * SCALE / depth  # px per metre
    column = WIDTH * SCALE / 2 + x * scale
    return Brush(image, column, _HORIZON + _CAMERA_HEIGHT * scale, scale * size, ahead)


def _person(brush: Brush, gait: float, warmth: float) -> None:
    """A walker 1.75 m tall: skin reads 305 K, clothes 295 to 300 K."""
    clothes, skin, hip, neck = 297.0 + warmth, 305.5, (0.0, 0.88), (0.0, 1.45)
    for side in (gait, gait + pi):
        swing, lift = 0.28 * sin(side), 0.10 * max(sin(side + pi / 2), 0.0)
        knee = ((swing + 0.05) * 0.5, 0.46 + lift / 2)
        foot = (swing - 0.4 * lift, 0.05 + lift)
        brush.line(hip, knee, 0.085, clothes - 1.5)
        brush.line(knee, foot, 0.06, clothes - 3.0)
        brush.line(foot, (foot[0] + 0.14, foot[1]), 0.045, 292.0)
    brush.line(hip, neck, 0.16, clothes)
    brush.line((0, 1.30), (0, 1.15), 0.09, clothes + 1.8)
    for side in (gait, gait + pi):
        hand = (-0.26 * sin(side), 0.82)
        brush.line((0, 1.37), hand, 0.05, clothes - 0.8)
        brush.dot(hand, 0.05, skin - 1.5)
    brush.line((0, 1.63), (0, 1.57), 0.1, skin)
    brush.dot((0, 1.68), 0.095, 300.0)


def _car(brush: Brush, _gait: float, warmth: float) -> None:
    """A car 1.45 m tall, from its side: tyres and hood are warm, windows mirror the cold sky."""
    body = 289.5 + 0.3 * warmth

    def metal(forward: Array) -> Array:
        return body + (8.0 + warmth) / (1.0 + np.exp(-(forward - 1.3) / 0.25))

    brush.box((-2.1, -0.1), (2.1, 0.12), 294.0, opacity=0.6)
    brush.box((-2.15, 0.28), (2.15, 0.88), metal)
    brush.polygon([(-1.6, 0.85), (-1.1, 1.45), (0.35, 1.45), (1.15, 0.85)], body - 1.5)
    brush.polygon([(-1.35, 0.9), (-0.98, 1.36), (-0.35, 1.36), (-0.35, 0.9)], 279.0)
    brush.polygon([(-0.25, 0.9), (-0.25, 1.36), (0.3, 1.36), (0.9, 0.9)], 279.0)
    for wheel in (-1.35, 1.35):
        for radius, kelvin in ((0.32, 299.0), (0.17, 293.0), (0.08, 312.0 + warmth)):
            brush.dot((wheel, 0.31), radius, kelvin)
    brush.dot((2.1, 0.65), 0.07, 305.0)
    brush.line((-2.2, 0.27), (-2.3, 0.27), 0.06, 325.0)
    brush.line((-2.35, 0.27), (-2.8, 0.32), 0.11, 300.0, opacity=0.35)


def _actors(rng: np.random.Generator) -> list[Actor]:
    actors = []
    for depth, side in ((13.0, 0.2), (15.5, -0.1), (17.5, -0.25), (36.0, 0.05), (48.0, -0.15)):
        start = (side + rng.uniform(-0.08, 0.08)) * depth
        speed = float(rng.choice((-1, 1))) * rng.uniform(0.8, 1.5)
        size, warmth = rng.uniform(1.6, 1.85) / 1.75, rng.uniform(-1.5, 2.5)
        actors.append(Actor(_person, start, depth, speed, size, warmth))
    for depth, direction in ((23.5, 1), (29.0, -1)):
        start, speed = rng.uniform(-0.3, 0.3) * depth, direction * rng.uniform(2.5, 4.5)
        size, warmth = rng.uniform(1.4, 1.7) / 1.45, rng.uniform(-2.0, 4.0)
        actors.append(Actor(_car, start, depth, speed, size, warmth))
    return actors


def _value_noise(rng: np.random.Generator, u: Array, v: Array) -> Array:
    """Smooth noise in [-1, 1] with one random value per unit square of (u, v)."""
    lattice = rng.uniform(-1.0, 1.0, (64, 64))
    iu, iv = np.floor(u).astype(int), np.floor(v).astype(int)
    fu, fv = u - iu, v - iv
    fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)

    def corner(du: int, dv: int) -> Array:
        return lattice[(iu + du) % 64, (iv + dv) % 64]

    low = corner(0, 0) * (1 - fu) + corner(1, 0) * fu
    high = corner(0, 1) * (1 - fu) + corner(1, 1) * fu
    return low * (1 - fv) + high * fv


def _texture(rng: np.random.Generator, x: Array, z: Array, pixels: Array) -> Array:
    """Noise of several sizes on the ground; details smaller than two pixels fade out."""
    total = np.zeros_like(x)
    for size in (4.0, 1.5, 0.6, 0.25):
        visible = np.clip(size * pixels / 2 - 0.5, 0.0, 1.0)
        total += visible * size**0.5 * _value_noise(rng, x / size, z / size)
    return total


def _street(rng: np.random.Generator) -> NDArray[np.float32]:
    """Everything that stands still: (480, 640) float32, kelvin."""
    height, width = HEIGHT * SCALE, WIDTH * SCALE
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    image = 275.0 + 7.0 * np.clip(y / _HORIZON, 0.0, 1.0) ** 1.5
    image += 1.2 * _value_noise(rng, x / 150, y / 40) * np.clip(1 - y / _HORIZON, 0.0, 1.0)

    crowns = _HORIZON - 26 + 10 * _value_noise(rng, x / 55, 0 * y)
    crowns = crowns + 5 * _value_noise(rng, x / 14, 0 * y)
    leaves = 284.0 + 0.8 * _value_noise(rng, x / 9, y / 7) + 0.5 * _value_noise(rng, x / 4, y / 4)
    image += np.clip(y - crowns + 0.5, 0.0, 1.0) * (leaves - image)

    scale = np.maximum(y - _HORIZON, 1.0) / _CAMERA_HEIGHT  # px per metre of a ground row
    depth, across = FOCAL * SCALE / scale, (x - width / 2) / scale
    ground = 285.5 + 0.8 * _texture(rng, across, depth, scale)
    stone = 289.2 + 0.25 * _texture(rng, across, depth, scale)
    ground = _strip(ground, depth, scale, _PAVEMENT, stone)
    slabs = np.minimum(across % 1.2, (depth - _PAVEMENT[0]) % 1.1) < 0.07
    ground -= 0.9 * slabs * (depth > _PAVEMENT[0]) * (depth < _PAVEMENT[1])
    asphalt = 292.0 + 0.3 * _texture(rng, across, depth, scale)
    asphalt += 0.8 * np.exp(-(((depth - 23.5) % 5.5 - 2.7) ** 2) / 0.5)  # warm wheel tracks
    ground = _strip(ground, depth, scale, _ROAD, asphalt)
    dashes = (np.abs(depth - 26.2) < 0.12) & (across % 6.0 < 3.0)
    edges = (np.abs(depth - _ROAD[0] - 0.4) < 0.1) | (np.abs(depth - _ROAD[1] + 0.4) < 0.15)
    ground -= 1.6 * (dashes | edges)
    image += np.clip(y - _HORIZON + 0.5, 0.0, 1.0) * (ground - image)

    image = image.astype(np.float32)
    for left, away, wide, tall in ((-34.0, 62.0, 21.0, 13.0), (10.0, 48.0, 17.0, 9.0)):
        _house(_brush_at(image, left, away), rng, wide, tall)
    for side in (-8.0, 3.5, 15.0):
        lamp = _brush_at(image, side, 33.0)
        lamp.line((0, 0), (0, 5.6), 0.06, 286.2)
        lamp.line((0, 5.6), (0.9, 5.6), 0.05, 286.0)
        lamp.line((0.9, 5.6), (1.3, 5.6), 0.09, 303.0)
    return image


def _strip(
    ground: Array, depth: Array, scale: Array, reach: tuple[float, float], kelvin: Array
) -> Array:
    """Lay ``kelvin`` over the ground between two distances, with antialiased borders."""
    rows = scale * scale / (FOCAL * SCALE) * _CAMERA_HEIGHT  # rows per metre of depth
    inside = np.minimum(depth - reach[0], reach[1] - depth) * rows
    return ground + np.clip(inside + 0.5, 0.0, 1.0) * (kelvin - ground)


def _house(brush: Brush, rng: np.random.Generator, wide: float, tall: float) -> None:
    brush.box((0, 0), (wide, tall), 287.5)
    for course in np.arange(0.3, tall, 0.6):
        brush.box((0, course), (wide, course + 0.12), 287.1)
    brush.box((-0.3, tall - 0.5), (wide + 0.3, tall), 283.0)
    for floor in np.arange(1.0, tall - 2.0, 3.0):
        for column in np.arange(1.2, wide - 1.5, 2.6):
            brush.box((column - 0.12, floor - 0.15), (column + 1.32, floor + 1.75), 289.0)
            glass = float(rng.choice((279.5, 281.0, 292.5)))
            brush.box((column, floor), (column + 1.2, floor + 1.6), glass)
            brush.box((column + 0.55, floor), (column + 0.65, floor + 1.6), 287.0)
    brush.box((wide / 2 - 0.7, 0), (wide / 2 + 0.7, 2.3), 294.0)
