"""Files that are whole or not there: the one way in which this project replaces a file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replaced(path: Path, force: bool = True) -> Iterator[Path]:
    """A file to write beside ``path``, which takes its place when the block ends well.

    Whatever happens, ``path`` is the old file or the new one. Folders above it are made.

    Yields:
        the file to write; it does not exist yet.

    Raises:
        OSError: as writing does; ``path`` is then as it was. So it is where it is a device, a pipe
            or a folder, and, without ``force``, where it has come into being meanwhile.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is no file: it is not replaced")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.parent / f".{path.name}.{secrets.token_hex(4)}.partial"
    try:
        yield beside
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        if os.path.lexists(path) and not force:
            raise FileExistsError(f"{path} has come into being meanwhile: it is not replaced")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read_text(path: Path, most: int = 2**22) -> str:
    """The UTF-8 text of a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it has more than ``most`` bytes, or is no file: a pipe would be waited for.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise ValueError(f"{path} is no file")
    if size > most:
        raise ValueError(f"{path} has {size} bytes, at most {most} are read")
    return path.read_text(encoding="utf-8")


def files_below(folder: Path) -> Iterator[Path]:
    """Files in a folder and below, each folder once, also those behind links; no hidden ones.

    Pipes and devices, which would be waited for, are no files.
    """
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [] if real in seen else [f for f in folders if not f.startswith(".")]
        if real not in seen:
            paths = (Path(root, name) for name in names if not name.startswith("."))
            yield from (path for path in paths if path.is_file())
        seen.add(real)


@contextmanager
def replaced_folder(target: Path, force: bool, mark: str) -> Iterator[Path]:
    """A folder to make, which takes the place of ``target`` when the block ends well.

    Whatever happens, ``target`` is the old folder or the new one, and nothing else stays there.
    Folders above it are made.

    Args:
        target: what is to be there.
        force: it may be there already, if it holds a file ``mark``.
        mark: name of a file that each folder of its kind holds.

    Yields:
        the folder, of the same name elsewhere on that disk; it does not exist yet.

    Raises:
        OSError: as making it does; ``target`` is then as it was.
        FileExistsError: ``target`` may not be replaced; it may have come into being meanwhile.
    """
    _check_replaceable(target, force, mark)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.parent / f".{target.name}.{secrets.token_hex(4)}.partial"
    made, aside = work / target.name, work / "replaced"
    try:  # begins before there is a folder: a signal may come as soon as there is one
        work.mkdir()
        yield made
        _check_replaceable(target, force, mark)
        try:
            if target.exists():
                target.rename(aside)
            made.rename(target)
        except BaseException:  # Ctrl-C too: the old one, or the new one, but never none
            if aside.exists() and not target.exists():
                aside.rename(target)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_replaceable(folder: Path, force: bool, mark: str) -> None:
    if folder.exists() and not force:
        raise FileExistsError(f"{folder} exists; choose another output, or --force to replace it")
    if folder.exists() and not (folder / mark).is_file():
        raise FileExistsError(f"{folder} exists and holds no {mark}: it is not replaced")


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by a UTF-8 text; see :func:`replaced`."""
    with replaced(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Replace ``path`` by ``data`` as :func:`json_text` has it; see :func:`replaced`."""
    write_text(path, json_text(data) + "\n")


def json_text(data: Any) -> str:
    """Indented JSON; ``null`` for NaN and infinity, which JSON has no number for."""
    return json.dumps(_plain(data), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
