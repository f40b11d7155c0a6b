"""Has the jobs of a fleet done by Ray.

Which process does which job, and what happens to the job of one that dies, is Ray's.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import psutil
import ray
from annotated_types import Ge
from cyclopts import Parameter
from ray.exceptions import RayActorError, RayError
from ray.util import ActorPool

from difiisr_ros.bags import choose_image_topic, open_bag
from difiisr_ros.commands.answers import Answer
from difiisr_ros.commands.fleet_report import fleet_page
from difiisr_ros.fleet_jobs import FleetFolder, Job

_RETRIES = 5  # of a job whose worker dies
_OBJECT_STORE = 100 * 2**20  # bytes: next to nothing goes through it

Task = Any
"""What is made of every recording, and travels to each worker: a frozen dataclass with
``image_topic``, ``device``, ``threads``, ``product()``, all that a result depends on, for the jobs'
names, and ``load() -> Make``, of the models."""


@dataclass(frozen=True)
class Cluster:
    """Where Ray does the work.

    Attributes:
        address: local: this machine; auto: the cluster that this machine is part of;
            ray://HOST:10001: another
        workers: processes with a model each; 0: as many as the cluster has CPUs or GPUs for
        num_gpus: GPUs of a worker, as 0.25; default: 1 where there are any, unless --device is cpu
    """

    address: str = "local"
    workers: Annotated[int, Ge(0)] = 0
    num_gpus: Annotated[float, Ge(0)] | None = None


ClusterOptions = Annotated[Cluster, Parameter(name="*")]


class Worker:
    """A process of Ray's: loads once, then does one job after the other."""

    def __init__(self, task: Task, out: FleetFolder) -> None:
        self._make, self._out = task.load(), out

    def do(self, name: str, job: Job) -> dict[str, Any]:
        """The row of the job of this name."""
        return self._out.do(job, name, self._make)


def do_all(
    jobs: Sequence[Job], out: str, task: Task, cluster: Cluster, slice_frames: int = 0
) -> Answer:
    """Have the jobs done that are not, and write the result over all.

    ``slice_frames``: cut longer recordings into slices of so many; 0: do not.
    """
    if cluster.address.startswith("ray://"):  # rows and results are read where workers write them
        _init_ray(cluster.address)
        out = out if "://" in out else os.path.abspath(out)
        inside = replace(cluster, address="auto")
        there = ray.remote(num_cpus=0)(do_all).remote(jobs, out, task, inside, slice_frames)
        return ray.get(there)
    folder, product = FleetFolder(out), task.product()
    with _cleared_if_interrupted(folder, cluster):
        if slice_frames:
            jobs = _sliced(jobs, slice_frames, task.image_topic, cluster)
        named = {job.name(product): job for job in jobs}
        rows = folder.done()
        left = {name: job for name, job in named.items() if name not in rows}
        already = f"{len(named)} jobs, {len(named) - len(left)} of them done already"
        print(already, file=sys.stderr)
        for n, row in enumerate(_rows(left, task, folder, cluster), 1):
            print(f"{n} of {len(left)}: {_line(row)}", file=sys.stderr, flush=True)
            rows[row["job"]] = row
    died = f"its worker died {_RETRIES + 1} times: out of memory, or see Ray's logs"
    for name in [name for name in left if name not in rows]:
        rows[name] = {"job": name, "input": left[name].path, "fault": died, "failed": True}
        print(_line(rows[name]), file=sys.stderr)
    write_result(folder, list(rows.values()))
    own = [rows[name] | {"metrics": dict(rows[name].get("metrics") or {})} for name in named]
    code = 2 if any(row.get("fault") or row.get("refused") for row in own) else 0
    if not any(row.get("frames_out") for row in own):
        print("difiisr: no frame of any recording was made", file=sys.stderr)
        code = 1
    return Answer({"jobs": own}, f"{out}: fleet.parquet, report.html", code)


def _rows(
    jobs: Mapping[str, Job], task: Task, out: FleetFolder, cluster: Cluster
) -> Iterator[dict[str, Any]]:
    """The rows of jobs as they are done; a job whose worker died too often has none."""
    if not jobs:
        return
    _start_ray(cluster)
    have, gpus = ray.cluster_resources(), cluster.num_gpus
    if gpus is None:
        gpus = int("GPU" in have and task.device != "cpu")
    fitting = have.get("CPU", 0) / task.threads
    if gpus:
        fitting = min(fitting, have.get("GPU", 0) / gpus)
    # What workers are started with lies inline in the call, so that Ray can start them again
    worker = ray.remote(Worker).options(
        num_cpus=task.threads, num_gpus=gpus, max_restarts=-1, max_task_retries=_RETRIES
    )
    size = min(cluster.workers or max(1, int(fitting)), len(jobs))
    pool = ActorPool([worker.remote(task, out) for _ in range(size)])
    for item in jobs.items():
        pool.submit(lambda worker, item: worker.do.remote(*item), item)
    while pool.has_next():
        try:
            yield pool.get_next_unordered()
        except RayError as error:  # a lost job stops no other
            if isinstance(error, RayActorError) and error.actor_init_failed:
                why = str(error).splitlines()[-1]
                raise ValueError(f"no worker can start: {why}") from error
        pool.pop_idle()  # a worker without a job ends, which makes room for one of a lost machine


def _sliced(jobs: Sequence[Job], frames: int, topic: str | None, cluster: Cluster) -> list[Job]:
    """The jobs, those with more ``frames`` cut into slices of so many; Ray's tasks count them."""
    _start_ray(cluster)
    count_frames = ray.remote(_count)
    found = []
    counts = ray.get([count_frames.remote(job, topic) for job in jobs])
    for job, count in zip(jobs, counts, strict=True):
        starts = range(0, max(count, 1), frames)
        found += [replace(job, first=start, frames=frames) for start in starts[:-1]]
        found.append(replace(job, first=starts[-1]))  # to the end, whatever the count says
    return found


def _count(job: Job, topic: str | None) -> int:
    """The frames of a job's recording, 0 where they cannot be counted."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with open_bag(job.fetch(Path(folder))) as bag:
                return bag.count(choose_image_topic(bag, topic))
        except (OSError, ValueError):  # the job itself says why
            return 0


def _start_ray(cluster: Cluster) -> None:
    """Start or join Ray, unless this process has; it ends with the process."""
    if ray.is_initialized():
        return
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    own = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    own = own if cluster.address == "local" else {}
    _init_ray(cluster.address, log_to_driver=False, **own)


def _init_ray(address: str, **options: Any) -> None:
    """Ray takes SIGTERM for itself, and by it waits for long and aborts: it stays ours."""
    handler = signal.getsignal(signal.SIGTERM)
    with mock.patch("signal.signal"):
        ray.init(address, **options)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # what is not of Python took it, too


@contextmanager
def _cleared_if_interrupted(folder: FleetFolder, cluster: Cluster) -> Iterator[None]:
    """After an interrupt leave neither a Ray of our own nor what is half done."""
    try:
        yield
    except KeyboardInterrupt:
        if cluster.address == "local":
            _end_ray()
        folder.clear()
        raise


def _end_ray() -> None:
    """End the Ray of this process, which by itself takes a second for many of its processes."""
    began = psutil.Process().children(recursive=True)

    def kill(*but: str) -> None:
        for process in began:
            with suppress(psutil.NoSuchProcess):
                if not process.name().endswith(but):
                    process.kill()

    kill("raylet", "gcs_server", "Agent")  # without these the others complain
    ray.shutdown()
    kill()
    psutil.wait_procs(began, timeout=0.5)
    for session in Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray").glob(f"*_{os.getpid()}"):
        shutil.rmtree(session, ignore_errors=True)


def write_result(folder: FleetFolder, rows: list[dict[str, Any]]) -> None:
    """Write ``fleet.parquet`` and ``report.html`` about the rows of jobs; nobody works there."""
    rows.sort(key=lambda row: (row["input"], row["job"]))
    folder.finish(rows, fleet_page(rows))


def _line(row: dict[str, Any]) -> str:
    if row["failed"] or not row["folder"]:
        return f"{row['input']}: {'FAILED' if row['failed'] else 'not usable'}: {row['fault']}"
    text = f"{row['input']}: {row['frames_out']} of {row['frames_in']} frames"
    return f"{text}, {row['seconds']:.1f} s" + f", damaged: {row['fault']}" * bool(row["fault"])
