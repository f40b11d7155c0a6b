"""Many recordings: what a job is, how it is called, and where its result lies.

::

    OUT/bags/NAME/              what a job made
    OUT/rows/NAME.parquet       its row, written last: a job with a row is done
    OUT/.partial/               what is being made, gone when the run has ended
    OUT/fleet.parquet           all rows

Inputs and OUT lie on any file system of pyarrow. Folders are fsynced and renamed on a local one; on
an object store each object appears whole. Who does the jobs, and how often, is not decided here.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import io
import json
import os
import platform
import re
import resource
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet
from fsspec.utils import glob_translate

from difiisr_ros.bags import is_storage, recordings_among

_COLUMNS = {
    pa.string(): "job input topic fault model backend device host folder",
    pa.int64(): "first frames_in frames_out refused invalid_pixels events",
    pa.float64(): "seconds noise noise_percent span memory_mb",
    pa.bool_(): "failed",
    pa.map_(pa.string(), pa.float64()): "metrics",
    pa.list_(pa.string()): "notes",
}
SCHEMA = pa.schema({name: kind for kind, names in _COLUMNS.items() for name in names.split()})
"""Columns of ``fleet.parquet``, a row a job; what they mean stands in docs/fleet.md."""

_BAGS, _ROWS, _TABLE = "bags", "rows", "fleet.parquet"


@dataclass(frozen=True)
class Job:
    """A recording, or a slice of it.

    Attributes:
        root: opens its file system: the user's own text.
        path: of the folder or storage file there.
        files: path, bytes and time of change (ns) of each of its files; empty: it is not there.
        first: the first frame of the slice.
        frames: how many the slice has; ``None``: to the end.
    """

    root: str
    path: str
    files: tuple[tuple[str, int, int], ...]
    first: int = 0
    frames: int | None = None

    def name(self, product: Mapping[str, Any]) -> str:
        """Of the folder of its result: the recording's, and a hash of all the result depends on.

        Args:
            product: what is made of it: verb, topic, weights, settings, backend, precision,
                threads; as for JSON. The package's version counts, too.
        """
        own = {key: value for key, value in asdict(self).items() if key != "root"}
        told = [version("difiisr_ros"), file_system(self.root)[0].type_name, own, dict(product)]
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        stem = re.sub(r"[^A-Za-z0-9._+-]+", "-", PurePosixPath(self.path).name).strip("-._")[:80]
        part = "" if not self.first and self.frames is None else f"-{self.first:08}"
        return f"{stem}{part}-{digest[:20]}"

    def fetch(self, folder: Path) -> Path:
        """The recording on this machine: where it lies, or a copy below ``folder``.

        Raises:
            FileNotFoundError: it is not there.
            OSError: the copy fails.
        """
        if not self.files:
            raise FileNotFoundError(f"no recording at {self.path}")
        system, _ = file_system(self.root)
        if _is_local(system):
            return Path(self.path)
        parent = PurePosixPath(self.path).parent
        for path, _, _ in self.files:
            target = folder / PurePosixPath(path).relative_to(parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            pa.fs.copy_files(path, str(target), system, pa.fs.LocalFileSystem())
        return folder / PurePosixPath(self.path).name


Make = Callable[[Job, Path, Path], dict[str, Any]]
"""Does a job: given it, its recording and the folder to make, returns columns of its row."""


def file_system(text: str) -> tuple[pa.fs.FileSystem, str]:
    """The file system of a path or URI (``s3://``, ``gs://``, ``fsspec+...``), and the path there.

    Raises:
        ValueError: there is no such kind of file system.
    """
    if "://" not in text:
        return pa.fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text))
    return pa.fs.FileSystem.from_uri(text)


def find_jobs(given: Iterable[str], out: str) -> list[Job]:
    """A job for each recording that is named, the largest first; none of those in ``out``.

    Args:
        given: storage files, folders at any depth, patterns with ``*``, or .txt files with one of
            these in each line; ``#`` begins a comment. Paths or URIs.
        out: folder of results.

    Raises:
        FileNotFoundError: nothing is there, of what a text file names excepted: that has a job
            without files.
        ValueError: a file is neither a recording nor a list.
    """
    system, own = file_system(out)
    found = {}
    for text in given:
        for job in _jobs(text):
            theirs, _ = file_system(job.root)
            if theirs != system or not f"{job.path}/".startswith(f"{own}/"):
                found[theirs.type_name, job.path] = job
    sizes = {job: sum(size for _, size, _ in job.files) for job in found.values()}
    return sorted(sizes, key=lambda job: (-sizes[job], job.path))


def _jobs(given: str) -> Iterator[Job]:
    system, named = file_system(given)
    is_there = system.get_file_info(named).type != pa.fs.FileType.NotFound
    paths = [named] if is_there else _matching(system, named)
    if not paths:
        raise FileNotFoundError(f"there is no {given}")
    for path in paths:
        where, info = PurePosixPath(path), system.get_file_info(path)
        if info.is_file and not is_storage(where):
            if is_there:  # by no pattern
                yield from _listed(path, system.open_input_stream(path).read())
            continue
        below = str(where.parent) if info.is_file else path
        selector = pa.fs.FileSelector(below, recursive=not info.is_file)
        files = {PurePosixPath(f.path): f for f in system.get_file_info(selector) if f.is_file}
        inside = defaultdict(list)
        for file in files:
            inside[file.parent].append(file)
        for recording in [where] if info.is_file else recordings_among(files):
            log = recording.with_name(f"{recording.name}-wal")  # that a killed recorder left
            own = inside.get(recording) or [f for f in (recording, log) if f in files]
            told = tuple((str(f), files[f].size, files[f].mtime_ns or 0) for f in sorted(own))
            yield Job(given, str(recording), told)


def _matching(system: pa.fs.FileSystem, pattern: str) -> list[str]:
    """What a pattern with ``*`` names; an object store's folders are what its files' names tell."""
    if _is_local(system):
        return sorted(glob.glob(pattern, recursive=True))
    below = pattern.partition("*")[0].rpartition("/")[0]
    selector = pa.fs.FileSelector(below, allow_not_found=True, recursive=True)
    files = [PurePosixPath(info.path) for info in system.get_file_info(selector)]
    names = {str(path) for file in files for path in (file, *file.parents)}
    return sorted(filter(re.compile(glob_translate(pattern)).match, names))


def _listed(path: str, content: bytes) -> Iterator[Job]:
    """Jobs of the lines of a text file; of what is not there, a job without files."""
    if not path.endswith(".txt"):
        raise ValueError(f"{path} is no recording; a list of recordings is called .txt")
    lines = content.decode(errors="surrogateescape").splitlines()
    for line in filter(None, (line.partition("#")[0].strip() for line in lines)):
        try:
            yield from _jobs(line)
        except FileNotFoundError:
            yield Job(line, file_system(line)[1], ())


class FleetFolder:
    """The folder of results, on any file system; it may be handed to another process.

    Raises:
        ValueError: there is no such kind of file system.
    """

    def __init__(self, root: str) -> None:
        self._system, self._path = file_system(root)
        if _is_local(self._system):
            self._scratch = Path(self._path, ".partial")  # on the same disk
        else:
            digest = hashlib.sha256(f"{self._system.type_name} {self._path}".encode()).hexdigest()
            name = f"difiisr-fleet-{os.getuid()}-{digest[:16]}"
            self._scratch = Path(tempfile.gettempdir(), name)

    def done(self) -> dict[str, dict[str, Any]]:
        """Rows of the jobs that are done, by name."""
        selector = pa.fs.FileSelector(f"{self._path}/{_ROWS}", allow_not_found=True)
        files = [info.path for info in self._system.get_file_info(selector) if info.is_file]
        if not files:
            return {}
        found = pa.dataset.dataset(files, SCHEMA, filesystem=self._system).to_table().to_pylist()
        return {row["job"]: row for row in found}

    def result(self) -> list[dict[str, Any]]:
        """Rows of the last run's ``fleet.parquet``; FileNotFoundError without one."""
        path = f"{self._path}/{_TABLE}"
        if self._system.get_file_info(path).type is pa.fs.FileType.NotFound:
            raise FileNotFoundError(f"no run of difiisr fleet: there is no {path}")
        return pa.parquet.read_table(path, filesystem=self._system).to_pylist()

    def do(self, job: Job, name: str, make: Make) -> dict[str, Any]:
        """Do one job; what it made is there whole, or not at all.

        Args:
            job: to do.
            name: of it.
            make: does it.

        Returns:
            the row. Of a recording that cannot be used it has ``fault``, and the job is done; of
            what this machine failed at it has ``failed`` too, and the next run tries again.
        """
        row: dict[str, Any] = {"job": name, "input": job.path, "first": job.first, "fault": ""}
        row |= {"failed": False, "folder": "", "host": platform.node()}
        started = time.perf_counter()
        try:
            self._scratch.mkdir(parents=True, exist_ok=True)
            for left in self._scratch.glob(f"{name}.*"):  # of an attempt that was killed
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f"{name}.", dir=self._scratch) as scratch:
                made, copied = Path(scratch, name), Path(scratch, "source")
                try:
                    row |= make(job, job.fetch(copied), made)
                    self._settle(made, f"{_BAGS}/{name}")
                    row["folder"] = f"{_BAGS}/{name}"
                except ValueError as error:
                    if isinstance(error.__cause__, (OSError, MemoryError, RuntimeError)):
                        raise
                    row["fault"] = str(error)
                row["fault"] = row["fault"].replace(str(copied), os.path.dirname(job.path))
                row["memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                row["seconds"] = time.perf_counter() - started
                self._write(f"{_ROWS}/{name}.parquet", _as_parquet([row]))
        except Exception as error:  # of one job among many
            return row | {"fault": f"{type(error).__name__}: {error}", "failed": True}
        return row

    def finish(self, rows: Sequence[Mapping[str, Any]], page: str) -> None:
        """Write ``fleet.parquet`` and ``report.html``, when nobody works here any more."""
        self._write(_TABLE, _as_parquet(rows))
        self._write("report.html", page.encode())
        self.clear()

    def clear(self) -> None:
        """Take away what is half done; nobody works here any more."""
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _write(self, place: str, content: bytes) -> None:
        """Write or replace a file; it is there whole or not at all."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._scratch) as scratch:
            file = Path(scratch, "file")
            file.write_bytes(content)
            self._settle(file, place)

    def _settle(self, made: Path, place: str) -> None:
        """Bring a file or folder to its place, on an object store file by file."""
        if not _is_local(self._system):
            for file in sorted(p for p in (made, *made.rglob("*")) if p.is_file()):
                there = f"{self._path}/{place}/{file.relative_to(made)}".removesuffix("/.")
                pa.fs.copy_files(str(file), there, pa.fs.LocalFileSystem(), self._system)
            return
        target = Path(self._path, place)
        target.parent.mkdir(parents=True, exist_ok=True)
        for path in (*made.rglob("*"), made):
            _flush(path)
        try:
            made.replace(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return  # an earlier attempt was killed behind this point: its folder is whole
        _flush(target.parent)


def _as_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A parquet file of rows; columns that they lack are empty."""
    sink = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist(list(rows), SCHEMA), sink)
    return sink.getvalue()


def _is_local(system: pa.fs.FileSystem) -> bool:
    return isinstance(system, pa.fs.LocalFileSystem)


def _flush(path: Path) -> None:
    """Have a file's content, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
