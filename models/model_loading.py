"""From a weights folder to a model that runs, and back: compact and published networks."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from difiisr_models.checkpoint import load_published
from difiisr_models.compact import CompactConfig, CompactNetwork, build_compact
from difiisr_models.frame_model import CompactModel, FrameModel
from difiisr_models.published import PublishedModel
from difiisr_models.radiometry import NETWORK_LIMIT
from difiisr_models.schedule import exponential_schedule
from difiisr_models.swin_unet import SwinUNet
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


def load_model(
    name: str, device: torch.device, autocast: torch.dtype | None
) -> tuple[FrameModel, str]:
    """Load by name or path; returns the model and the sha256 of its network's file.

    Args:
        name: a shipped model, a weights folder, or a file in one.
        device: where it runs.
        autocast: dtype of its convolutions and products, ``None`` for float32.

    Raises:
        FileNotFoundError: no such model.
        WeightsError: damaged files, or a kind of model that this version does not know.
    """
    folder = find_weights_folder(name)
    manifest = read_manifest(folder)
    schedule = exponential_schedule()
    if manifest.get("kind") == "compact":
        network, sha256 = _load_compact(folder, manifest)
        network = network.to(device, memory_format=torch.channels_last)
        return CompactModel(network, schedule, NETWORK_LIMIT, autocast), sha256
    if manifest.get("kind") == "published":
        unet, autoencoder, _ = load_published(folder)
        model = PublishedModel(unet.to(device), autoencoder.to(device), schedule, autocast)
        return model, manifest["files"][UNET_FILE]["sha256"]
    raise WeightsError(
        f"{folder} holds a model of kind {manifest.get('kind')!r}; known: compact, published"
    )


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
        config = CompactConfig(**manifest["network"])
    except (KeyError, TypeError) as error:
        raise WeightsError(f"the manifest of {folder} is incomplete: {error}") from error
    verify_file(folder / NETWORK_FILE, sha256)
    try:
        return build_compact(config, load_file(folder / NETWORK_FILE)), sha256
    except RuntimeError as error:
        raise WeightsError(f"{folder / NETWORK_FILE} does not fit its manifest: {error}") from error
