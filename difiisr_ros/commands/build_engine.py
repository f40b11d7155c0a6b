"""``difiisr build-engine``: a TensorRT engine for this machine and one size of tiles."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from difiisr_models.settings import Precision
from difiisr_ros.commands.arguments import Count, ImageSize, check_target

if TYPE_CHECKING:
    from difiisr_models.backends.tensorrt_engine import EngineDescription


def build_engine(
    model: str,
    target: Annotated[Path, Parameter(name="OUT")],
    /,
    *,
    size: ImageSize,
    batch: Count = 1,
    precision: Precision = "fp32",
    onnx: Path | None = None,
    device: str = "cuda",
    workspace: Count = 1024,
    force: bool = False,
) -> None:
    """Build a TensorRT engine.

    Do it on the machine that will run it: engines are bound to their GPU and their TensorRT.

    Args:
        model: model name, or path of weights.
        target: the engine file to write, as in model.plan.
        size: of a low-resolution tile, best the camera's frame, WIDTHxHEIGHT as in 160x120.
        batch: tiles per call.
        precision: of convolutions and matrix products.
        onnx: graph that difiisr export wrote elsewhere from the same weights.
        device: cuda or cuda:N.
        workspace: GPU memory for a layer's scratch, MiB.
        force: replace an existing OUT.
    """
    import torch

    from difiisr_models.backends import tensorrt_engine
    from difiisr_models.backends.selection import resolve_device
    from difiisr_models.model_loading import load_parts

    if not re.fullmatch(r"cuda(:\d{1,3})?", device):
        raise ValueError(f"device {device!r} is not cuda or cuda:N")
    check_target(target, force)
    parts = load_parts(model)
    if parts.kind != "compact":
        raise ValueError(f"{model} is a {parts.kind} model, which always runs in torch")
    gpu = resolve_device(device) if torch.cuda.is_available() else None
    machine = tensorrt_engine.this_machine(gpu)
    if gpu is None:
        print(
            "warning: no GPU here; the graph builds, but the engine will be refused: build it on "
            "the machine that will run it",
            file=sys.stderr,
        )
    wanted = tensorrt_engine.EngineDescription(
        machine, model, parts.weights_sha256, precision, batch, *size
    )
    if onnx is not None:
        _check_graph(onnx, wanted)
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)  # TensorRT lets no exception through
    try:
        with torch.cuda.device(-1 if gpu is None else gpu):  # -1: leaves all as it is
            built = tensorrt_engine.build_engine(
                onnx or parts.network, target, wanted, workspace << 20
            )
    finally:
        signal.signal(signal.SIGINT, handler)
    megabytes = target.stat().st_size / 1e6
    print(f"{target}: {megabytes:.2f} MB in {built.build_seconds:.1f} s, {precision}")
    print(f"            per call {batch} x {size[1]}x{size[0]}")
    print(f"            {machine['tensorrt']}, {machine['gpu']} ({machine['compute_capability']})")


def _check_graph(path: Path, wanted: EngineDescription) -> None:
    """Raise ValueError unless the graph is of these weights, this precision and these tiles."""
    from difiisr_models.backends.onnx_export import require_packages

    require_packages(("onnx",))
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ValueError(f"{path} is no ONNX graph: {error}") from error
    found = {entry.key: entry.value for entry in graph.metadata_props}
    needed = {
        "what": "network",
        "weights_sha256": wanted.weights_sha256,
        "precision": wanted.precision,
        "shape": "x".join(map(str, wanted.shape)),
    }
    for key, value in needed.items():
        if found.get(key) != value:
            raise ValueError(
                f"{path} is another graph: its {key} is {found.get(key)}, {value} is needed. See "
                "`difiisr export`"
            )
