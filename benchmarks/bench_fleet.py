"""Times ``difiisr fleet replay`` beside a plain replay; writes ``fleet.json`` beside this file.

python benchmarks/bench_fleet.py [--workers 2] [--frames 60] [--bags 40]
"""

import os
import platform
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import cyclopts
import ray

from difiisr_models import Runtime
from difiisr_models.files import write_json
from difiisr_ros.commands.fleet import Replay
from difiisr_ros.commands.fleet_work import Cluster, do_all
from difiisr_ros.fleet_jobs import FleetFolder, find_jobs
from difiisr_ros.scene import write_scene_bag


def fleet(inputs: Path, out: Path, task: Replay, workers: int) -> tuple[list[dict], float, float]:
    """Rows of a run, seconds to its first, and seconds between two; Ray runs already."""
    started = time.time()
    do_all(find_jobs([str(inputs)], str(out)), str(out), task, Cluster(workers=workers))
    times = sorted(path.stat().st_mtime for path in (out / "rows").iterdir())
    each = (times[-1] - times[0]) / max(1, len(times) - 1)
    return FleetFolder(str(out)).result(), times[0] - started, each


def plainly(inputs: Path, out: Path, task: Replay) -> float:
    """Seconds of the jobs, done one after the other in this process."""
    make, folder = task.load(), FleetFolder(str(out))
    jobs = find_jobs([str(inputs)], str(out))
    return sum(folder.do(job, job.name({}), make)["seconds"] for job in jobs)


def main(*, workers: int = 2, frames: int = 60, bags: int = 40) -> None:
    """Measure, and write the file."""
    task = Replay(runtime=Runtime(device="cpu", threads=1))
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere:
        top = Path(folder)
        for n in range(workers):
            write_scene_bag(top / "long" / f"{n}", frames, seed=n)
        for n in range(bags):
            write_scene_bag(top / "short" / f"{n:03}", 1, seed=n)
        plain = replace(task, runtime=Runtime(device="cpu", threads=workers))
        plain_seconds = plainly(top / "long", top / "before", plain) / 2
        started = time.perf_counter()
        with redirect_stdout(nowhere):
            ray.init("local", include_dashboard=False, log_to_driver=False)
            start_seconds = time.perf_counter() - started
            long, _, _ = fleet(top / "long", top / "a", task, workers)
            plain_seconds += plainly(top / "long", top / "after", plain) / 2
            bicubic = replace(task, model="bicubic")
            short, first, each = fleet(top / "short", top / "b", bicubic, workers)
    fleet_seconds = sum(row["seconds"] for row in long) / workers
    found = {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "load_of_the_machine": os.getloadavg()[0],
        "workers": workers,
        "plain_frames_per_second": workers * frames / plain_seconds,
        "fleet_frames_per_second": workers * frames / fleet_seconds,
        "ratio": plain_seconds / fleet_seconds,
        "ray_start_seconds": start_seconds,
        "seconds_to_the_first_result": first,
        "bag_of_one_frame_seconds": each,
        "of_these_in_the_job": sum(row["seconds"] for row in short) / len(short) / workers,
        "memory_mb_per_worker": max(row["memory_mb"] for row in long),
    }
    write_json(Path(__file__).with_name("fleet.json"), found)


if __name__ == "__main__":
    cyclopts.run(main)
