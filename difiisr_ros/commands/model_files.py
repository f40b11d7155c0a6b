"""``difiisr export``, ``quantise``, ``build-engine`` and ``convert``: a model in other files."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterable
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from cyclopts import Parameter
from tqdm import tqdm

from difiisr_models.compact import CompactNetwork
from difiisr_models.files import replaced, sha256_file
from difiisr_models.settings import Precision
from difiisr_ros.commands.answers import Answer, answers
from difiisr_ros.commands.arguments import Count, ImageSize

if TYPE_CHECKING:
    from torch import Tensor

    from difiisr_models.model_loading import ModelParts

_NOISES = (0.0, 0.02)  # share of the span of a recording's first frame, that is added to it


@answers
def export(
    model: str,
    target: Annotated[Path, Parameter(name="OUT.onnx")],
    /,
    *,
    size: ImageSize,
    precision: Precision = "fp32",
    batch: int | Literal["dynamic"] = 1,
    force: bool = False,
) -> Answer:
    """Write the network of a model as an ONNX graph, checked against torch.

    Args:
        model: model name, or path of weights.
        target: the graph to write.
        size: of a low-resolution tile, WIDTHxHEIGHT as in 160x120.
        precision: of convolutions and matrix products.
        batch: tiles, or dynamic.
        force: replace an existing OUT.onnx.
    """
    from difiisr_models.backends.onnx_graphs import export_graph, require_packages
    from difiisr_models.model_loading import load_parts

    require_packages()
    if batch != "dynamic" and batch < 1:
        raise ValueError(f"--batch is dynamic, or 1 and more, not {batch}")
    _check_target(target, force)
    parts = load_parts(model)
    properties = {"what": "network", "kind": parts.kind, "scale": "4"}
    properties["weights_sha256"] = parts.weights_sha256
    shape = (None if batch == "dynamic" else batch, *size)
    done = export_graph(parts.network, shape, precision, properties)
    with replaced(target, force) as beside:
        beside.write_bytes(done.graph)
    facts = {"graph": str(target), "bytes": len(done.graph), "sha256": sha256_file(target)}
    facts |= {"batch": batch, "height": size[0], "width": size[1], "precision": precision}
    facts |= {"difference": done.difference, "tolerance": done.tolerance}
    text = f"""{target}: {"x".join(str(n or "?") for n in shape)}, {precision}
            {len(done.graph) / 1e6:.2f} MB, sha256 {facts["sha256"]}
            largest difference to torch, in ONNX Runtime: {done.difference:.1e}
            (allowed: {done.tolerance:.1e})"""
    return Answer(facts, text)


@answers
def quantise(
    model: str,
    out_dir: Annotated[Path, Parameter(name="OUT_DIR")],
    inputs: list[str],
    /,
    *,
    data: Path | None = None,
    topic: str | None = None,
    frames: Count = 4,
) -> Answer:
    """Write a compact model again, with its network in 8 bits beside it: --precision int8.

    A scale for the features of each layer is found on frames of cameras, as they are and with noise
    of 2 % of their span. How much is lost depends on the model: judge it (difiisr evaluate --video)
    before it drives.

    Args:
        model: model name, or path of weights.
        out_dir: folder to write.
        inputs: folders of images in order, rosbag2 recordings, or folders below --data.
        data: root of the inputs' folders.
        topic: of a recording.
        frames: of each input.
    """
    from difiisr_models.backends.onnx_graphs import require_packages
    from difiisr_models.backends.quantisation import quantised_graph
    from difiisr_models.model_loading import load_parts, save_compact
    from difiisr_models.weights import find_weights_folder, read_manifest
    from difiisr_ros.commands.evaluate_models import resolve_inputs
    from difiisr_training.evaluation.inputs import Selection

    require_packages()
    parts, manifest = load_parts(model), read_manifest(find_weights_folder(model))
    if not isinstance(parts.network, CompactNetwork):
        raise ValueError(f"{model} is a {parts.kind} model, which always runs in torch")
    chosen = resolve_inputs(inputs, data, topic, Selection(limit=frames))
    shown = [[frame for _, frame in each.frames()] for each in chosen]
    calls = _calls_on(parts.network, parts, shown)
    graph = quantised_graph(parts.network, tqdm(calls, unit="frame"), parts.weights_sha256)
    card = {k: value for k, value in manifest.items() if k not in ("kind", "files", "network")}
    save_compact(parts.network, out_dir, card, parts.sibling, graph)
    facts = {"folder": str(out_dir), "bytes": len(graph), "calls": len(calls)}
    return Answer(facts, f"{out_dir}: 8 bits of {len(calls)} frames, {len(graph) / 1e6:.2f} MB")


def _calls_on(
    network: CompactNetwork, parts: ModelParts, recordings: Iterable[list[np.ndarray]]
) -> list[tuple]:
    """What the network is called with on recordings: each a stream, twice."""
    from difiisr_models.frame_model import CompactModel
    from difiisr_models.radiometry import robust_range
    from difiisr_models.stream import Stream
    from difiisr_models.upscaler import Upscaler
    from difiisr_training.evaluation.inputs import to_dtype

    calls, rng = [], np.random.default_rng(0)

    def runner(*given: Tensor) -> Tensor:
        calls.append(tuple(value.clone() for value in given))
        return network(*given)

    up = Upscaler("", CompactModel(network, parts.schedule, runner, parts.limits))
    for frames, share in product(recordings, _NOISES):
        stream, sigma = Stream(), share * robust_range(frames[0]).span
        for frame in frames:
            noisy = np.asarray(frame + rng.normal(0, sigma, frame.shape), np.float32)
            up(to_dtype(noisy, frame.dtype), stream)
    return calls


@answers
def build_engine(
    model: str,
    target: Annotated[Path, Parameter(name="OUT")],
    /,
    *,
    size: ImageSize,
    batch: Count = 1,
    precision: Precision = "fp32",
    device: str = "cuda",
    workspace: Count = 1024,
    force: bool = False,
) -> Answer:
    """Build a TensorRT engine.

    Do it on the machine that will run it: engines are bound to their GPU and their TensorRT.

    Args:
        model: model name, or path of weights.
        target: the engine file to write, as in model.plan.
        size: of a low-resolution tile, best the camera's frame, WIDTHxHEIGHT as in 160x120.
        batch: tiles per call.
        precision: of convolutions and matrix products.
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
    _check_target(target, force)
    parts = load_parts(model)
    if not isinstance(parts.network, CompactNetwork):
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
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)  # TensorRT lets no exception through
    try:
        with torch.cuda.device(-1 if gpu is None else gpu):  # -1: leaves all as it is
            built = tensorrt_engine.build_engine(
                parts.network, target, wanted, workspace << 20, force
            )
    finally:
        signal.signal(signal.SIGINT, handler)
    count = target.stat().st_size
    text = f"""{target}: {count / 1e6:.2f} MB in {built.build_seconds:.1f} s, {precision}
            per call {batch} x {size[1]}x{size[0]}
            {machine["tensorrt"]}, {machine["gpu"]} ({machine["compute_capability"]})"""
    return Answer({"engine": str(target), "bytes": count} | asdict(built), text)


@answers
def convert(
    unet: Path,
    autoencoder: Path,
    out_dir: Path,
    /,
    *,
    schedule: str | None = None,
    respacing: Literal["last", "first"] = "last",
    force: bool = False,
) -> Answer:
    """Convert published checkpoints for this package.

    Args:
        unet: the UNet's .pth file, of ResShift, SinSR or DifIISR.
        autoencoder: the autoencoder's .pth file.
        out_dir: the folder of weights to write.
        schedule: what the UNet was trained with, which its file cannot tell: resshift (v1 and v2),
            resshift-v3 (also bicx4), sinsr, difiisr, or the authors' config file (.yaml).
        respacing: fewer steps than it has always keep the last, t = T, or as the authors' code
            does the first, t = 1.
        force: replace an existing OUT_DIR.
    """
    from difiisr_models.published.convert import convert as convert_checkpoints

    manifest = convert_checkpoints(
        unet, autoencoder, out_dir, schedule=schedule, respacing=respacing, overwrite=force
    )
    text = f"{out_dir}: converted; use it as a model: --model {out_dir}"
    return Answer({"folder": str(out_dir)} | manifest, text)


def _check_target(target: Path, force: bool) -> None:
    """Raise an OSError unless the file ``target`` may be written; called before the work."""
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder: name a file")
    if (target.exists() or target.is_symlink()) and not force:
        raise FileExistsError(f"{target} exists; --force replaces it")
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise PermissionError(f"{target} cannot be written: {folder} is no folder to write in")
