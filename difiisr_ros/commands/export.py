"""``difiisr export``: a model as an ONNX graph, checked against torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from difiisr_models.files import replaced, sha256_file
from difiisr_models.settings import Precision
from difiisr_ros.commands.arguments import Count, ImageSize, check_target


def export(
    model: str,
    target: Annotated[Path, Parameter(name="OUT.onnx")],
    /,
    *,
    size: ImageSize,
    what: Literal["network", "sampler"] = "network",
    precision: Precision = "fp32",
    steps: Count = 1,
    batch: Count | Literal["dynamic"] = 1,
    force: bool = False,
) -> None:
    """Write a model as an ONNX graph, checked against torch.

    Args:
        model: model name, or path of weights.
        target: the graph to write.
        size: of a low-resolution tile, WIDTHxHEIGHT as in 160x120.
        what: the bare network, or from normalised tile to super-resolved tile.
        precision: of convolutions and matrix products.
        steps: diffusion steps of the sampler.
        batch: tiles, or dynamic.
        force: replace an existing OUT.onnx.
    """
    from difiisr_models.backends.onnx_export import GraphSampler, export_graph, require_packages
    from difiisr_models.model_loading import load_parts

    require_packages()
    check_target(target, force)
    if what == "network" and steps != 1:
        raise ValueError("--steps is a property of the sampler: add --what sampler")
    parts = load_parts(model)
    module: Any = parts.network
    properties = {"what": what, "kind": parts.kind, "scale": "4"}
    properties["weights_sha256"] = parts.weights_sha256
    if what == "sampler":
        module = GraphSampler(module, parts.autoencoder, parts.schedule, steps)
        properties["steps"] = str(steps)
    shape = (None if batch == "dynamic" else batch, *size)
    done = export_graph(module, shape, precision, properties)
    with replaced(target) as beside:
        beside.write_bytes(done.graph)
    print(f"{target}: {what}, {'x'.join(str(n or '?') for n in shape)}, {precision}")
    print(f"            {len(done.graph) / 1e6:.2f} MB, sha256 {sha256_file(target)}")
    print(
        f"            {done.quantity} difference to torch, in ONNX Runtime: "
        f"{done.difference:.1e} (allowed: {done.tolerance:.1e})"
    )
