"""difiisr_models: networks, diffusion and the frame upscaler. Imports neither ROS nor training."""

from difiisr_models.radiometry import RangeTracker
from difiisr_models.upscaler import Upscaler, load_upscaler
from difiisr_models.upscaler_settings import UpscalerSettings
from difiisr_models.weights import WeightsError

__all__ = ["RangeTracker", "Upscaler", "UpscalerSettings", "WeightsError", "load_upscaler"]
