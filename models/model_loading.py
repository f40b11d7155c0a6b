"""From a name to an upscaler, and from a network to a weights folder."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from difiisr_models.backends import BackendUnavailable, NetworkSource
from difiisr_models.backends.selection import (
    check_precision,
    resolve_device,
    select_backend,
    torch_only,
)
from difiisr_models.backends.torch_runner import dtype_of
from difiisr_models.compact import CompactConfig, CompactNetwork, build_compact
from difiisr_models.diffusion import Schedule, exponential_schedule
from difiisr_models.files import replaced
from difiisr_models.frame_model import BICUBIC, CompactModel, FrameModel
from difiisr_models.motion import require_opencv
from difiisr_models.plausibility import EstimateLimits
from difiisr_models.published.convert import UNET_FILE, load_published
from difiisr_models.published.sampler import PublishedModel
from difiisr_models.published.swin_unet import SwinUNet
from difiisr_models.published.vq_autoencoder import VQAutoencoder
from difiisr_models.settings import Backend, FrameSettings, Runtime, with_fields
from difiisr_models.stream import Stream
from difiisr_models.upscaler import Upscaler
from difiisr_models.weights import (
    WeightsError,
    check_depth,
    checked_file,
    describe_file,
    find_weights_folder,
    load_tensors,
    read_manifest,
    save_tensors,
    write_manifest,
)

NETWORK_FILE, SIBLING_FILE = "network.safetensors", "single_frame.safetensors"
INT8_FILE = "network_int8.onnx"
_HAS_BF16: dict[Backend, bool] = {"openvino": True, "onnxruntime": False, "torch": True}
_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}
_PassedOver = tuple[tuple[str, str], ...]
_quickest: dict[tuple[str, Runtime, int], tuple[Runtime, dict[str, float], _PassedOver]] = {}
"""Of a model, what was asked for and the threads: what was quickest, and what of the others."""


def load_upscaler(
    name: str,
    *,
    runtime: Runtime = Runtime(),
    settings: FrameSettings = FrameSettings(),
    **fields: object,
) -> Upscaler:
    """Load a model by name.

    The network gets as many CPU threads as ``runtime`` says, or as torch has
    (``torch.set_num_threads``) at this call. The first export for ONNX Runtime takes seconds; its
    graph is kept in the user's cache folder.

    Args:
        name: a shipped model (``"difiisr-rt-x4"``), ``"bicubic"`` (plain interpolation),
            ``"bicubic-consistent"`` (with the consistency step), or a path to a weights folder or
            to a file in one.
        runtime: what runs it.
        settings: how a frame is made.
        fields: fields of either, over what these say: ``device="cpu"``, ``fidelity=0.5``.

    Raises:
        FileNotFoundError: no such model.
        WeightsError: its files are damaged, or of a kind that this version does not know.
        BackendUnavailable: the backend asked for does not work here (a ValueError).
        ValueError: an unknown device or field, or a value out of range.
    """
    runtime, settings = with_fields(runtime, settings, fields)
    runtime = runtime.repeatable
    device = resolve_device(runtime.device)
    check_precision(runtime.precision, device)
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    parts = None if name in BICUBIC else load_parts(name)
    model: FrameModel
    if parts is None:
        model, choice = BICUBIC[name], torch_only(runtime, name)
    elif isinstance(parts.network, CompactNetwork):
        network, sha256 = parts.network, parts.weights_sha256
        source = NetworkSource(network, sha256, device, runtime, name, parts.int8)
        runner, choice = select_backend(source)
        sibling = _sibling_of(parts, source, choice.name)
        model = CompactModel(network, parts.schedule, runner, parts.limits, sibling)
        if model.is_recurrent:
            require_opencv()
    else:
        assert parts.autoencoder is not None, "the other network has one"
        unet, autoencoder = parts.network.to(device), parts.autoencoder.to(device)
        dtype = dtype_of(runtime.precision)
        model = PublishedModel(unet, autoencoder, parts.schedule, dtype, parts.limits)
        choice = torch_only(runtime, "the published model")
    return Upscaler(
        Path(name).name,
        model,
        device=device,
        backend=choice.name,
        weights_sha256="" if parts is None else parts.weights_sha256,
        passed_over=choice.passed_over,
        runtime=runtime,
        settings=settings,
    )


def _sibling_of(parts: ModelParts, source: NetworkSource, backend: Backend) -> FrameModel | None:
    """What makes a recurrent model's first frames; an engine is of the other network alone."""
    if parts.sibling is None:
        return None
    name: Backend = "torch" if "tensorrt" in backend else backend
    asked = source.runtime.precision
    precision = "fp32" if asked == "int8" else asked  # it has no graph in 8 bits
    runtime = replace(source.runtime, backend=name, engine="", precision=precision)
    sha256 = parts.sibling_sha256
    source = replace(source, network=parts.sibling, weights_sha256=sha256, runtime=runtime)
    runner, _ = select_backend(source)
    return CompactModel(parts.sibling, parts.schedule, runner, parts.limits)


def load_quickest(
    name: str,
    *,
    runtime: Runtime = Runtime(),
    settings: FrameSettings = FrameSettings(),
    **fields: object,
) -> Upscaler:
    """``load_upscaler``, whose ``backend`` and ``precision`` auto is what computes a frame soonest.

    For a robot that is to keep up with its camera. Two machines, or two starts, may choose
    otherwise, and bfloat16 rounds otherwise: what is to be repeated asks for one of each. On a GPU,
    with an engine, and for models that always run in torch nothing is measured; in one process each
    model once. Arguments and what is raised are those of ``load_upscaler``.
    """
    runtime, settings = with_fields(runtime, settings, fields)
    on_cpu = resolve_device(runtime.device).type == "cpu"
    asked = runtime.backend in ("auto", *_HAS_BF16)
    if name in BICUBIC or runtime.engine or not on_cpu or not asked:
        return load_upscaler(name, runtime=runtime, settings=settings)
    key = name, runtime, torch.get_num_threads()
    with suppress(KeyError, BackendUnavailable):  # what served then may not now
        chosen, measured, passed = _quickest[key]
        up = load_upscaler(name, runtime=chosen, settings=settings)
        up.measured, up.passed_over = measured, passed
        return up
    cpu_has_bf16 = bool(_BF16_FLAGS & cpu_flags())
    best, measured, passed_over = None, dict[str, float](), []
    for backend in _HAS_BF16 if runtime.backend == "auto" else (runtime.backend,):
        precision = runtime.precision
        if precision == "auto":
            precision = "bf16" if cpu_has_bf16 and _HAS_BF16[backend] else "fp32"
        try:
            chosen = replace(runtime, backend=backend, precision=precision)
            up = load_upscaler(name, runtime=chosen, settings=settings)
        except BackendUnavailable as error:
            if runtime.backend != "auto":
                raise
            passed_over.append((backend, str(error)))
            continue
        if up.backend != backend or runtime.backend != "auto":
            return up
        took = _milliseconds(up)
        if not measured or took < min(measured.values()):
            best = up
        measured[f"{backend} {precision}"] = took
    if best is None:
        raise BackendUnavailable("; ".join(f"{backend}: {why}" for backend, why in passed_over))
    best.measured, best.passed_over = measured, tuple(passed_over)
    _quickest[key] = best.runtime, best.measured, best.passed_over
    return best


def cpu_flags() -> set[str]:
    """What the CPU has instructions for, as Linux names it; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def _milliseconds(up: Upscaler) -> float:
    """Of a frame of 96x72, the median of three after one that warms up."""
    frame, took = np.arange(72 * 96, dtype=np.uint16).reshape(72, 96), []
    for _ in range(4):
        begun = time.perf_counter()
        up(frame, Stream())
        took.append(1e3 * (time.perf_counter() - begun))
    return median(took[1:])


class ModelParts(NamedTuple):
    """The networks of a model, float32 and on the CPU.

    Attributes:
        kind: ``"compact"`` or ``"published"``.
        network: the denoiser.
        autoencoder: of the published model, else None.
        schedule: all T levels that the denoiser was trained with.
        weights_sha256: hash of the denoiser's file.
        limits: of its estimates, as its manifest has them.
        sibling: of a recurrent denoiser: the same without a past, trained on single frames.
        sibling_sha256: hash of its file.
        int8: file of the denoiser's graph in 8 bits, if there is one.
    """

    kind: str
    network: CompactNetwork | SwinUNet
    autoencoder: VQAutoencoder | None
    schedule: Schedule
    weights_sha256: str
    limits: EstimateLimits = EstimateLimits()
    sibling: CompactNetwork | None = None
    sibling_sha256: str = ""
    int8: Path | None = None


def load_parts(name: str) -> ModelParts:
    """Load a model's networks by name or path; raises as :func:`load_upscaler` does."""
    if name == "bicubic":
        raise ValueError("bicubic has no network: nothing to export")
    folder = find_weights_folder(name)
    manifest = read_manifest(folder)
    kind = manifest.get("kind")
    network: CompactNetwork | SwinUNet
    sibling = int8 = None
    if kind == "published":
        network, autoencoder, schedule = load_published(folder)
        file = UNET_FILE
    elif kind == "compact":
        autoencoder, file, schedule = None, NETWORK_FILE, exponential_schedule()
        network = _read_compact(folder, manifest, file)
        if network.config.recurrent and SIBLING_FILE in manifest["files"]:
            sibling = _read_compact(folder, manifest, SIBLING_FILE, recurrent=False)
        if INT8_FILE in manifest["files"]:
            int8 = checked_file(folder, manifest, INT8_FILE)
    else:
        raise WeightsError(f"{folder} holds a model of kind {kind!r}; known: compact, published")
    try:
        limits = EstimateLimits(**manifest.get("limits", {}))
    except (TypeError, ValueError) as error:
        raise WeightsError(f"the limits in the manifest of {folder} are none: {error}") from error
    sha256 = manifest["files"][file]["sha256"]
    theirs = manifest["files"][SIBLING_FILE]["sha256"] if sibling else ""
    return ModelParts(kind, network, autoencoder, schedule, sha256, limits, sibling, theirs, int8)


def _read_compact(
    folder: Path, manifest: dict[str, Any], file: str, **other: bool
) -> CompactNetwork:
    """The network in a file of a weights folder; ``other``: what differs from the manifest's."""
    state = load_tensors(folder, manifest, file)
    try:
        config = replace(CompactConfig(**manifest["network"]), **other)
        check_depth(state, config.blocks)
        return build_compact(config, state)
    except (KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise WeightsError(f"{folder / file} does not fit its manifest: {error}") from error


def save_compact(
    network: CompactNetwork,
    folder: Path,
    card: dict[str, Any],
    sibling: CompactNetwork | None = None,
    int8: bytes | None = None,
) -> None:
    """Write ``network.safetensors`` and ``manifest.json``, to which ``card`` is added.

    ``sibling``: the single-frame network of a recurrent one, ``single_frame.safetensors``;
    ``int8``: the network's graph in 8 bits, ``network_int8.onnx``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, each in ((NETWORK_FILE, network), (SIBLING_FILE, sibling)):
        if each is not None:
            save_tensors(each, folder / name)
            files[name] = describe_file(folder / name)
    if int8 is not None:
        with replaced(folder / INT8_FILE) as beside:
            beside.write_bytes(int8)
        files[INT8_FILE] = describe_file(folder / INT8_FILE)
    described = {"kind": "compact", "files": files, "network": asdict(network.config)}
    write_manifest(folder, described | card)


def save_published_unet(
    network: SwinUNet, published: Path, folder: Path, card: dict[str, Any]
) -> None:
    """Write a converted published model's folder anew, with a UNet trained here in its place."""
    shutil.copytree(published, folder, dirs_exist_ok=True)
    save_tensors(network, folder / UNET_FILE)
    manifest = read_manifest(folder)
    manifest["files"][UNET_FILE] = describe_file(folder / UNET_FILE)
    write_manifest(folder, manifest | card)
