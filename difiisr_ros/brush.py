"""A brush that paints antialiased shapes into a temperature image, in metres."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Kelvin = float | Callable[[Array], Array]
Point = tuple[float, float]


class Brush:
    """Paints into a temperature image; coordinates are metres from an origin, to the side and up.

    A pixel is covered by ``clip(0.5 - distance, 0, 1)``, where the signed distance to the edge is
    in pixels and negative inside. A temperature is a number, or a function of the metres aside.

    Args:
        image: ``(H, W)``, kelvin; painted in place.
        x: column of the origin, pixel centres.
        y: row of the origin.
        unit: pixels per metre.
        ahead: 1: metres to the side count to the right; -1: to the left.
    """

    def __init__(self, image: Array, x: float, y: float, unit: float, ahead: int = 1) -> None:
        self.image, self.x, self.y, self.unit, self.ahead = image, x, y, unit, ahead

    def line(
        self, start: Point, end: Point, radius: float, kelvin: Kelvin, opacity: float = 1.0
    ) -> None:
        """All points within ``radius`` of a segment."""
        (ax, ay), (bx, by), radius = self._pixel(start), self._pixel(end), radius * self.unit
        dx, dy = bx - ax, by - ay

        def distance(x: Array, y: Array) -> Array:
            along = ((x - ax) * dx + (y - ay) * dy) / max(dx * dx + dy * dy, 1e-9)
            along = np.clip(along, 0.0, 1.0)
            return np.hypot(x - ax - along * dx, y - ay - along * dy) - radius

        self._paint(distance, ((ax, ay), (bx, by)), radius, kelvin, opacity)

    def dot(self, centre: Point, radius: float, kelvin: Kelvin) -> None:
        """A disk."""
        self.line(centre, centre, radius, kelvin)

    def box(self, foot: Point, top: Point, kelvin: Kelvin, opacity: float = 1.0) -> None:
        """An upright rectangle, from its lower corner behind to its upper one ahead."""
        (x0, y0), (x1, y1) = foot, top
        self.polygon([(x0, y0), (x0, y1), (x1, y1), (x1, y0)], kelvin, opacity)

    def polygon(self, corners: Sequence[Point], kelvin: Kelvin, opacity: float = 1.0) -> None:
        """A convex polygon; corners from behind over the top to ahead."""
        points = [self._pixel(corner) for corner in corners][:: self.ahead]

        def distance(x: Array, y: Array) -> Array:
            sides = []
            for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
                length = max(float(np.hypot(bx - ax, by - ay)), 1e-9)
                sides.append(((x - ax) * (by - ay) - (y - ay) * (bx - ax)) / length)
            return np.maximum.reduce(sides)

        self._paint(distance, points, 0.0, kelvin, opacity)

    def _pixel(self, point: Point) -> Point:
        return self.x + self.ahead * point[0] * self.unit, self.y - point[1] * self.unit

    def _paint(
        self,
        distance: Callable[[Array, Array], Array],
        points: Sequence[Point],
        margin: float,
        kelvin: Kelvin,
        opacity: float,
    ) -> None:
        """Paint a shape that lies within ``margin`` px of the box around ``points``."""
        least, most = np.min(points, axis=0) - margin - 1, np.max(points, axis=0) + margin + 2
        x0, y0 = np.maximum(np.floor(least), 0).astype(int)
        x1, y1 = np.minimum(np.ceil(most), self.image.shape[::-1]).astype(int)
        if x0 >= x1 or y0 >= y1:
            return
        y, x = np.mgrid[y0:y1, x0:x1].astype(np.float32)
        cover = opacity * np.clip(0.5 - distance(x, y), 0.0, 1.0)
        if callable(kelvin):
            kelvin = kelvin((x - self.x) * self.ahead / self.unit)
        window = self.image[y0:y1, x0:x1]
        window += cover * (kelvin - window)
