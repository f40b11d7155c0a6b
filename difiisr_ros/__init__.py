"""ROS 2 side of the thermal super-resolution package: node, message codecs, replay."""

from importlib.metadata import version


def __getattr__(name: str) -> str:
    """``__version__``, which is looked up when it is asked for."""
    if name == "__version__":
        return version(__name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
