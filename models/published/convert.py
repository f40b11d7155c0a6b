"""Checkpoints of ResShift, SinSR and DifIISR: read with suspicion, converted, loaded.

A ``.pth`` file from a stranger is measured before it is read, and what is no plain tensor in it is
refused by torch (2.6 or newer: before, a crafted file could run code all the same). Every name and
shape in it is accounted for before a folder of weights is written.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from difiisr_models.compact import parameter_count
from difiisr_models.diffusion import Schedule, exponential_schedule
from difiisr_models.files import read_text, replaced_folder
from difiisr_models.published import reference_names as names
from difiisr_models.published.swin_unet import SwinUNet, SwinUNetConfig
from difiisr_models.published.vq_autoencoder import VQAutoencoder, VQConfig
from difiisr_models.weights import (
    MANIFEST_NAME,
    WeightsError,
    check_depth,
    describe_file,
    load_tensors,
    read_manifest,
    save_tensors,
    write_manifest,
)

UNET_FILE = "unet.safetensors"
MAX_FILE_BYTES = 4 << 30
MAX_INDEX_BYTES = 16 << 20
SCHEDULE: dict[str, Any] = {
    "steps": 15,
    "kappa": 2.0,
    "power": 0.3,
    "sqrt_eta_end": 0.99,
    "min_noise_level": 0.04,
}
SCHEDULES = {
    "resshift": SCHEDULE,
    "resshift-v3": SCHEDULE | {"steps": 4, "min_noise_level": 0.2},
    "sinsr": SCHEDULE,
    "difiisr": SCHEDULE,
}
"""What each family of checkpoints was trained with; their files have the same names and shapes."""
LICENCE_NOTE = (
    "These weights stay under the terms of those who published the source files (ResShift: S-Lab "
    "License 1.0, SinSR: CC BY-NC-SA 4.0, both non-commercial; DifIISR: MIT, built on both). "
    "This package grants no rights to them."
)

_WRAPPERS = (
    "params_ema", "params-ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "params",
    "model", "net",
)  # fmt: skip
_SAMPLED_AS = {
    "schedule_name": "exponential", "predict_type": "xstart", "scale_factor": 1.0,
    "normalize_input": True, "latent_flag": True,
}  # fmt: skip
_PREFIX = re.compile(r"^(module\.|_orig_mod\.)+")
_NETWORKS: dict[str, tuple[Any, ...]] = {
    "unet": (SwinUNet, SwinUNetConfig, names.unet_config, names.reference_unet_name),
    "autoencoder": (VQAutoencoder, VQConfig, names.vq_config, names.reference_vq_name),
}


class CheckpointError(ValueError):
    """A checkpoint that is not safe to read, or not of the published networks."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers of a ``.pth`` file under the reference's names, on the CPU.

    Wrappers (``state_dict``, ``params_ema``, ...; averaged weights first) and the prefixes
    ``module.`` and ``_orig_mod.`` are taken off.

    Raises:
        CheckpointError: the file is missing, too large, damaged, holds anything but tensors and
            plain values, or no state dict.
    """
    _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a crafted file makes torch raise is not specified
        lines = [x for x in str(error).splitlines() if x and "weights_only" not in x]
        reason = lines[0] if lines else type(error).__name__
        raise CheckpointError(
            f"{path}: torch refuses to read it: {reason} If you trust its source, save its state "
            "dict alone"
        ) from error
    return _state_dict(content, path)


def _check_archive(path: Path) -> None:
    """Refuse an archive by what it declares, before anything is allocated for it.

    torch.save writes uncompressed archives, which cannot declare more than they have.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise CheckpointError(f"{path}: {size} bytes, at most {MAX_FILE_BYTES} are read")
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except (zipfile.BadZipFile, RuntimeError, OSError, EOFError) as error:
        raise CheckpointError(
            f"{path}: no intact zip archive as torch.save writes it ({error}); if the file is "
            "older than torch 1.6, load and save it again with a newer torch"
        ) from error
    if any("/code/" in entry.filename for entry in entries):
        raise CheckpointError(
            f"{path}: a TorchScript program, which is code and is not run; save the state dict of "
            "the network it was made from"
        )
    declared = sum(entry.file_size for entry in entries)
    if declared > size or any(entry.compress_type for entry in entries):
        raise CheckpointError(
            f"{path}: declares {declared} bytes of content in a file of {size} bytes"
        )
    indices = [entry.file_size for entry in entries if entry.filename.endswith("/data.pkl")]
    if len(indices) != 1 or indices[0] > MAX_INDEX_BYTES:
        raise CheckpointError(
            f"{path}: expected one data.pkl of at most {MAX_INDEX_BYTES} bytes, found {indices}"
        )


def _state_dict(content: object, path: Path) -> dict[str, Tensor]:
    """The tensors in what was loaded, out of their wrappers and without prefixes."""
    for _ in _WRAPPERS:  # no deeper: a crafted one may contain itself
        if isinstance(content, dict) and content.keys() == {"generator"}:
            content = content["generator"]
        inside = (content.get(k) for k in _WRAPPERS) if isinstance(content, dict) else ()
        content = next((inner for inner in inside if isinstance(inner, dict)), content)
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a state dict")
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: entry {key!r} is a {type(value).__name__}, expected names and tensors"
            )
        name = _PREFIX.sub("", key).replace("._orig_mod.", ".")
        if name in state:
            raise CheckpointError(f"{path}: {name} is there twice, with and without a prefix")
        state[name] = value
    elements = sum(value.numel() for value in state.values())
    if elements > MAX_FILE_BYTES // 4:
        raise CheckpointError(
            f"{path}: its tensors declare {elements} values, at most {MAX_FILE_BYTES // 4} are read"
        )
    return state


def from_reference(state: Mapping[str, Tensor], part: str) -> Any:
    """The network of a reference state dict, float32, in evaluation mode.

    CheckpointError: with every missing name, extra name and wrong shape.
    """
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    network_type, _, told_config, reference_name = _NETWORKS[part]
    try:
        config = told_config(shapes)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"not a {network_type.__name__} of ResShift, SinSR or DifIISR: {error!r}"
        ) from error
    with torch.device("meta"):
        network = network_type(config)
    filled, problems = {}, []
    extra = {name for name in state if not names.KNOWN_BUFFERS.search(name)}
    for own, parameter in network.state_dict().items():
        name, wanted = reference_name(own, config), tuple(parameter.shape)
        extra.discard(name)
        if name not in state:
            problems.append(f"missing: {name}")
        elif shapes[name] != wanted:
            problems.append(f"shape: {name} is {shapes[name]}, expected {wanted}")
        elif not _is_dense(state[name]) or not state[name].isfinite().all():
            problems.append(f"values: {name} is not a dense tensor of finite real numbers")
        else:
            filled[own] = state[name].detach().to(torch.float32, copy=True).contiguous()
    problems += [f"extra: {name}" for name in sorted(extra)]
    if problems:
        raise CheckpointError(
            f"{len(problems)} names or shapes do not fit {config}:\n  " + "\n  ".join(problems)
        )
    network.load_state_dict(filled, assign=True)
    return network.eval().requires_grad_(False)


def _is_dense(value: Tensor) -> bool:
    plain = value.layout == torch.strided and not value.is_quantized and value.is_floating_point()
    return plain and value.device.type == "cpu"


def read_schedule(name: str | None) -> dict[str, float]:
    """The arguments of ``exponential_schedule`` that a checkpoint was trained with.

    ``name``: one of :data:`SCHEDULES`, or the path of the authors' config file (YAML), whose
    diffusion is sampled as the published ones are.
    """
    choices = f"{', '.join(SCHEDULES)}, or the authors' config file (.yaml)"
    if name is None:
        raise CheckpointError(
            "checkpoints with other schedules have the same names and shapes, so the file cannot "
            f"tell; say which it is: {choices}"
        )
    if name in SCHEDULES:
        return SCHEDULES[name]
    if Path(name).suffix not in (".yaml", ".yml"):
        raise CheckpointError(f"schedule {name!r} is not known; known: {choices}")
    try:
        given = yaml.safe_load(read_text(Path(name)))["diffusion"]["params"]
        schedule: dict[str, Any] = {
            "steps": int(given["steps"]),
            "kappa": float(given["kappa"]),
            "power": float(given["schedule_kwargs"]["power"]),
            "sqrt_eta_end": float(given["etas_end"]),
            "min_noise_level": float(given["min_noise_level"]),
        }
        exponential_schedule(**schedule)
        other = {key: given.get(key, value) for key, value in _SAMPLED_AS.items()}
    except (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{name}: no diffusion of ResShift's kind: {error!r}") from error
    if other != _SAMPLED_AS:
        raise CheckpointError(f"{name}: {other} is not sampled here, {_SAMPLED_AS} is")
    return schedule


def convert(
    unet_path: Path,
    autoencoder_path: Path,
    out_dir: Path,
    *,
    schedule: str | None,
    respacing: Literal["last", "first"] = "last",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write ``out_dir`` (two safetensors files and a manifest) from two reference checkpoints.

    The folder appears complete or not at all. ``schedule``: see :func:`read_schedule`;
    ``respacing``: see :class:`difiisr_models.diffusion.Schedule`. Returns the manifest; raises as
    :func:`read_checkpoint` does, and FileExistsError where ``out_dir`` exists and ``overwrite`` is
    not set, or is no weights folder of ours, which is never replaced.
    """
    manifest: dict[str, Any] = {"kind": "published", "scale": 4, "licence": LICENCE_NOTE}
    levels = read_schedule(schedule) | {"respacing": respacing}
    manifest |= {"schedule": levels, "files": {}, "parameters": {}, "sources": []}
    with replaced_folder(out_dir, overwrite, MANIFEST_NAME) as built:
        built.mkdir()
        for part, path in (("unet", unet_path), ("autoencoder", autoencoder_path)):
            state = read_checkpoint(path)
            try:
                network = from_reference(state, part)
            except CheckpointError as error:
                raise CheckpointError(f"{path}: {error}") from error
            weights = built / f"{part}.safetensors"
            save_tensors(network, weights)
            manifest[part] = asdict(network.config)
            manifest["parameters"][part] = parameter_count(network)
            manifest["files"][weights.name] = describe_file(weights)
            manifest["sources"].append({"part": part, "name": path.name, **describe_file(path)})
        write_manifest(built, manifest)
    return read_manifest(out_dir)


def load_published(folder: Path) -> tuple[SwinUNet, VQAutoencoder, Schedule]:
    """Networks (float32, CPU, evaluation mode) and schedule of a folder that ``convert`` wrote.

    WeightsError: the folder is of another kind, damaged, or changed since.
    """
    manifest = read_manifest(folder)
    if manifest.get("kind") != "published":
        raise WeightsError(f"{folder} holds a {manifest.get('kind')!r} model, not 'published'")
    try:
        schedule = exponential_schedule(**manifest["schedule"])
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise WeightsError(f"{folder}: its manifest holds no schedule: {error!r}") from error
    networks = []
    for part, (network_type, config_type, *_) in _NETWORKS.items():
        state = load_tensors(folder, manifest, f"{part}.safetensors")
        try:
            sizes = manifest[part]
            config = config_type(**sizes | {"multipliers": tuple(sizes["multipliers"])})
            check_depth(state, len(config.multipliers), config.blocks, sizes.get("swin_depth", 1))
            with torch.device("meta"):
                network = network_type(config)
            network.load_state_dict(state, assign=True)
        except (KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            raise WeightsError(f"{folder}: the manifest does not fit {part}: {error}") from error
        networks.append(network.eval().requires_grad_(False))
    return (*networks, schedule)
