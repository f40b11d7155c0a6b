"""How low-resolution samples come about: one of three degradations, drawn for each sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from difiisr_models.radiometry import CountRange
from difiisr_models.resample import SCALE
from difiisr_training.data.images import pillow_resize
from difiisr_training.degradations.second_order import SecondOrderConfig, second_order_pair
from difiisr_training.degradations.thermal_camera import ThermalConfig, thermal_pair

Kind = Literal["bicubic", "thermal", "second_order"]
KINDS: tuple[Kind, ...] = ("bicubic", "thermal", "second_order")


@dataclass(frozen=True)
class DegradationConfig:
    """Which degradations are used, and their ranges.

    Attributes:
        bicubic: weight of the paper's clean one, antialiased bicubic /4.
        thermal: weight of the physical camera.
        second_order: weight of the reference's pipeline.
        camera: of the physical camera.
        pipeline: of the reference's pipeline.
    """

    bicubic: float = 0.7
    thermal: float = 0.25
    second_order: float = 0.05
    camera: ThermalConfig = field(default_factory=ThermalConfig)
    pipeline: SecondOrderConfig = field(default_factory=SecondOrderConfig)

    def __post_init__(self) -> None:
        weights = {kind: getattr(self, kind) for kind in KINDS}
        if min(weights.values()) < 0 or sum(weights.values()) == 0:
            raise ValueError(f"degradation weights must be 0 or more, not all 0, got {weights}")


def choose_kind(config: DegradationConfig, rng: np.random.Generator) -> Kind:
    """Draw a degradation by its weight."""
    weights = np.array([getattr(config, kind) for kind in KINDS])
    return KINDS[rng.choice(len(KINDS), p=weights / weights.sum())]


def degrade(
    kind: Kind,
    hr: np.ndarray,
    shown: CountRange,
    config: DegradationConfig,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Make a training pair of a high-resolution crop.

    Args:
        kind: which degradation.
        hr: ``(4h, 4w)`` uint8, uint16 or float32 counts.
        shown: ``compression.agc_range`` of the frame that ``hr`` is cut from.
        config: ranges to draw from.
        rng: where everything random comes from; "bicubic" draws nothing.

    Returns:
        low resolution ``(h, w)`` and target ``(4h, 4w)``, float32 counts on the same scale. The
        target is ``hr`` itself, but for what a camera with more pixels would show as well.
    """
    if kind == "thermal":
        return thermal_pair(hr, shown, config.camera, rng)
    if kind == "second_order":
        return second_order_pair(hr, shown, config.pipeline, rng)
    h, w = (side // SCALE for side in hr.shape)
    return pillow_resize(hr, h, w).astype(np.float32), hr.astype(np.float32)
