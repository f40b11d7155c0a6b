"""From a weights folder to a model that runs: the compact network or the published one."""

from __future__ import annotations

from pathlib import Path

import torch
from difiisr_models.compact import CompactConfig, CompactNetwork, build_compact
from difiisr_models.frame_model import CompactModel, FrameModel
from difiisr_models.radiometry import NETWORK_LIMIT
from difiisr_models.schedule import exponential_schedule
from difiisr_models.weights import (
    WeightsError,
    describe_file,
    find_weights_folder,
    read_manifest,
    verify_file,
    write_manifest,
)
from safetensors.torch import load_file, save_file

NETWORK_FILE = "network.safetensors"


def load_model(name: str, device: torch.device) -> tuple[FrameModel, str]:
    """Load by name or path; returns the model and the sha256 of its network's file.

    Raises:
        FileNotFoundError: no such model.
        WeightsError: damaged files, or a kind of model that this version does not know.
    """
    folder = find_weights_folder(name)
    manifest = read_manifest(folder)
    if manifest.get("kind") == "compact":
        return _load_compact(folder, manifest, device)
    raise WeightsError(f"{folder} holds a model of kind {manifest.get('kind')!r}; known: compact")


def save_compact(network: CompactNetwork, folder: Path, card: dict) -> None:
    """Write ``network.safetensors`` and ``manifest.json``; ``card`` is added to the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NETWORK_FILE
    save_file({k: v.contiguous().cpu() for k, v in network.state_dict().items()}, path)
    write_manifest(
        folder,
        {
            "kind": "compact",
            "files": {NETWORK_FILE: describe_file(path)},
            "network": network.config.as_dict(),
            **card,
        },
    )


def _load_compact(folder: Path, manifest: dict, device: torch.device) -> tuple[FrameModel, str]:
    try:
        sha256 = manifest["files"][NETWORK_FILE]["sha256"]
        config = CompactConfig(**manifest["network"])
    except (KeyError, TypeError) as error:
        raise WeightsError(f"the manifest of {folder} is incomplete: {error}") from error
    verify_file(folder / NETWORK_FILE, sha256)
    try:
        network = build_compact(config, load_file(folder / NETWORK_FILE))
    except RuntimeError as error:
        raise WeightsError(f"{folder / NETWORK_FILE} does not fit its manifest: {error}") from error
    network = network.to(device, memory_format=torch.channels_last)
    return CompactModel(network, exponential_schedule(), NETWORK_LIMIT), sha256
