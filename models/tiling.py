"""Cutting a frame into overlapping tiles and blending the results without a seam."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """A window of the frame: rows ``top:bottom``, columns ``left:right``, low resolution."""

    top: int
    bottom: int
    left: int
    right: int

    def cut(self, frame: Tensor) -> Tensor:
        """The window of ``frame (..., h, w)``."""
        return frame[..., self.top : self.bottom, self.left : self.right]


def plan_axis(length: int, tile: int, overlap: int, balanced: bool) -> list[tuple[int, int]]:
    """Spans of equal size that cover ``length`` with at least ``overlap`` shared by neighbours.

    Args:
        length: pixels to cover.
        tile: largest span.
        overlap: pixels shared by neighbours, at least.
        balanced: shrink the spans so that they overlap no more than asked; otherwise they keep
            the size ``tile`` and the last ones overlap more.

    Raises:
        ValueError: ``overlap`` is not smaller than half of ``tile``.
    """
    if not 0 <= 2 * overlap < tile:
        raise ValueError(
            f"overlap must be 0 or more and less than half the tile, got {overlap} of {tile}"
        )
    if length <= tile:
        return [(0, length)]
    count = -(-(length - overlap) // (tile - overlap))
    size = -(-(length + (count - 1) * overlap) // count) if balanced else tile
    starts = [round(i * (length - size) / (count - 1)) for i in range(count)]
    return [(start, start + size) for start in starts]


class Tiling:
    """How a frame is cut up, and the results of its tiles put together again.

    Overlaps are blended with linear ramps.

    Attributes:
        height: of the frame to cut, rows; not less than the frame given, which is padded to it.
        width: likewise, columns.
        tiles: all windows, row by row.
    """

    def __init__(
        self,
        size: tuple[int, int],
        tile: int,
        overlap: int,
        batch: int,
        multiple: int = 1,
        tile_shape: tuple[int, int, int] | None = None,
    ) -> None:
        """Cut a frame into overlapping tiles; see :func:`plan_axis`.

        Args:
            size: of the frame, (height, width).
            tile: largest side of a tile.
            overlap: pixels that neighbours share, at least; less where tiles are too small for it.
            batch: tiles per call of the model.
            multiple: sides of tiles are multiples of it.
            tile_shape: the only ``(batch, height, width)`` that the model takes; it overrules
                ``tile`` and ``batch``.
        """
        side = tile + -tile % multiple
        self._batch, *sides = tile_shape or (batch, side, side)
        self._is_full = tile_shape is not None  # every call takes exactly so many tiles
        pairs = zip(size, sides, strict=True)
        self.height, self.width = (max(p) if tile_shape else p[0] + -p[0] % multiple for p in pairs)
        self._overlap = min(overlap, (min(sides) - 1) // 2)
        is_balanced = tile_shape is None and multiple == 1
        rows, columns = (
            plan_axis(length, side, self._overlap, is_balanced)
            for length, side in zip((self.height, self.width), sides, strict=True)
        )
        self.tiles = tuple(Tile(*row, *column) for row in rows for column in columns)
        self._total: Tensor | None = None
        self._weights: Tensor | None = None

    def batches(self) -> Iterator[list[Tile]]:
        """The tiles, call by call; where calls must be full, the last tile is repeated."""
        for first in range(0, len(self.tiles), self._batch):
            places = list(self.tiles[first : first + self._batch])
            missing = self._batch - len(places) if self._is_full else 0
            yield places + places[-1:] * missing

    def add(self, places: list[Tile], results: Tensor) -> None:
        """Add results ``(n, D, th, tw)`` of the tiles at ``places``; a repeated one counts once."""
        if len(self.tiles) == 1:
            self._total = results[:1]
            return
        if self._total is None or self._weights is None:
            size = (self.height, self.width)
            self._total = results.new_zeros((1, results.shape[1], *size))
            self._weights = results.new_zeros(size)
        for place, result in zip(dict.fromkeys(places), results, strict=False):
            weight = self._weight(place, result)
            place.cut(self._total)[0] += weight * result
            place.cut(self._weights)[...] += weight

    def result(self) -> Tensor:
        """The whole, ``(1, D, h, w)``."""
        assert self._total is not None, "results come first"
        return self._total if self._weights is None else self._total / self._weights

    def _weight(self, place: Tile, like: Tensor) -> Tensor:
        """The tile's share of each pixel before normalisation, ``(th, tw)``.

        On a side that is not the frame's, a quarter of the overlap counts for nothing (the network
        saw a false border there) and a ramp rises over the middle half.
        """
        trim = self._overlap // 4
        ramp = self._overlap - 2 * trim + 1

        def axis(first: int, last: int, length: int) -> Tensor:
            position = torch.arange(first, last, device=like.device, dtype=like.dtype)
            full = torch.ones_like(position)
            from_first = (position - first + 1 - trim) / ramp if first > 0 else full
            from_last = (last - position - trim) / ramp if last < length else full
            return torch.minimum(from_first, from_last).clamp(0, 1)

        return torch.outer(
            axis(place.top, place.bottom, self.height), axis(place.left, place.right, self.width)
        )


def pad_to(frame: Tensor, height: int, width: int) -> Tensor:
    """Pad ``(1, C, h, w)`` below and right by mirror images to at least its own size."""
    for dim, wanted in ((2, height), (3, width)):
        size = frame.shape[dim]
        if wanted > size:
            period = 2 * (size - 1)
            index = torch.arange(wanted, device=frame.device) % period
            frame = frame.index_select(dim, torch.where(index < size, index, period - index))
    return frame
