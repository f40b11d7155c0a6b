"""Reading a ``.pth`` file from a stranger: it is looked at before torch is, and refused by name."""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor

MAX_FILE_BYTES = 4 << 30
MAX_INDEX_BYTES = 16 << 20
MAX_TENSORS = 2000
MIN_TORCH = (2, 6)  # before 2.6 a crafted file could run code despite weights_only=True

_WRAPPERS = ("params_ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "params")
_PREFIX = re.compile(r"^(module\.|_orig_mod\.)+")
_HARMLESS_GLOBAL = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch (\w+Storage|Size)"
)


class CheckpointError(ValueError):
    """A checkpoint that is not safe to read, or not of the published networks."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers of a ``.pth`` file under the reference's names, on the CPU.

    Wrappers (``state_dict``, ``params_ema``, ...; averaged weights first) and the prefixes
    ``module.`` and ``_orig_mod.`` are taken off.

    Raises:
        CheckpointError: torch is older than 2.6; the file is missing, too large, damaged, holds
            anything but tensors and plain values, or no state dict.
    """
    path = Path(path)
    _require_safe_torch()
    _inspect_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a crafted file makes torch raise is not specified
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: torch refuses to read it: {reason}") from error
    return _state_dict(content, path)


def _require_safe_torch() -> None:
    found = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if found < MIN_TORCH:
        raise CheckpointError(
            f"reading .pth files needs torch >= {'.'.join(map(str, MIN_TORCH))}, "
            f"this is {torch.__version__}: older ones can be made to run code by a crafted file"
        )


def _inspect_archive(path: Path) -> None:
    """Refuse an archive by what it declares, before anything is allocated or run for it."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise CheckpointError(f"{path}: {size} bytes, at most {MAX_FILE_BYTES} are read")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            declared = sum(entry.file_size for entry in entries)
            if declared > size or any(entry.compress_type for entry in entries):
                raise CheckpointError(
                    f"{path}: declares {declared} bytes of content in a file of {size} bytes; "
                    "torch.save writes uncompressed archives"
                )
            indices = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
            if len(indices) != 1 or indices[0].file_size > MAX_INDEX_BYTES:
                raise CheckpointError(
                    f"{path}: expected one data.pkl of at most {MAX_INDEX_BYTES} bytes, found "
                    f"{[entry.file_size for entry in indices]}"
                )
            index = archive.read(indices[0])
    except (zipfile.BadZipFile, RuntimeError, OSError, EOFError) as error:
        raise CheckpointError(
            f"{path}: no intact zip archive as torch.save writes it ({error}); if the file is "
            "older than torch 1.6, load and save it again with a newer torch"
        ) from error
    _inspect_pickle(index, path)


def _inspect_pickle(index: bytes, path: Path) -> None:
    """Refuse a pickle that names anything but tensors; it is disassembled, not executed."""
    try:
        for opcode, argument, _ in pickletools.genops(index):
            if opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
                raise CheckpointError(f"{path}: pickle opcode {opcode.name} is not read")
            if opcode.name == "GLOBAL" and not _HARMLESS_GLOBAL.fullmatch(argument):
                raise CheckpointError(
                    f"{path}: wants to import {argument.replace(' ', '.')}, which no file of "
                    "plain tensors needs; if you trust its source, save its state dict alone"
                )
    except CheckpointError:
        raise
    except Exception as error:  # genops raises whatever malformed bytes lead it to
        raise CheckpointError(f"{path}: its data.pkl is damaged: {error}") from error


def _state_dict(content: object, path: Path) -> dict[str, Tensor]:
    for _ in _WRAPPERS:  # no deeper: a crafted one may contain itself
        inside = (content.get(k) for k in _WRAPPERS) if isinstance(content, dict) else ()
        content = next((inner for inner in inside if isinstance(inner, dict)), content)
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a state dict")
    if len(content) > MAX_TENSORS:
        raise CheckpointError(f"{path}: {len(content)} entries, at most {MAX_TENSORS} are read")
    state: dict[str, Tensor] = {}
    elements = 0
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: entry {key!r} is a {type(value).__name__}, expected names and tensors"
            )
        name = _PREFIX.sub("", key).replace("._orig_mod.", ".")
        if name in state:
            raise CheckpointError(f"{path}: {name} is there twice, with and without a prefix")
        state[name] = value
        elements += value.numel()
    if elements > MAX_FILE_BYTES // 4:
        raise CheckpointError(
            f"{path}: its tensors declare {elements} values, at most {MAX_FILE_BYTES // 4} are read"
        )
    return state
