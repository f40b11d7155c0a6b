"""``difiisr bench``: how fast network, upscaler and node are, beside other models, in one run."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from cyclopts import Parameter
from tabulate import tabulate

from difiisr_models.backends.selection import check_precision
from difiisr_models.files import write_json, write_text
from difiisr_models.frame_model import BICUBIC
from difiisr_ros.commands.answers import Answer, answers
from difiisr_ros.commands.bench_calls import Bench, Positive, Row, timed_rows
from difiisr_ros.commands.environment import environment
from difiisr_ros.node_process import missing_ros

Stage = Literal["network", "upscaler", "node"]
STAGES: tuple[Stage, ...] = ("network", "upscaler", "node")
_TIMES = ("p50", "p90", "p99", "jitter")
_COLUMNS = (
    "stage", "size", "model", "runtime", "backend", "precision", "rate", *_TIMES, "fps",
    "loss", "flop", "flops", "ratio", "cpu", "memory_mib", "no_result",
)  # fmt: skip
_NOTES = """\
Columns are those of bench.json, SI units but where named otherwise. ratio: p50 over that of the \
first network in the same runtime. flop: convolutions and matrix products of one call, a \
multiply-add being two."""


@answers
def bench(
    *,
    only: Annotated[tuple[Stage, ...], Parameter(consume_multiple=True)] = STAGES,
    plan: Annotated[Bench, Parameter(name="*")] = Bench(),
    rates: Annotated[tuple[Positive, ...], Parameter(consume_multiple=True)] = (9.0, 30.0, 60.0),
    out: Path = Path("out/bench"),
) -> Answer:
    """Time the network, the upscaler and the node over DDS, beside other models in the same run.

    Ratios carry over to other machines, milliseconds do not. ``bench.json`` is written too where a
    run is interrupted or fails, with the rows that it had.

    Args:
        only: stages to run.
        plan: what is timed, and how.
        rates: of the camera in Hz; one that is too high for the node shows in fps what it holds.
        out: folder for bench.json and bench.md.
    """
    plan = replace(plan, runtime=plan.runtime.repeatable)
    if plan.runtime.threads:
        torch.set_num_threads(plan.runtime.threads)
    check_precision(plan.runtime.precision, plan.device)
    own = next((name for name in plan.names if name not in BICUBIC), plan.names[0])
    rows: list[Row] = []
    found = {
        "version": 1, "command": ["difiisr", *sys.argv[1:]],
        "machine": _describe_machine(plan.device), "runs": plan.runs,
        "seconds_per_run": plan.seconds, "rows": rows,
    }  # fmt: skip

    def all_rows() -> Iterator[Row]:
        if "network" in only:
            yield from timed_rows(plan, "network")
        if "upscaler" in only:
            yield from timed_rows(plan, "upscaler")
        if "node" in only and (why := missing_ros()):
            print(f"node: not run, no ROS in this Python: {why}", file=sys.stderr)
        elif "node" in only:
            from difiisr_ros.commands.bench_node import node_rows

            streams = ",".join(dict.fromkeys(("bicubic", own)))
            yield from node_rows(replace(plan, models=streams), rates, out)

    out.mkdir(parents=True, exist_ok=True)
    try:
        for row in all_rows():
            rows.append(row)
    finally:
        if rows:
            write_json(out / "bench.json", found)
    if not rows:
        raise ValueError("nothing was measured")
    text = markdown(rows, own)
    write_text(out / "bench.md", text)
    return Answer(found, f"{text}\n{out}: bench.json, bench.md")


def _describe_machine(device: torch.device) -> dict[str, object]:
    """Processor, cores, GPU, versions and commit; what cannot be found out is left out."""
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", cpuinfo.read_text() if cpuinfo.exists() else "")
    found = environment(str(device)) | {
        "processor": named[1] if named else platform.processor(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
    }
    with suppress(OSError):
        git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
        found["commit"] = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return found


def markdown(rows: Sequence[Row], own: str) -> str:
    """A table of the calls and one of the node, of the columns that hold anything."""

    def place(row: Row) -> tuple:
        return row["stage"], row["size"], row.get("runtime")

    ours = {place(row): row["p50"] for row in rows if row["model"] == own and "runtime" in row}
    tables: tuple[list[Row], list[Row]] = [], []
    for row in rows:
        shown = row | {key: 1e3 * row[key] for key in _TIMES if key in row}
        if place(row) in ours:
            shown["ratio"] = row["p50"] / ours[place(row)]
        if "no_result" in row:
            shown["no_result"] = row["no_result"].splitlines()[0].replace("|", "/")
        tables[row["stage"] == "node"].append(shown)
    parts = []
    for table in filter(None, tables):
        keys = [key for key in _COLUMNS if any(row.get(key) not in (None, "") for row in table)]
        headers = [f"{key} ms" if key in _TIMES else key for key in keys]
        cells = [[row.get(key) for key in keys] for row in table]
        parts.append(tabulate(cells, headers, "pipe", floatfmt=".4g"))
    return "\n\n".join([*parts, _NOTES]) + "\n"
