"""A procedural thermal street scene with a known truth: what the demo looks at.

The truth is rendered at 640x480 in kelvin. The camera sees it through blurring optics and a
160x120 detector (each pixel integrates 4x4 of the truth), with white noise (NETD) and fixed
row and column patterns, and reports TLinear counts: 0.01 K each, so 29000 counts are 290 K.
The same seed gives the same frames, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from difiisr_ros.demo.actors import Person, Place, Vehicle
from difiisr_ros.demo.shapes import Array, box, capsule, paint

SCALE = 4
WIDTH, HEIGHT = 160, 120
FRAME_RATE = 9.0
KELVIN_PER_COUNT = 0.01
FOCAL = 190.0  # pixels of the 160x120 detector

_HORIZON = 150.0  # row of the truth where the ground meets the sky
_CAMERA_HEIGHT = 5.0  # metres above the ground
_ROAD = (20.0, 32.0)  # metres from the camera
_PAVEMENT = (14.0, 19.5)


@dataclass(frozen=True)
class SensorSettings:
    """The camera's flaws; temperatures in kelvin, lengths in pixels of the truth."""

    optics_sigma: float = 1.8
    netd: float = 0.05
    column_pattern: float = 0.04
    row_pattern: float = 0.03
    row_flicker: float = 0.015


class Scene:
    """Frames of the street, by index.

    Args:
        seed: chooses texture, actors and noise.
        sensor: flaws of the simulated camera.
    """

    def __init__(self, seed: int = 0, sensor: SensorSettings | None = None) -> None:
        self.seed = seed
        self.sensor = sensor or SensorSettings()
        rng = np.random.default_rng(seed)
        self._background = _street(rng)
        self._actors = _actors(rng)
        self._columns = rng.normal(0.0, self.sensor.column_pattern, (1, WIDTH))
        self._rows = rng.normal(0.0, self.sensor.row_pattern, (HEIGHT, 1))

    def truth(self, index: int) -> NDArray[np.float32]:
        """Frame ``index`` before the camera: (480, 640) float32, kelvin."""
        seconds = index / FRAME_RATE
        image = self._background.copy()
        for actor in sorted(self._actors, key=lambda a: -a.depth):
            actor.draw(image, _place(actor, seconds), seconds)
        return image

    def seen(self, index: int) -> NDArray[np.float32]:
        """Frame ``index`` behind optics and detector, without noise: (120, 160), kelvin."""
        return integrate(blur(self.truth(index), self.sensor.optics_sigma))

    def frame(self, index: int) -> NDArray[np.uint16]:
        """Frame ``index`` as the camera reports it: (120, 160) uint16 counts of 0.01 K."""
        rng = np.random.default_rng((self.seed, index))
        kelvin = self.seen(index) + self._columns + self._rows
        kelvin = kelvin + rng.normal(0.0, self.sensor.row_flicker, (HEIGHT, 1))
        kelvin = kelvin + rng.normal(0.0, self.sensor.netd, (HEIGHT, WIDTH))
        return np.clip(np.rint(kelvin / KELVIN_PER_COUNT), 0, 65535).astype(np.uint16)


def blur(image: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Gaussian blur of an (H, W) image with ``sigma`` in pixels; edges are repeated."""
    if sigma <= 0:
        return image
    radius = int(np.ceil(3 * sigma))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (0, 1):
        pad = [(radius, radius) if a == axis else (0, 0) for a in (0, 1)]
        padded = np.pad(image, pad, mode="edge")
        size = image.shape[axis]
        image = sum(
            w * np.take(padded, range(i, i + size), axis=axis) for i, w in enumerate(weights)
        )
    return image


def integrate(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """What each detector pixel collects: means of 4x4 blocks, (4H, 4W) -> (H, W)."""
    height, width = image.shape[0] // SCALE, image.shape[1] // SCALE
    return image.reshape(height, SCALE, width, SCALE).mean(axis=(1, 3))


def _project(x: float, depth: float) -> Place:
    scale = FOCAL * SCALE / depth
    return Place(WIDTH * SCALE / 2 + x * scale, _HORIZON + _CAMERA_HEIGHT * scale, scale)


def _place(actor: Person | Vehicle, seconds: float) -> Place:
    """Actors who leave on one side come back on the other."""
    reach = WIDTH * SCALE / 2 / (FOCAL * SCALE) * actor.depth + 2.5
    x = (actor.start + actor.speed * seconds + reach) % (2 * reach) - reach
    return _project(x, actor.depth)


def _actors(rng: np.random.Generator) -> list[Person | Vehicle]:
    people = [
        Person(
            start=float((side + rng.uniform(-0.08, 0.08)) * depth),
            depth=depth,
            speed=float(rng.choice((-1, 1)) * rng.uniform(0.8, 1.5)),
            height=float(rng.uniform(1.6, 1.85)),
            warmth=float(rng.uniform(-1.5, 2.5)),
        )
        for depth, side in ((13.0, 0.2), (15.5, -0.1), (17.5, -0.25), (36.0, 0.05), (48.0, -0.15))
    ]
    cars = [
        Vehicle(
            start=float(rng.uniform(-0.3, 0.3) * depth),
            depth=depth,
            speed=float(direction * rng.uniform(2.5, 4.5)),
            height=float(rng.uniform(1.4, 1.7)),
            warmth=float(rng.uniform(-2.0, 4.0)),
        )
        for depth, direction in ((23.5, 1), (29.0, -1))
    ]
    return [*people, *cars]


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

    crowns = (
        _HORIZON - 26 + 10 * _value_noise(rng, x / 55, 0 * y) + 5 * _value_noise(rng, x / 14, 0 * y)
    )
    leaves = 284.0 + 0.8 * _value_noise(rng, x / 9, y / 7) + 0.5 * _value_noise(rng, x / 4, y / 4)
    image += np.clip(y - crowns + 0.5, 0.0, 1.0) * (leaves - image)

    scale = np.maximum(y - _HORIZON, 1.0) / _CAMERA_HEIGHT  # px per metre of a ground row
    depth, across = FOCAL * SCALE / scale, (x - width / 2) / scale
    ground = 285.5 + 0.8 * _texture(rng, across, depth, scale)
    ground = _strip(
        ground, depth, scale, _PAVEMENT, 289.2 + 0.25 * _texture(rng, across, depth, scale)
    )
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
    for left, depth_m, wide, tall in ((-34.0, 62.0, 21.0, 13.0), (10.0, 48.0, 17.0, 9.0)):
        _house(image, rng, left, depth_m, wide, tall)
    for side in (-8.0, 3.5, 15.0):
        _lamp(image, side)
    return image


def _strip(
    ground: Array, depth: Array, scale: Array, reach: tuple[float, float], kelvin: Array
) -> Array:
    """Lay ``kelvin`` over the ground between two distances, with antialiased borders."""
    rows = scale * scale / (FOCAL * SCALE) * _CAMERA_HEIGHT  # rows per metre of depth
    inside = np.minimum(depth - reach[0], reach[1] - depth) * rows
    return ground + np.clip(inside + 0.5, 0.0, 1.0) * (kelvin - ground)


def _house(
    image: NDArray[np.float32],
    rng: np.random.Generator,
    left: float,
    depth: float,
    wide: float,
    tall: float,
) -> None:
    base = _project(left, depth)

    def rectangle(x0: float, y0: float, x1: float, y1: float, kelvin: float) -> None:
        s = base.scale
        shape = box(base.x + x0 * s, base.y - y1 * s, base.x + x1 * s, base.y - y0 * s)
        paint(image, shape, kelvin)

    rectangle(0, 0, wide, tall, 287.5)
    for course in np.arange(0.3, tall, 0.6):
        rectangle(0, course, wide, course + 0.12, 287.1)
    rectangle(-0.3, tall - 0.5, wide + 0.3, tall, 283.0)
    for floor in np.arange(1.0, tall - 2.0, 3.0):
        for column in np.arange(1.2, wide - 1.5, 2.6):
            rectangle(column - 0.12, floor - 0.15, column + 1.32, floor + 1.75, 289.0)
            rectangle(
                column, floor, column + 1.2, floor + 1.6, float(rng.choice((279.5, 281.0, 292.5)))
            )
            rectangle(column + 0.55, floor, column + 0.65, floor + 1.6, 287.0)
    rectangle(wide / 2 - 0.7, 0, wide / 2 + 0.7, 2.3, 294.0)


def _lamp(image: NDArray[np.float32], across: float) -> None:
    foot = _project(across, 33.0)
    top, arm = foot.y - 5.6 * foot.scale, foot.x + 0.9 * foot.scale
    paint(image, capsule(foot.x, foot.y, foot.x, top, 0.06 * foot.scale), 286.2)
    paint(image, capsule(foot.x, top, arm, top, 0.05 * foot.scale), 286.0)
    paint(image, capsule(arm, top, arm + 0.4 * foot.scale, top, 0.09 * foot.scale), 303.0)
