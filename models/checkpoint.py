"""Conversion of ResShift, SinSR and DifIISR checkpoints into a folder of weights, and its loading.

Every name and shape of the source files is accounted for before a folder is written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from difiisr_models import reference_names as names
from difiisr_models.checkpoint_reader import CheckpointError, read_checkpoint
from difiisr_models.compact import parameter_count
from difiisr_models.swin_unet import SwinUNet, SwinUNetConfig
from difiisr_models.vq_autoencoder import VQAutoencoder, VQConfig
from difiisr_models.weights import (
    MANIFEST_NAME,
    WeightsError,
    describe_file,
    read_manifest,
    verify_file,
    write_manifest,
)

SCHEDULE = {
    "steps": 15,
    "kappa": 2.0,
    "power": 0.3,
    "sqrt_eta_end": 0.99,
    "min_noise_level": 0.04,
}
LICENCE_NOTE = (
    "These weights stay under the terms of those who published the source files (ResShift: S-Lab "
    "License 1.0, SinSR: CC BY-NC-SA 4.0, both non-commercial; DifIISR: MIT, built on both). "
    "This package grants no rights to them."
)

_NetworkT = TypeVar("_NetworkT", SwinUNet, VQAutoencoder)


def unet_from_reference(state: Mapping[str, Tensor]) -> SwinUNet:
    """The UNet of a reference state dict, float32, in evaluation mode.

    Raises:
        CheckpointError: with every missing name, extra name and wrong shape.
    """
    hint = "it looks like the autoencoder" if "encoder.conv_in.weight" in state else ""
    return _from_reference(state, names.unet_config, SwinUNet, names.reference_unet_name, hint)


def autoencoder_from_reference(state: Mapping[str, Tensor]) -> VQAutoencoder:
    """The autoencoder of a reference state dict, float32, in evaluation mode.

    Raises:
        CheckpointError: with every missing name, extra name and wrong shape.
    """
    hint = "it looks like the UNet" if "time_embed.0.weight" in state else ""
    return _from_reference(state, names.vq_config, VQAutoencoder, names.reference_vq_name, hint)


def _from_reference(
    state: Mapping[str, Tensor],
    infer_config: Callable[[Mapping[str, tuple[int, ...]]], Any],
    network_type: type[_NetworkT],
    reference_name: Callable[[str, Any], str],
    hint: str,
) -> _NetworkT:
    try:
        config = infer_config({name: tuple(value.shape) for name, value in state.items()})
    except ValueError as error:
        kind = network_type.__name__
        raise CheckpointError(
            f"not a {kind} of ResShift, SinSR or DifIISR: {error}" + (hint and f" ({hint})")
        ) from error
    with torch.device("meta"):
        network = network_type(config)
    filled: dict[str, Tensor] = {}
    problems: list[str] = []
    extra = {name for name in state if not names.KNOWN_BUFFERS.search(name)}
    for own, parameter in network.state_dict().items():
        name = reference_name(own, config)
        extra.discard(name)
        value = state.get(name)
        if value is None:
            problems.append(f"missing: {name}")
        elif value.shape != parameter.shape:
            shapes = f"{tuple(value.shape)}, expected {tuple(parameter.shape)}"
            problems.append(f"shape: {name} is {shapes}")
        elif not _is_plain(value):
            problems.append(f"values: {name} is not a dense tensor of finite real numbers")
        else:
            filled[own] = value.detach().to(torch.float32, copy=True).contiguous()
    problems += [f"extra: {name}" for name in sorted(extra)]
    if problems:
        raise CheckpointError(
            f"{len(problems)} names or shapes do not fit {config}:\n  " + "\n  ".join(problems)
        )
    network.load_state_dict(filled, assign=True)
    return network.eval().requires_grad_(False)


def _is_plain(value: Tensor) -> bool:
    return (
        value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.is_floating_point()
        and bool(torch.isfinite(value).all())
    )


def convert(
    unet_path: Path, autoencoder_path: Path, out_dir: Path, *, overwrite: bool = False
) -> dict[str, Any]:
    """Write ``out_dir`` (two safetensors files and a manifest) from two reference checkpoints.

    The folder appears complete or not at all.

    Returns:
        The manifest.

    Raises:
        CheckpointError: a source file is refused; see :func:`read_checkpoint`.
        FileExistsError: ``out_dir`` exists and ``overwrite`` is not set, or it is no weights
            folder of ours, which is never replaced.
    """
    sources = {"unet": Path(unet_path), "autoencoder": Path(autoencoder_path)}
    out_dir = Path(out_dir)
    if out_dir.exists() and not overwrite:
        raise FileExistsError(f"{out_dir} exists; choose another folder or ask to overwrite it")
    if out_dir.exists() and not (out_dir / MANIFEST_NAME).is_file():
        raise FileExistsError(f"{out_dir} exists and holds no {MANIFEST_NAME}; it is not replaced")
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out_dir.name}.", dir=out_dir.parent) as temporary:
        built = Path(temporary) / "new"
        built.mkdir()
        manifest = _write_weights(sources, built)
        if out_dir.exists():
            out_dir.rename(Path(temporary) / "old")
        built.rename(out_dir)
    return manifest


def _write_weights(sources: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    builders = {"unet": unet_from_reference, "autoencoder": autoencoder_from_reference}
    configs, counts, files, described = {}, {}, {}, []
    for part, path in sources.items():
        state = read_checkpoint(path)
        try:
            network: nn.Module = builders[part](state)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        weights = folder / f"{part}.safetensors"
        save_file(network.state_dict(), weights)
        weights.chmod(0o644)  # the library makes it readable for its owner alone
        configs[part] = names.as_dict(network.config)
        counts[part] = parameter_count(network)
        files[weights.name] = describe_file(weights)
        described.append({"part": part, "name": path.name, **describe_file(path)})
    write_manifest(
        folder,
        {
            "kind": "published",
            "scale": 4,
            "files": files,
            **configs,
            "parameters": counts,
            "schedule": SCHEDULE,
            "sources": described,
            "licence": LICENCE_NOTE,
        },
    )
    return read_manifest(folder)


def load_published(folder: Path) -> tuple[SwinUNet, VQAutoencoder, dict[str, Any]]:
    """Networks (float32, CPU, evaluation mode) and manifest of a folder that `convert` wrote.

    Raises:
        WeightsError: the folder is of another kind, damaged, or changed since.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest.get("kind") != "published":
        raise WeightsError(f"{folder} holds a {manifest.get('kind')!r} model, not 'published'")
    if manifest.get("schedule") != SCHEDULE:
        raise WeightsError(
            f"{folder} was trained with the schedule {manifest.get('schedule')}; this version "
            f"samples with {SCHEDULE}"
        )
    unet = _load_part(folder, manifest, "unet", SwinUNet, SwinUNetConfig)
    autoencoder = _load_part(folder, manifest, "autoencoder", VQAutoencoder, VQConfig)
    return unet, autoencoder, manifest


def _load_part(
    folder: Path,
    manifest: Mapping[str, Any],
    part: str,
    network_type: type[_NetworkT],
    config_type: type[SwinUNetConfig] | type[VQConfig],
) -> _NetworkT:
    path = folder / f"{part}.safetensors"
    try:
        verify_file(path, manifest["files"][path.name]["sha256"])
        settings = {f.name: manifest[part][f.name] for f in fields(config_type)}
        config = config_type(**{**settings, "multipliers": tuple(settings["multipliers"])})
        with torch.device("meta"):
            network = network_type(config)
        # Copies: tensors mapped from a file are unaligned, which costs time and changes last bits.
        state = {name: value.clone() for name, value in load_file(path).items()}
        network.load_state_dict(state, assign=True)
    except WeightsError:
        raise
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{folder}: the manifest does not fit {path.name}: {error}") from error
    return network.eval().requires_grad_(False)
