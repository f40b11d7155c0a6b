"""Painting of antialiased shapes into a temperature image.

A shape is its bounding box and its signed distance in pixels (negative inside); a pixel is covered
by ``clip(0.5 - distance, 0, 1)``. Coordinates are pixel centres, x to the right, y down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Kelvin = float | Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Shape:
    """Signed distance (px) as a function of x and y arrays, and the box outside which it is > 0."""

    distance: Callable[[Array, Array], Array]
    left: float
    top: float
    right: float
    bottom: float


def capsule(ax: float, ay: float, bx: float, by: float, radius: float) -> Shape:
    """All points within ``radius`` px of the segment a-b; a circle when a == b."""

    def distance(x: Array, y: Array) -> Array:
        dx, dy = bx - ax, by - ay
        along = ((x - ax) * dx + (y - ay) * dy) / max(dx * dx + dy * dy, 1e-9)
        along = np.clip(along, 0.0, 1.0)
        return np.hypot(x - ax - along * dx, y - ay - along * dy) - radius

    return Shape(
        distance,
        min(ax, bx) - radius,
        min(ay, by) - radius,
        max(ax, bx) + radius,
        max(ay, by) + radius,
    )


def box(left: float, top: float, right: float, bottom: float, radius: float = 0.0) -> Shape:
    """Axis-aligned rectangle with corners rounded by ``radius`` px."""

    def distance(x: Array, y: Array) -> Array:
        dx = np.abs(x - (left + right) / 2) - (right - left) / 2 + radius
        dy = np.abs(y - (top + bottom) / 2) - (bottom - top) / 2 + radius
        outside = np.hypot(np.maximum(dx, 0.0), np.maximum(dy, 0.0))
        return outside + np.minimum(np.maximum(dx, dy), 0.0) - radius

    return Shape(distance, left, top, right, bottom)


def convex(corners: list[tuple[float, float]]) -> Shape:
    """Convex polygon; corners in clockwise order as seen on the screen (y down)."""

    def distance(x: Array, y: Array) -> Array:
        sides = []
        for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
            length = max(float(np.hypot(bx - ax, by - ay)), 1e-9)
            sides.append(((x - ax) * (by - ay) - (y - ay) * (bx - ax)) / length)
        return np.maximum.reduce(sides)

    xs, ys = [c[0] for c in corners], [c[1] for c in corners]
    return Shape(distance, min(xs), min(ys), max(xs), max(ys))


def paint(image: Array, shape: Shape, kelvin: Kelvin, opacity: float = 1.0) -> None:
    """Cover ``image`` (H, W; kelvin) with a shape in place.

    ``kelvin`` is a number or a function of the x and y pixel arrays; what lies outside the image
    is cut off.
    """
    height, width = image.shape
    x0, x1 = max(int(np.floor(shape.left)) - 1, 0), min(int(np.ceil(shape.right)) + 2, width)
    y0, y1 = max(int(np.floor(shape.top)) - 1, 0), min(int(np.ceil(shape.bottom)) + 2, height)
    if x0 >= x1 or y0 >= y1:
        return
    y, x = np.mgrid[y0:y1, x0:x1].astype(np.float32)
    cover = opacity * np.clip(0.5 - shape.distance(x, y), 0.0, 1.0)
    window = image[y0:y1, x0:x1]
    window += cover * ((kelvin(x, y) if callable(kelvin) else kelvin) - window)
