"""What may change from frame to frame: the settings of an upscaler."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

from difiisr_models.frame_model import SMALLEST_OWN_TILE

MIN_SIDE = 16
"""Low-resolution pixels on a side that a frame and a tile have at least."""


@dataclass(frozen=True)
class UpscalerSettings:
    """What may change from frame to frame.

    Attributes:
        steps: diffusion steps T', 1..15.
        fidelity: 1 = lowest error (posterior mean), 0 = perceptual sample. Models without that
            knob (bicubic, the published network) ignore it.
        seed: of the fixed noise field; the same frame gives the same output. ``None`` = no noise.
        consistency: strength of the consistency step, 0..1; 1 = downsampled output equals input.
        tile: side of the largest tile, low-resolution pixels, rounded up to what the model takes;
            0 = the model's own choice.
        overlap: pixels that neighbouring tiles share.
        tile_batch: tiles per network call.
    """

    steps: int = 1
    fidelity: float = 1.0
    seed: int | None = 0
    consistency: float = 1.0
    tile: int = 0
    overlap: int = 32
    tile_batch: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "seed", "tile", "overlap", "tile_batch"):
            value = getattr(self, name)
            if not isinstance(value, Integral) and not (name == "seed" and value is None):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
        for name, low, high in (
            ("steps", 1, 15), ("fidelity", 0, 1), ("consistency", 0, 1), ("tile", 0, 4096),
            ("tile_batch", 1, 1024),
        ):  # fmt: skip
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} must lie in {low}..{high}, got {value!r}")
        if self.seed is not None and not 0 <= self.seed < 1 << 32:
            raise ValueError(
                f"seed must lie in 0..4294967295, or be None for no noise, got {self.seed}"
            )
        if 0 < self.tile < MIN_SIDE:
            raise ValueError(f"tile must be 0 or at least {MIN_SIDE}, got {self.tile}")
        tile = self.tile or SMALLEST_OWN_TILE
        if not 0 <= 2 * self.overlap < tile:
            raise ValueError(
                f"overlap must be 0 or more and less than half the tile ({tile}), "
                f"got {self.overlap}"
            )
