"""``difiisr export``: a model as an ONNX graph, checked against torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from difiisr_models.model_loading import load_parts
from difiisr_models.onnx_graph import (
    CompactSampler,
    GraphShape,
    PublishedSampler,
    export_network,
    export_sampler,
    require_packages,
)
from difiisr_models.precision import PRECISIONS
from difiisr_models.weights import sha256_file
from difiisr_ros.commands.arguments import check_target, image_size, positive


def main(argv: Sequence[str]) -> int:
    """Run ``difiisr export`` with the arguments after that word; returns the exit code.

    Raises:
        ModuleNotFoundError: a package of the extra ``onnx`` is missing.
        OSError, ValueError: no such model, a size that it does not take, or a graph that differs
            from torch.
    """
    options = _parser().parse_args(argv)
    require_packages()
    check_target(options.target, options.force)
    parts = load_parts(options.model)
    shape = GraphShape(options.batch, *options.input_size)
    properties = {
        "what": options.what,
        "kind": parts.kind,
        "weights_sha256": parts.weights_sha256,
        "scale": "4",
    }
    if options.what == "network":
        if options.steps != 1:
            raise ValueError("--steps is a property of the sampler: add --what sampler")
        done = export_network(parts.network, options.target, shape, options.precision, properties)
    else:
        if parts.autoencoder is None:
            sampler = CompactSampler(parts.network, parts.schedule, options.steps)
        else:
            sampler = PublishedSampler(
                parts.network, parts.autoencoder, parts.schedule, options.steps
            )
        properties["steps"] = str(options.steps)
        done = export_sampler(sampler, options.target, shape, options.precision, properties)
    print(f"{done.path}: {options.what}, {shape}, {options.precision}")
    print(f"            {done.path.stat().st_size / 1e6:.2f} MB, sha256 {sha256_file(done.path)}")
    print(
        f"            {done.quantity} difference to torch, in ONNX Runtime: "
        f"{done.difference:.1e} (allowed: {done.tolerance:.1e})"
    )
    return 0


def _batch(text: str) -> int | None:
    return None if text == "dynamic" else positive(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="difiisr export", description="Write a model as an ONNX graph, checked against torch."
    )
    parser.add_argument("model", metavar="MODEL", help="model name, or path of weights")
    parser.add_argument("target", metavar="OUT.onnx", type=Path)
    parser.add_argument(
        "--input-size",
        type=image_size,
        required=True,
        metavar="HxW",
        help="of a low-resolution tile, as in 120x160",
    )
    parser.add_argument(
        "--what",
        choices=("network", "sampler"),
        default="network",
        help="the bare network, or from normalised tile to super-resolved tile (%(default)s)",
    )
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32")
    parser.add_argument(
        "--steps", type=positive, default=1, help="diffusion steps of the sampler (%(default)s)"
    )
    parser.add_argument(
        "--batch", type=_batch, default=1, metavar="N", help="tiles, or dynamic (1)"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing OUT.onnx")
    return parser
