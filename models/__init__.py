"""difiisr_models: networks, diffusion and the frame upscaler. Imports neither ROS nor training."""

from typing import TYPE_CHECKING, Any

from difiisr_models.settings import Camera, FrameSettings, Runtime
from difiisr_models.weights import WeightsError

if TYPE_CHECKING:
    from difiisr_models.stream import Stream
    from difiisr_models.upscaler import Upscaler, load_upscaler

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
    if name == "Stream":
        from difiisr_models.stream import Stream

        return Stream
    if name in ("Upscaler", "load_upscaler"):
        from difiisr_models import upscaler

        return getattr(upscaler, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
