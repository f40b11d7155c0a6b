"""From a weights folder to a model that runs, and back: compact and published networks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from difiisr_models.backends import NetworkSource
from difiisr_models.backends.selection import BackendChoice, select_backend, torch_only
from difiisr_models.compact import CompactConfig, CompactNetwork, build_compact, parameter_count
from difiisr_models.diffusion import Schedule, exponential_schedule
from difiisr_models.frame_model import CompactModel, FrameModel
from difiisr_models.motion import require_opencv
from difiisr_models.plausibility import EstimateLimits
from difiisr_models.precision import PRECISIONS
from difiisr_models.published.convert import UNET_FILE, load_published
from difiisr_models.published.sampler import PublishedModel
from difiisr_models.published.swin_unet import SwinUNet
from difiisr_models.published.vq_autoencoder import VQAutoencoder
from difiisr_models.radiometry import NETWORK_LIMIT
from difiisr_models.settings import Runtime
from difiisr_models.weights import (
    WeightsError,
    check_depth,
    describe_file,
    find_weights_folder,
    load_tensors,
    read_manifest,
    save_tensors,
    write_manifest,
)

NETWORK_FILE = "network.safetensors"


class LoadedModel(NamedTuple):
    """A model that runs, the hash of its network's file, and what runs it."""

    model: FrameModel
    weights_sha256: str
    backend: BackendChoice


def load_model(name: str, device: torch.device, runtime: Runtime) -> LoadedModel:
    """Load by name or path.

    Args:
        name: a shipped model, a weights folder, or a file in one.
        device: where it runs.
        runtime: what runs it.

    Raises:
        BackendUnavailable: the backend asked for does not work here.
        FileNotFoundError: no such model.
        WeightsError: damaged files, or a kind of model that this version does not know.
    """
    parts = load_parts(name)
    if parts.autoencoder is not None:
        networks = (part.to(device) for part in (parts.network, parts.autoencoder))
        precision = PRECISIONS[runtime.precision]
        model = PublishedModel(*networks, parts.schedule, precision, parts.limits)
        choice = torch_only(runtime, "the published model")
    else:
        source = NetworkSource(parts.network, parts.weights_sha256, device, runtime, name)
        runner, choice = select_backend(source)
        count = parameter_count(parts.network)
        is_recurrent = parts.network.config.recurrent
        if is_recurrent:
            require_opencv()
        model = CompactModel(
            runner, count, parts.schedule, NETWORK_LIMIT, parts.limits, is_recurrent
        )
    return LoadedModel(model, parts.weights_sha256, choice)


class ModelParts(NamedTuple):
    """The networks of a model, float32 and on the CPU.

    Attributes:
        kind: ``"compact"`` or ``"published"``.
        network: the denoiser.
        autoencoder: of the published model, else None.
        schedule: all T levels that the denoiser was trained with.
        weights_sha256: hash of the denoiser's file.
        limits: of its estimates, as its manifest has them.
    """

    kind: str
    network: CompactNetwork | SwinUNet
    autoencoder: VQAutoencoder | None
    schedule: Schedule
    weights_sha256: str
    limits: EstimateLimits = EstimateLimits()


def load_parts(name: str) -> ModelParts:
    """Load a model's networks by name or path; raises as :func:`load_model` does."""
    if name == "bicubic":
        raise ValueError("bicubic has no network: nothing to export")
    folder = find_weights_folder(name)
    manifest = read_manifest(folder)
    kind = manifest.get("kind")
    if kind == "published":
        network, autoencoder, schedule = load_published(folder)
        file = UNET_FILE
    elif kind == "compact":
        state, autoencoder, file = load_tensors(folder, manifest, NETWORK_FILE), None, NETWORK_FILE
        schedule = exponential_schedule()
        try:
            config = CompactConfig(**manifest["network"])
            check_depth(state, config.blocks)
            network = build_compact(config, state)
        except (KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            raise WeightsError(f"{folder / file} does not fit its manifest: {error}") from error
    else:
        raise WeightsError(f"{folder} holds a model of kind {kind!r}; known: compact, published")
    try:
        limits = EstimateLimits(**manifest.get("limits", {}))
    except (TypeError, ValueError) as error:
        raise WeightsError(f"the limits in the manifest of {folder} are none: {error}") from error
    sha256 = manifest["files"][file]["sha256"]
    return ModelParts(kind, network, autoencoder, schedule, sha256, limits)


def load_network(folder: Path) -> nn.Module:
    """The bare network of a weights folder, on the CPU; raises as :func:`load_model` does."""
    return load_parts(str(folder)).network


def save_compact(network: CompactNetwork, folder: Path, card: dict[str, Any]) -> None:
    """Write ``network.safetensors`` and ``manifest.json``; ``card`` is added to the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NETWORK_FILE
    save_tensors(network, path)
    described = {
        "kind": "compact",
        "files": {NETWORK_FILE: describe_file(path)},
        "network": network.config.as_dict(),
    }
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
