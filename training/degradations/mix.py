"""How low-resolution samples come about: one of three degradations, drawn for each sample."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal, get_args

import numpy as np
from annotated_types import Ge, Le
from PIL import Image
from pydantic.dataclasses import dataclass

from difiisr_models.radiometry import CountRange
from difiisr_models.resample import SCALE
from difiisr_training.degradations.second_order import second_order_pair
from difiisr_training.degradations.thermal_camera import ThermalConfig, thermal_pair

Kind = Literal["bicubic", "thermal", "second_order"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, config={"extra": "forbid"})
class DegradationConfig:
    """Which degradations are used, and their ranges.

    Attributes:
        bicubic: weight of the paper's clean one, antialiased bicubic /4.
        thermal: weight of the physical camera.
        second_order: weight of the reference's pipeline.
        camera: of the physical camera.
        shown_tail: share of a frame's pixels that its 8-bit picture, which "thermal" and
            "second_order" are made of, shows as black, and as white; 0 clips no target.
    """

    bicubic: Annotated[float, Ge(0)] = 0.7
    thermal: Annotated[float, Ge(0)] = 0.25
    second_order: Annotated[float, Ge(0)] = 0.05
    camera: ThermalConfig = field(default_factory=ThermalConfig)
    shown_tail: Annotated[float, Ge(0), Le(0.1)] = 0.01

    def __post_init__(self) -> None:
        if not any(self.shares().values()):
            raise ValueError("the weights of the degradations must not all be 0")

    def shares(self) -> dict[Kind, float]:
        """Share of each kind among the samples, 1 in all (0 in all while none has a weight)."""
        weights = np.array([getattr(self, kind) for kind in KINDS])
        return dict(zip(KINDS, weights / (weights.sum() or 1.0), strict=True))


def choose_kind(config: DegradationConfig, rng: np.random.Generator) -> Kind:
    """Draw a degradation by its weight."""
    return KINDS[rng.choice(len(KINDS), p=list(config.shares().values()))]


def degrade(
    kind: Kind,
    hr: np.ndarray,
    shown: CountRange,
    config: DegradationConfig,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Make a training pair of a high-resolution crop.

    Args:
        kind: which degradation; "bicubic" draws nothing.
        hr: ``(4h, 4w)`` uint8, uint16 or float32 counts.
        shown: ``thermal_camera.agc_range`` of the frame that ``hr`` is cut from.
        config: ranges to draw from.
        rng: where everything random comes from.

    Returns:
        low resolution ``(h, w)`` and target ``(4h, 4w)``, float32 counts on the same scale. The
        target is ``hr`` itself, but for what a camera with more pixels would show as well.
    """
    if kind == "thermal":
        return thermal_pair(hr, shown, config.camera, rng)
    if kind == "second_order":
        return second_order_pair(hr, shown, rng)
    h, w = (side // SCALE for side in hr.shape)
    return pillow_resize(hr, h, w).astype(np.float32), hr.astype(np.float32)


def bicubic(lr: np.ndarray) -> np.ndarray:
    """``(h, w)`` uint8, uint16 or float32 counts -> ``(4h, 4w)``: plain interpolation, Pillow's."""
    return pillow_resize(lr, SCALE * lr.shape[0], SCALE * lr.shape[1])


def pillow_resize(
    image: np.ndarray, height: int, width: int, method: Image.Resampling = Image.Resampling.BICUBIC
) -> np.ndarray:
    """Antialiased resize; the dtype (uint8, uint16, float32) and its rounding are kept."""
    given = image.astype(np.float32) if image.dtype == np.uint16 else image
    resized = np.asarray(Image.fromarray(given).resize((width, height), method))
    if image.dtype == np.uint16:
        return resized.round().clip(0, 65535).astype(np.uint16)
    return resized
