"""Several cameras in one process: a node each, and one model in memory for all that ask for it.

Frames of all cameras are computed one by one. Run ``sr_nodes CAMERA...``, each argument the ROS
arguments of one node as a JSON list; launch/multi_camera.launch.py writes them.
"""

from __future__ import annotations

import json
import sys
from copy import copy
from dataclasses import fields
from typing import ClassVar
from weakref import WeakValueDictionary

from difiisr_models import Runtime, Stream, Upscaler
from difiisr_ros.parameters import Parameters
from difiisr_ros.sr_node import SrNode, run_nodes


class SharingNode(SrNode):
    """A node that takes the model of another one in this process, where that is the same."""

    _loaded: ClassVar[WeakValueDictionary[tuple, Upscaler]] = WeakValueDictionary()

    def load(self, settings: Parameters) -> Upscaler:
        """An upscaler of its own around the model that others may use too."""
        names = ("model", *(field.name for field in fields(Runtime)))
        key = tuple(getattr(settings, name) for name in names)
        loaded = self._loaded.get(key)
        if loaded is None:
            loaded = self._loaded[key] = super().load(settings)
            return loaded
        own = copy(loaded)  # of the model and its lock there is one
        own.stream = Stream()
        own.change(**settings.live_arguments())
        return own


def main(cameras: list[str] | None = None) -> int:
    """Run a node for each camera until SIGINT or SIGTERM; 1 where one cannot start."""
    given = [json.loads(text) for text in (sys.argv[1:] if cameras is None else cameras)]
    return run_nodes(lambda: [SharingNode(cli_args=["--ros-args", *words]) for words in given], [])


if __name__ == "__main__":
    sys.exit(main())
