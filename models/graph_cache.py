"""Exported graphs kept from one start to the next, in the user's cache folder.

A graph's file name says what it was made from and the hash of its bytes: ``KEY-SHA256.onnx``.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

from difiisr_models.backends import NetworkSource
from difiisr_models.onnx_graph import GraphShape, export_network

EXPORT_VERSION = 3
"""Part of the key; raise it whenever the same weights are to give another graph."""

_KEPT = 16  # graphs, the ones used last


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/difiisr_ros``, by default ``~/.cache/difiisr_ros``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "difiisr_ros"


def network_graph(source: NetworkSource) -> bytes:
    """The graph of the source's network for any batch, height and width: kept, or exported now.

    A kept file whose bytes do not have the hash in its name is deleted and exported again. Two
    processes may export at once; either file serves.

    Raises:
        ModuleNotFoundError: none is kept and a package of the extra ``onnx`` is missing.
        OSError: the cache folder cannot be written.
        ValueError: the exported graph differs from torch.
    """
    made_from = f"{source.weights_sha256} {source.precision} {torch.__version__} {EXPORT_VERSION}"
    key = hashlib.sha256(made_from.encode()).hexdigest()[:16]
    folder = cache_folder()
    for path in sorted(folder.glob(f"{key}-*.onnx")):
        with suppress(FileNotFoundError):  # another process made room
            graph = path.read_bytes()
            if path.stem == f"{key}-{hashlib.sha256(graph).hexdigest()}":
                with suppress(OSError):  # a cache that may only be read serves too
                    path.touch()
                return graph
            path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export") as temporary:
        path = Path(temporary) / "network.onnx"
        properties = {"weights_sha256": source.weights_sha256, "what": "network"}
        export_network(source.network, path, GraphShape(batch=None), source.precision, properties)
        graph = path.read_bytes()
        os.replace(path, folder / f"{key}-{hashlib.sha256(graph).hexdigest()}.onnx")
    with suppress(OSError):  # another process makes room at the same time
        for old in sorted(folder.glob("*.onnx"), key=os.path.getmtime)[:-_KEPT]:
            old.unlink(missing_ok=True)
    return graph
