"""Where weights are found, and how a folder of weights proves that it is intact.

A weights folder holds ``manifest.json`` and the safetensors files that it names:

``{"format": 1, "kind": "compact"|"published", "files": {NAME: {"bytes": n, "sha256": hex}}, ...}``
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difiisr_models.files import read_text, replaced, sha256_file, write_json

if TYPE_CHECKING:
    from torch import Tensor, nn

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = 1
MODELS_SUBFOLDER = Path("config", "models")
MAX_MANIFEST_BYTES = 1 << 20
LARGEST_WEIGHT = 1e4  # of networks that are any use: those of this project stay below 10


class WeightsError(ValueError):
    """Weights that are missing, damaged, or not what their manifest says."""


def share_dir() -> Path:
    """Folder that holds ``launch/`` and ``config/``: the installed share, else the checkout.

    Looked up in order: the ament prefixes (a sourced workspace), the prefix that this file is
    installed in (``pip install``, also with ``--user``), the checkout that it lies in.

    Raises:
        WeightsError: none of them holds ``config/models``.
    """
    prefixes = [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    around = Path(__file__).resolve().parents
    candidates = [prefix / "share" / "difiisr_ros" for prefix in [*prefixes, *around]]
    candidates.append(around[1])
    for candidate in candidates:
        if (candidate / MODELS_SUBFOLDER).is_dir():
            return candidate
    raise WeightsError(
        f"no share folder with config/models found; looked in {', '.join(map(str, candidates))}. "
        "Install the package, or run from its checkout."
    )


def find_weights_folder(name: str) -> Path:
    """Folder of the weights called ``name``: a shipped model, a folder, or a file inside one.

    Raises:
        FileNotFoundError: there is no such model and no such path.
        WeightsError: the path exists but no manifest lies there.
    """
    path = Path(name).expanduser()
    if path.name == name:  # of a shipped model, rather than a path
        shipped = share_dir() / MODELS_SUBFOLDER / name
        path = shipped if (shipped / MANIFEST_NAME).is_file() else path
    if not path.exists():
        found = sorted((share_dir() / MODELS_SUBFOLDER).glob(f"*/{MANIFEST_NAME}"))
        raise FileNotFoundError(
            f"no model {name!r}: neither a shipped one ({', '.join(p.parent.name for p in found)}),"
            " nor 'bicubic', nor an existing path"
        )
    folder = path if path.is_dir() else path.parent
    if not (folder / MANIFEST_NAME).is_file():
        raise WeightsError(
            f"{path} is no weights folder, and in none: there is no {MANIFEST_NAME}. A training "
            "run becomes one by `difiisr train CONFIG --run RUN --export DIR`, published .pth "
            "files by `difiisr convert`; an .onnx or engine file is no model by itself"
        )
    return folder


def read_manifest(folder: Path) -> dict[str, Any]:
    """Parse ``folder/manifest.json``.

    Raises:
        WeightsError: unreadable, too large, not JSON, or of another format number.
    """
    path = folder / MANIFEST_NAME
    try:
        manifest = json.loads(read_text(path, MAX_MANIFEST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise WeightsError(f"cannot read {path}: {reason}") from error
    found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
    if found != MANIFEST_FORMAT:
        raise WeightsError(f"{path} has format {found!r}, this version reads {MANIFEST_FORMAT}")
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write ``folder/manifest.json``, stamped with the format number."""
    write_json(folder / MANIFEST_NAME, {"format": MANIFEST_FORMAT, **manifest})


def describe_file(path: Path) -> dict[str, Any]:
    """Manifest entry of a file: ``{"bytes": n, "sha256": hex}``."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def save_tensors(network: nn.Module, path: Path) -> None:
    """Write the state of ``network`` as a safetensors file; OSError where that fails."""
    from safetensors import SafetensorError  # here: what looks for weights alone needs no torch
    from safetensors.torch import save_file

    with replaced(path) as beside:
        try:
            save_file({k: v.contiguous().cpu() for k, v in network.state_dict().items()}, beside)
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written (is the disk full?): {error}") from error
    path.chmod(0o644)  # the library makes it readable for its owner alone


def checked_file(folder: Path, manifest: dict[str, Any], name: str) -> Path:
    """A file of a weights folder; WeightsError unless it is what the manifest says."""
    path = folder / name
    try:
        expected, size = manifest["files"][name]["sha256"], manifest["files"][name]["bytes"]
    except (KeyError, TypeError) as error:
        raise WeightsError(f"the manifest of {folder} is incomplete: {error}") from error
    if not path.is_file():
        raise WeightsError(f"{path} is missing though its manifest names it")
    if path.stat().st_size != size:  # before hours of hashing
        raise WeightsError(
            f"{path} has {path.stat().st_size} bytes, its manifest says {size}: the file was cut, "
            "changed or damaged; install or convert it again"
        )
    if (actual := sha256_file(path)) != expected:
        raise WeightsError(
            f"{path} has sha256 {actual}, its manifest says {expected}: "
            "the file was changed or damaged; install or convert it again"
        )
    return path


def load_tensors(folder: Path, manifest: dict[str, Any], name: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file of a weights folder, if it is what the manifest says.

    Returns:
        float32 tensors, finite and no larger than :data:`LARGEST_WEIGHT`, on the CPU.

    Raises:
        WeightsError: the file is missing, changed or damaged, the manifest does not name it, or a
            tensor is of another dtype or holds values that no trained network has.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = checked_file(folder, manifest, name)
    try:
        # Copies: someone may write over the mapped file, and mapped tensors are unaligned, which
        # costs time and changes last bits.
        tensors = {key: value.clone() for key, value in load_file(path).items()}
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged: {error}") from error
    for key, value in tensors.items():
        if value.dtype != torch.float32:
            raise WeightsError(f"{path}: {key} is {value.dtype}, weights are torch.float32")
        largest = float(value.abs().amax()) if value.numel() else 0.0  # NaN where one is
        if not largest <= LARGEST_WEIGHT:
            raise WeightsError(
                f"{path}: {key} holds {largest:g}; weights are finite and at most "
                f"{LARGEST_WEIGHT:g}: the training diverged, or the file was tampered with"
            )
    return tensors


def check_depth(tensors: dict[str, Tensor], *counts: int) -> None:
    """Raise ValueError where a manifest speaks of more layers than there are tensors.

    To build such a network before its tensors are found missing could take for ever.
    """
    if math.prod(counts) > len(tensors):
        raise ValueError(f"{math.prod(counts)} layers cannot be in {len(tensors)} tensors")
