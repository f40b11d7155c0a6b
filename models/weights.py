"""Where weights are found, and how a folder of weights proves that it is intact.

A weights folder holds ``manifest.json`` and the safetensors files that it names:

``{"format": 1, "kind": "compact"|"published", "files": {NAME: {"bytes": n, "sha256": hex}}, ...}``
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = 1
MODELS_SUBFOLDER = Path("config", "models")


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
        "no share folder with config/models found; looked in "
        + ", ".join(str(c) for c in candidates)
        + ". Install the package, or run from its checkout."
    )


def shipped_models() -> list[str]:
    """Names of the models whose weights ship with the package."""
    folder = share_dir() / MODELS_SUBFOLDER
    return sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST_NAME}"))


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
        raise FileNotFoundError(
            f"no model {name!r}: neither a shipped one ({', '.join(shipped_models())}), "
            "nor 'bicubic', nor an existing path"
        )
    folder = path if path.is_dir() else path.parent
    if not (folder / MANIFEST_NAME).is_file():
        raise WeightsError(
            f"{path} is no weights folder, and in none: there is no {MANIFEST_NAME}. A training "
            "run becomes one by `difiisr train CONFIG --run RUN --export DIR`, published .pth "
            "files by `difiisr convert`; an .onnx or engine file is no model by itself"
        )
    return folder


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def verify_file(path: Path, expected_sha256: str) -> None:
    """Raise :class:`WeightsError` unless ``path`` exists and has the hash."""
    if not Path(path).is_file():
        raise WeightsError(f"{path} is missing though its manifest names it")
    actual = sha256_file(path)
    if actual != expected_sha256:
        raise WeightsError(
            f"{path} has sha256 {actual}, its manifest says {expected_sha256}: "
            "the file was changed or damaged; install or convert it again"
        )


def read_manifest(folder: Path) -> dict:
    """Parse ``folder/manifest.json``.

    Raises:
        WeightsError: unreadable, not JSON, or of another format number.
    """
    path = Path(folder) / MANIFEST_NAME
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {path}: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise WeightsError(f"{path} has format {found!r}, this version reads {MANIFEST_FORMAT}")
    return manifest


def write_manifest(folder: Path, manifest: dict) -> None:
    """Write ``folder/manifest.json``, stamped with the format number."""
    text = json.dumps({"format": MANIFEST_FORMAT, **manifest}, indent=2, sort_keys=False)
    (Path(folder) / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")


def describe_file(path: Path) -> dict:
    """Manifest entry of a file: ``{"bytes": n, "sha256": hex}``."""
    return {"bytes": Path(path).stat().st_size, "sha256": sha256_file(path)}
