"""Cutting a frame into overlapping tiles and blending the results without a seam."""

from __future__ import annotations

from collections.abc import Callable
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


def plan_tiles(height: int, width: int, tile: int, overlap: int, balanced: bool) -> list[Tile]:
    """All tiles of a frame, row by row; see :func:`plan_axis`."""
    return [
        Tile(top, bottom, left, right)
        for top, bottom in plan_axis(height, tile, overlap, balanced)
        for left, right in plan_axis(width, tile, overlap, balanced)
    ]


def process_tiles(
    frame: Tensor,
    tiles: list[Tile],
    process: Callable[[Tensor, list[Tile]], Tensor],
    batch: int,
    overlap: int,
) -> Tensor:
    """Run ``process`` on batches of tiles and blend the overlaps with linear ramps.

    Args:
        frame: ``(1, C, h, w)``.
        tiles: a plan that covers the frame.
        process: ``(n, C, th, tw)`` tiles and their places -> ``(n, D, th, tw)``.
        batch: tiles per call; bounds the memory.
        overlap: pixels that neighbours share, as planned.

    Returns:
        ``(1, D, h, w)``.
    """
    if len(tiles) == 1:
        return process(frame, tiles)
    total: Tensor | None = None
    weight_sum = frame.new_zeros(frame.shape[-2:])
    for first in range(0, len(tiles), batch):
        places = tiles[first : first + batch]
        results = process(torch.cat([place.cut(frame) for place in places]), places)
        if total is None:
            total = results.new_zeros((1, results.shape[1], *frame.shape[-2:]))
        for place, result in zip(places, results, strict=True):
            weight = _blend_weight(place, frame, overlap)
            place.cut(total)[0] += weight * result
            place.cut(weight_sum)[...] += weight
    return total / weight_sum


def _blend_weight(place: Tile, frame: Tensor, overlap: int) -> Tensor:
    """The tile's share of each pixel before normalisation, ``(th, tw)``.

    On a side that is not the frame's, a quarter of the overlap counts for nothing (the network saw
    a false border there) and a ramp rises over the middle half.
    """
    trim = overlap // 4
    ramp = overlap - 2 * trim + 1

    def axis(first: int, last: int, length: int) -> Tensor:
        position = torch.arange(first, last, device=frame.device, dtype=frame.dtype)
        full = torch.ones_like(position)
        from_first = (position - first + 1 - trim) / ramp if first > 0 else full
        from_last = (last - position - trim) / ramp if last < length else full
        return torch.minimum(from_first, from_last).clamp(0, 1)

    height, width = frame.shape[-2:]
    return torch.outer(axis(place.top, place.bottom, height), axis(place.left, place.right, width))
