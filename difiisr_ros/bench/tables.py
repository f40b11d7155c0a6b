"""A benchmark's results as Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from difiisr_ros.bench.targets import Row, Target

_COUNTED = (
    "GFLOP: convolutions and matrix products of one call, a multiply-add being two. MB: weights, "
    "inputs and outputs, each moved once; what lies between layers is not counted. roofline: share "
    "of what the ceilings measured in the same run (a large product, a large copy) allow; above "
    "100 % something else had the machine while they were measured."
)


def markdown(rows: Sequence[Row], targets: Sequence[Target], own: str) -> str:
    """Tables of the calls and of the node, then the targets.

    "x ours" is a model's p50 over that of ``own`` in the same runtime and at the same size.
    """
    calls = [row for row in rows if row["stage"] != "node"]
    streams = [row for row in rows if row["stage"] == "node"]
    parts = []
    if calls:
        head = [
            "stage", "size", "model", "runtime", "precision", "p50 ms", "p90", "p99", "jitter",
            "fps", "GFLOP", "MB", "GFLOP/s", "roofline", "x ours",
        ]  # fmt: skip
        parts.append(_table(head, [_call_cells(row, calls, own) for row in calls]))
        if any("flop" in row for row in calls):
            parts.append(_COUNTED)
    if streams:
        head = [
            "size", "model", "backend", "rate in", "fps out", "loss", "p50 ms", "p90", "p99",
            "jitter", "cores", "MiB", "GPU", "GPU MiB",
        ]  # fmt: skip
        parts.append(_table(head, [_stream_cells(row) for row in streams]))
    judged = [[target.text, target.found or "-", target.verdict] for target in targets]
    parts.append(_table(["target", "measured", ""], judged))
    return "\n\n".join(parts) + "\n"


def save_plot(rows: Sequence[Row], out: Path) -> None:
    """p50 of every call by size, and the node's latency by rate, logarithmic."""
    rows = [row for row in rows if "no_result" not in row]
    calls = [row for row in rows if row["stage"] == "upscaler"]
    streams = [row for row in rows if row["stage"] == "node"]
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in dict.fromkeys(f"{row['model']}, {row['runtime']}" for row in calls):
        own = [row for row in calls if f"{row['model']}, {row['runtime']}" == name]
        left.plot(
            [row["pixels"] for row in own],
            [1e3 * row["p50"] for row in own],
            marker="o",
            label=name,
        )
    left.set(
        xscale="log", yscale="log", xlabel="input pixels", ylabel="ms a frame (p50)",
        title="upscaler",
    )  # fmt: skip
    for name in dict.fromkeys(f"{row['model']}, {row['size']}" for row in streams):
        own = sorted(
            (row for row in streams if f"{row['model']}, {row['size']}" == name),
            key=lambda row: row["rate"],
        )
        p50, p99 = ([1e3 * row[key] for row in own] for key in ("p50", "p99"))
        rates = [row["rate"] for row in own]
        (line,) = right.plot(rates, p50, marker="o", label=name)
        right.fill_between(rates, p50, p99, alpha=0.15, color=line.get_color())
    right.set(
        yscale="log", xlabel="frames/s sent", ylabel="latency, ms (p50 to p99)",
        title="node over DDS",
    )  # fmt: skip
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    figure.savefig(out, dpi=120)


def _call_cells(row: Row, rows: Sequence[Row], own: str) -> list[str]:
    named = [row["stage"], row["size"], row["model"], row["runtime"], row.get("precision", "")]
    if "no_result" in row:
        return [*named, _reason(row), *[""] * 9]
    same = [
        other
        for other in rows
        if other["model"] == own
        and "no_result" not in other
        and all(other[key] == row[key] for key in ("stage", "size", "runtime"))
    ]
    ratio = f"{row['p50'] / same[0]['p50']:.2f}" if same else ""
    times = [f"{1e3 * row[key]:.2f}" for key in ("p50", "p90", "p99", "jitter")]
    work = [""] * 4
    if "flop" in row:
        work = [f"{row[key] / unit:.4g}" for key, unit in (("flop", 1e9), ("bytes", 1e6))]
        work += [f"{row['flops'] / 1e9:.0f}", f"{100 * row['roofline']:.0f} %"]
    return [*named, *times, f"{row['fps']:.1f}", *work, ratio]


def _stream_cells(row: Row) -> list[str]:
    named = [row["size"], row["model"], row.get("backend", "")]
    rate = "" if row["rate"] is None else f"{row['rate']:.1f}"
    if row["search"]:
        rate += " (at least: the sender's limit)" if row.get("limit") == "sender" else " (peak)"
    if "no_result" in row:
        return [*named, rate.strip(), _reason(row), *[""] * 9]
    times = [f"{1e3 * row[key]:.1f}" for key in ("p50", "p90", "p99", "jitter")]
    out = "" if row["fps"] is None else f"{row['fps']:.1f}"
    gpu, memory = row.get("gpu"), row.get("gpu_memory_mib")
    return [
        *named, rate, out, f"{100 * row['loss']:.1f} %", *times,
        f"{row['cpu']:.2f}", f"{row['memory_mib']:.0f}",
        "" if gpu is None else f"{100 * gpu:.0f} %",
        "" if memory is None else f"{memory:.0f}",
    ]  # fmt: skip


def _reason(row: Row) -> str:
    """Its first line; ``bench.json`` has all."""
    return "no result: " + row["no_result"].splitlines()[0].replace("|", "/")


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
