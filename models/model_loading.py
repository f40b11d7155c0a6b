"""From a weights folder to a model that runs, and back: compact and published networks."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from difiisr_models.backends import NetworkSource
from difiisr_models.backends.selection import BackendChoice, select_backend, torch_only
from difiisr_models.checkpoint import load_published
from difiisr_models.compact import CompactConfig, CompactNetwork, build_compact, parameter_count
from difiisr_models.frame_model import CompactModel, FrameModel
from difiisr_models.precision import PRECISIONS
from difiisr_models.published import PublishedModel
from difiisr_models.radiometry import NETWORK_LIMIT
from difiisr_models.schedule import Schedule, exponential_schedule
from difiisr_models.swin_unet import SwinUNet
from difiisr_models.vq_autoencoder import VQAutoencoder
from difiisr_models.weights import (
    WeightsError,
    describe_file,
    find_weights_folder,
    read_manifest,
    verify_file,
    write_manifest,
)

NETWORK_FILE = "network.safetensors"
UNET_FILE = "unet.safetensors"


@dataclass(frozen=True)
class LoadedModel:
    """A model that runs.

    Attributes:
        model: super-resolves tiles.
        weights_sha256: hash of its network's file.
        backend: what runs the network, and why others do not.
    """

    model: FrameModel
    weights_sha256: str
    backend: BackendChoice


def load_model(name: str, device: torch.device, backend: str, **options: object) -> LoadedModel:
    """Load by name or path.

    Args:
        name: a shipped model, a weights folder, or a file in one.
        device: where it runs.
        backend: one of ``selection.BACKENDS``.
        options: further fields of :class:`difiisr_models.backends.NetworkSource`.

    Raises:
        BackendUnavailable: the backend asked for does not work here.
        FileNotFoundError: no such model.
        WeightsError: damaged files, or a kind of model that this version does not know.
    """
    parts = load_parts(name)
    precision = options.get("precision", "fp32")
    if parts.autoencoder is not None:
        networks = (part.to(device) for part in (parts.network, parts.autoencoder))
        model = PublishedModel(*networks, parts.schedule, PRECISIONS[precision])
        engine = options.get("engine"), options.get("engine_mismatch", "fallback")
        choice = torch_only(backend, "the published model", *engine)
    else:
        source = NetworkSource(parts.network, parts.weights_sha256, device, model=name, **options)
        runner, choice = select_backend(backend, source)
        count = parameter_count(parts.network)
        model = CompactModel(runner, count, parts.schedule, NETWORK_LIMIT)
    return LoadedModel(model, parts.weights_sha256, choice)


@dataclass(frozen=True)
class ModelParts:
    """The networks of a model, float32 and on the CPU, to be exported.

    Attributes:
        kind: ``"compact"`` or ``"published"``.
        network: the denoiser.
        autoencoder: of the published model, else None.
        schedule: all T levels.
        weights_sha256: hash of the denoiser's file.
    """

    kind: str
    network: CompactNetwork | SwinUNet
    autoencoder: VQAutoencoder | None
    schedule: Schedule
    weights_sha256: str


def load_parts(name: str) -> ModelParts:
    """Load a model's networks by name or path; raises as :func:`load_model` does."""
    if name == "bicubic":
        raise ValueError("bicubic has no network: nothing to export")
    folder = find_weights_folder(name)
    manifest = read_manifest(folder)
    kind, schedule = manifest.get("kind"), exponential_schedule()
    if kind == "compact":
        network, sha256 = _load_compact(folder, manifest)
        return ModelParts(kind, network, None, schedule, sha256)
    if kind == "published":
        unet, autoencoder, _ = load_published(folder)
        sha256 = manifest["files"][UNET_FILE]["sha256"]
        return ModelParts(kind, unet, autoencoder, schedule, sha256)
    raise WeightsError(f"{folder} holds a model of kind {kind!r}; known: compact, published")


def load_network(folder: Path) -> nn.Module:
    """The bare network of a weights folder, on the CPU: to train it further.

    Raises:
        WeightsError: as :func:`load_model`.
    """
    manifest = read_manifest(folder)
    if manifest.get("kind") == "published":
        return load_published(folder)[0]
    return _load_compact(folder, manifest)[0]


def save_compact(network: CompactNetwork, folder: Path, card: dict) -> None:
    """Write ``network.safetensors`` and ``manifest.json``; ``card`` is added to the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NETWORK_FILE
    _save(network, path)
    described = {
        "kind": "compact",
        "files": {NETWORK_FILE: describe_file(path)},
        "network": network.config.as_dict(),
    }
    write_manifest(folder, described | card)


def save_published_unet(network: SwinUNet, published: Path, folder: Path, card: dict) -> None:
    """Write a converted published model's folder anew, with a UNet trained here in its place."""
    shutil.copytree(published, folder, dirs_exist_ok=True)
    _save(network, folder / UNET_FILE)
    manifest = read_manifest(folder)
    manifest["files"][UNET_FILE] = describe_file(folder / UNET_FILE)
    write_manifest(folder, manifest | card)


def _save(network: nn.Module, path: Path) -> None:
    save_file({k: v.contiguous().cpu() for k, v in network.state_dict().items()}, path)
    path.chmod(0o644)  # the library makes it readable for its owner alone


def _load_compact(folder: Path, manifest: dict) -> tuple[CompactNetwork, str]:
    try:
        sha256 = manifest["files"][NETWORK_FILE]["sha256"]
        sizes = manifest["network"]
    except (KeyError, TypeError) as error:
        raise WeightsError(f"the manifest of {folder} is incomplete: {error}") from error
    verify_file(folder / NETWORK_FILE, sha256)
    try:
        # A copy: the tensors read are the mapped file, which someone may write over.
        state = {key: value.clone() for key, value in load_file(folder / NETWORK_FILE).items()}
        return build_compact(CompactConfig(**sizes), state), sha256
    except (RuntimeError, TypeError, ValueError, SafetensorError) as error:
        raise WeightsError(f"{folder / NETWORK_FILE} does not fit its manifest: {error}") from error
