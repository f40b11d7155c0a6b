"""What moves in the demo scene: persons and vehicles, drawn with plausible temperatures.

Sizes are metres, temperatures kelvin. Ambient is about 287 K on a cool evening: skin reads
305 K, clothes 295-300 K, tyres and engine hoods are warm, windows mirror the cold sky.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi, sin

import numpy as np
from numpy.typing import NDArray

from difiisr_ros.demo.shapes import Array, box, capsule, convex, paint


@dataclass(frozen=True)
class Place:
    """Where an actor stands in the image: foot point (px) and scale (px per metre)."""

    x: float
    y: float
    scale: float


@dataclass(frozen=True)
class Person:
    """A walker who crosses the view from side to side for ever.

    ``start`` and ``depth`` place the walker (m), ``speed`` is in m/s (negative: to the left),
    ``warmth`` is added to the temperature of the clothes (K).
    """

    start: float
    depth: float
    speed: float
    height: float
    warmth: float

    def draw(self, image: NDArray[np.float32], place: Place, seconds: float) -> None:
        """Paint the person into ``image`` (H, W; kelvin) in place."""
        unit = place.scale * self.height / 1.75
        stride = 2 * pi * abs(self.speed) / 1.4 * seconds + self.start
        heading = 1.0 if self.speed >= 0 else -1.0
        hip_x, hip_y = place.x, place.y - 0.88 * unit
        neck_y = place.y - 1.45 * unit
        clothes, skin = 297.0 + self.warmth, 305.5

        for side in (0.0, pi):
            swing = 0.28 * sin(stride + side)
            lift = 0.10 * max(sin(stride + side + pi / 2), 0.0)
            knee_x = hip_x + heading * (swing + 0.05) * 0.5 * unit
            foot_x = hip_x + heading * (swing - 0.4 * lift) * unit
            knee_y, foot_y = place.y - (0.46 + lift / 2) * unit, place.y - (0.05 + lift) * unit
            paint(image, capsule(hip_x, hip_y, knee_x, knee_y, 0.085 * unit), clothes - 1.5)
            paint(image, capsule(knee_x, knee_y, foot_x, foot_y, 0.06 * unit), clothes - 3.0)
            paint(
                image,
                capsule(foot_x, foot_y, foot_x + heading * 0.14 * unit, foot_y, 0.045 * unit),
                292.0,
            )
        paint(image, capsule(hip_x, hip_y, hip_x, neck_y, 0.16 * unit), clothes)
        paint(
            image,
            capsule(hip_x, neck_y + 0.15 * unit, hip_x, neck_y + 0.3 * unit, 0.09 * unit),
            clothes + 1.8,
        )
        for side in (0.0, pi):
            hand_x = hip_x - heading * 0.26 * sin(stride + side) * unit
            hand_y = place.y - 0.82 * unit
            paint(
                image,
                capsule(hip_x, neck_y + 0.08 * unit, hand_x, hand_y, 0.05 * unit),
                clothes - 0.8,
            )
            paint(image, capsule(hand_x, hand_y, hand_x, hand_y, 0.05 * unit), skin - 1.5)
        head_y = place.y - 1.63 * unit
        paint(image, capsule(hip_x, head_y, hip_x, head_y + 0.06 * unit, 0.1 * unit), skin)
        paint(
            image,
            capsule(hip_x, head_y - 0.05 * unit, hip_x, head_y - 0.05 * unit, 0.095 * unit),
            300.0,
        )


@dataclass(frozen=True)
class Vehicle:
    """A car that drives along the road for ever; fields as for :class:`Person`."""

    start: float
    depth: float
    speed: float
    height: float
    warmth: float

    def draw(self, image: NDArray[np.float32], place: Place, seconds: float) -> None:
        """Paint the car, seen from its side, into ``image`` (H, W; kelvin) in place."""
        del seconds  # a car has no gait; its place carries the motion
        unit = place.scale * self.height / 1.45
        ahead = 1.0 if self.speed >= 0 else -1.0
        body = 289.5 + 0.3 * self.warmth

        def x(metres: float) -> float:
            return place.x + ahead * metres * unit

        def y(metres: float) -> float:
            return place.y - metres * unit

        def span(back: float, top: float, front: float, bottom: float, radius: float) -> None:
            left, right = sorted((x(back), x(front)))
            paint(image, box(left, y(top), right, y(bottom), radius * unit), metal)

        def metal(px: Array, _py: Array) -> Array:
            """Body temperature: warm over the engine in front, cool behind."""
            forward = (px - place.x) * ahead / unit
            return body + (8.0 + self.warmth) / (1.0 + np.exp(-(forward - 1.3) / 0.25))

        def pane(corners: list[tuple[float, float]]) -> None:
            points = [(x(cx), y(cy)) for cx, cy in corners]
            paint(image, convex(points if ahead > 0 else points[::-1]), 279.0)

        left, right = sorted((x(-2.1), x(2.1)))
        paint(image, box(left, y(0.12), right, y(-0.1), 0.08 * unit), 294.0, opacity=0.6)
        span(-2.15, 0.88, 2.15, 0.28, 0.16)
        cabin = [(x(-1.6), y(0.85)), (x(-1.1), y(1.45)), (x(0.35), y(1.45)), (x(1.15), y(0.85))]
        paint(image, convex(cabin if ahead > 0 else cabin[::-1]), body - 1.5)
        pane([(-1.35, 0.9), (-0.98, 1.36), (-0.35, 1.36), (-0.35, 0.9)])
        pane([(-0.25, 0.9), (-0.25, 1.36), (0.3, 1.36), (0.9, 0.9)])
        for wheel in (-1.35, 1.35):
            centre = (x(wheel), y(0.31), x(wheel), y(0.31))
            paint(image, capsule(*centre, 0.32 * unit), 299.0)
            paint(image, capsule(*centre, 0.17 * unit), 293.0)
            paint(image, capsule(*centre, 0.08 * unit), 312.0 + self.warmth)
        paint(image, capsule(x(2.1), y(0.65), x(2.1), y(0.65), 0.07 * unit), 305.0)
        paint(image, capsule(x(-2.2), y(0.27), x(-2.3), y(0.27), 0.06 * unit), 325.0)
        plume = capsule(x(-2.35), y(0.27), x(-2.8), y(0.32), 0.11 * unit)
        paint(image, plume, 300.0, opacity=0.35)
