"""difiisr_models: networks, diffusion and the frame upscaler. Imports neither ROS nor training."""

import importlib
from typing import TYPE_CHECKING, Any

from difiisr_models.settings import Camera, FrameSettings, Runtime
from difiisr_models.weights import WeightsError

if TYPE_CHECKING:
    from difiisr_models.model_loading import load_upscaler
    from difiisr_models.stream import Stream
    from difiisr_models.upscaler import Upscaler

__all__ = [
    "Camera",
    "FrameSettings",
    "Runtime",
    "Stream",
    "Upscaler",
    "WeightsError",
    "load_upscaler",
]


def __getattr__(name: str) -> Any:
    """Import torch when it is needed: what reads settings alone starts in a moment."""
    homes = {"Stream": "stream", "Upscaler": "upscaler", "load_upscaler": "model_loading"}
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{homes[name]}"), name)
