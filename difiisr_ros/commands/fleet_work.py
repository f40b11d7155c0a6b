"""Has the jobs of a fleet done by Ray.

Which process does which job, what happens to the jobs of one that dies, and the progress shown are
Ray Data's.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import ray
import ray.data
from annotated_types import Ge
from cyclopts import Parameter

from difiisr_ros.bags import choose_image_topic, open_bag
from difiisr_ros.commands.fleet_report import fleet_page
from difiisr_ros.fleet_jobs import FleetFolder, Job

_RETRIES = 5  # of a job whose worker dies
_OBJECT_STORE = 100 * 2**20  # bytes: rows alone go through it

Make = Callable[[Job, Path, Path], dict[str, Any]]
"""Does a job: given it, its recording and the folder to make, returns columns of its row."""


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

    def __init__(self, task: Task, jobs: Mapping[str, Job], out: FleetFolder) -> None:
        self._make, self._jobs, self._out = task.load(), jobs, out

    def __call__(self, item: dict[str, str]) -> dict[str, str]:
        """The row of the job of this name, as JSON."""
        job = self._jobs[item["name"]]

        def make(source: Path, folder: Path) -> dict[str, Any]:
            row = self._make(job, source, folder)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            return row | {"host": platform.node(), "memory_mb": peak}

        return {"row": json.dumps(self._out.do(job, item["name"], make))}


def do_all(
    jobs: Sequence[Job], out: str, task: Task, cluster: Cluster, slice_frames: int = 0
) -> int:
    """Have the jobs done that are not, and write the result over all; returns the exit code.

    ``slice_frames``: cut longer recordings into slices of so many; 0: do not.
    """
    if cluster.address.startswith("ray://"):  # Ray Data must be driven from inside the cluster
        ray.init(cluster.address)
        out = out if "://" in out else os.path.abspath(out)
        there = ray.remote(num_cpus=0)(do_all)
        inside = replace(cluster, address="auto")
        return ray.get(there.remote(jobs, out, task, inside, slice_frames))
    if slice_frames:
        jobs = _sliced(jobs, slice_frames, task.image_topic, cluster)
    folder, product = FleetFolder(out), task.product()
    named = {job.name(product): job for job in jobs}
    done = folder.done().keys() & named.keys()
    left = {name: job for name, job in named.items() if name not in done}
    print(f"{len(named)} jobs, {len(done)} of them done already")
    failed: dict[str, dict[str, Any]] = {}
    for n, row in enumerate(_rows(left, task, folder, cluster), 1):
        print(f"{n} of {len(left)}: {_line(row)}", flush=True)
        failed |= {row["job"]: row} if row["failed"] else {}
    rows = failed | folder.done()
    for name in named.keys() - rows.keys():
        died = f"its worker died {_RETRIES + 1} times: out of memory, or see Ray's logs"
        rows[name] = {"job": name, "input": named[name].path, "fault": died, "failed": True}
        print(_line(rows[name]))
    write_result(folder, list(rows.values()))
    print(f"{out}: fleet.parquet, report.html")
    own = [rows[name] for name in named]
    if not any(row.get("frames_out") for row in own):
        print("difiisr: no frame of any recording was made", file=sys.stderr)
        return 1
    return 2 if any(row.get("fault") or row.get("refused") for row in own) else 0


def _rows(
    jobs: Mapping[str, Job], task: Task, out: FleetFolder, cluster: Cluster
) -> Iterator[dict[str, Any]]:
    """The rows of jobs as Ray has them done, each in a block of its own."""
    if not jobs:
        return
    _start_ray(cluster)
    have = ray.cluster_resources()
    gpus = cluster.num_gpus
    if gpus is None:
        gpus = 1 if have.get("GPU") and task.device != "cpu" else 0
    fitting = int(have["GPU"] / gpus if gpus else have["CPU"] / task.threads)
    pool = ray.data.ActorPoolStrategy(
        size=min(cluster.workers or max(1, fitting), len(jobs)), max_tasks_in_flight_per_actor=1
    )
    ray.data.DataContext.get_current().max_errored_blocks = -1  # one lost job stops no other
    items = [{"name": name} for name in jobs]
    with warnings.catch_warnings():  # of an argument that Ray 2.64 will not take; setup.py knows
        warnings.simplefilter("ignore")
        done = ray.data.from_items(items, override_num_blocks=len(items)).map(
            Worker, fn_constructor_args=(task, jobs, out), compute=pool,
            num_cpus=task.threads, num_gpus=gpus, max_task_retries=_RETRIES,
        )  # fmt: skip
    for item in done.iter_rows():
        yield json.loads(item["row"])


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
    ray.init(cluster.address, log_to_driver=False, **own if cluster.address == "local" else {})


def write_result(folder: FleetFolder, rows: list[dict[str, Any]]) -> None:
    """Write ``fleet.parquet`` and ``report.html`` about the rows of jobs; nobody works there."""
    rows.sort(key=lambda row: (row["input"], row["job"]))
    folder.finish(rows, fleet_page(rows))


def _line(row: dict[str, Any]) -> str:
    if row["failed"] or not row["folder"]:
        return f"{row['input']}: {'FAILED' if row['failed'] else 'not usable'}: {row['fault']}"
    text = f"{row['input']}: {row['frames_out']} of {row['frames_in']} frames"
    return f"{text}, {row['seconds']:.1f} s" + f", damaged: {row['fault']}" * bool(row["fault"])
