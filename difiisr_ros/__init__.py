"""ROS 2 side of the thermal super-resolution package: node, message codecs, replay."""

import os
from importlib.metadata import version

# Read once, when torch loads: threads that wait for each other then sleep instead of spinning, and
# leave the cores to the robot's other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> str:
    """``__version__``, which is looked up when it is asked for."""
    if name == "__version__":
        return version(__name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
