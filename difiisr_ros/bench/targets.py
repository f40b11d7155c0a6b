"""What the package promises, and whether a benchmark's rows keep it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from difiisr_ros.bench.contenders import PUBLISHED

Row = dict[str, Any]
"""One measurement; with ``no_result``, a reason, where nothing could be measured."""

_GPU_SIZE = "640x512"


@dataclass(frozen=True)
class Target:
    """One promise.

    Attributes:
        text: what is promised.
        found: what was measured, in words; "" where nothing was.
        met: None where nothing was measured.
    """

    text: str
    found: str
    met: bool | None

    @property
    def verdict(self) -> str:
        """One word or two."""
        return "not measured" if self.met is None else "met" if self.met else "missed"


def check_targets(rows: Sequence[Row], own: str) -> list[Target]:
    """Judge the rows of one benchmark; ``own`` is the model that the promises are about."""
    rows = [row for row in rows if "no_result" not in row]
    return [
        _against_published(rows, own),
        *(_against_safmn(rows, own, runtime) for runtime in ("torch", "onnxruntime")),
        _node_overhead(rows),
        _steadiness(rows, own),
        _gpu_rate(rows, own, 60, "at {} frames/s or more on a data-centre GPU"),
        _gpu_rate(rows, own, 240, "on a data-centre GPU, the aim: {} frames/s"),
        _gpu_roofline(rows, own),
    ]


def _pick(rows: Sequence[Row], **wanted: object) -> list[Row]:
    return [row for row in rows if all(row.get(k) == v for k, v in wanted.items())]


def _against_published(rows: Sequence[Row], own: str) -> Target:
    text = "at least 100 x faster than the published network, same frame, both in torch"
    for row in _pick(rows, stage="upscaler", model=PUBLISHED):
        for ours in _pick(rows, stage="upscaler", model=own, runtime="torch", size=row["size"]):
            ratio = row["p50"] / ours["p50"]
            return Target(text, f"{ratio:.0f} x at {row['size']}", ratio >= 100)
    return Target(text, "", None)


def _against_safmn(rows: Sequence[Row], own: str, runtime: str) -> Target:
    text = f"at least the speed of SAFMN's network, both in {runtime}"
    ratios = {
        row["size"]: row["p50"] / ours["p50"]
        for row in _pick(rows, stage="network", model="safmn", runtime=runtime)
        for ours in _pick(rows, stage="network", model=own, runtime=runtime, size=row["size"])
    }
    found = ", ".join(f"{ratio:.2f} x at {size}" for size, ratio in ratios.items())
    return Target(text, found, min(ratios.values()) >= 1 if ratios else None)


def _node_overhead(rows: Sequence[Row]) -> Target:
    text = (
        "node without the network at most 10 ms p50 for 640x512 -> 2560x2048 mono16 "
        "(latency over DDS less the upscaler's time in the node, model bicubic, --seconds 10)"
    )
    streams = [
        row
        for row in _pick(rows, stage="node", model="bicubic", size="640x512")
        if row.get("upscaling_p50") is not None
    ]
    if not streams:
        return Target(text, "", None)
    slowest = min(streams, key=lambda row: row["rate"])
    overhead = slowest["p50"] - slowest["upscaling_p50"]
    return Target(text, f"{1e3 * overhead:.1f} ms at {slowest['rate']:.0f} Hz", overhead <= 0.010)


def _steadiness(rows: Sequence[Row], own: str) -> Target:
    text = "p99 / p50 at most 1.5 at camera rate (fixed rates with at most 5 % loss)"
    kept = [
        row for row in _pick(rows, stage="node", model=own, search=False) if row["loss"] <= 0.05
    ]
    ratios = {f"{row['size']} at {row['rate']:.0f} Hz": row["p99"] / row["p50"] for row in kept}
    found = ", ".join(f"{ratio:.2f} for {where}" for where, ratio in ratios.items())
    return Target(text, found, max(ratios.values()) <= 1.5 if ratios else None)


def _gpu_rate(rows: Sequence[Row], own: str, least: int, promise: str) -> Target:
    text = f"{_GPU_SIZE} -> 2560x2048 " + promise.format(least)
    found = _pick(rows, stage="upscaler", model=own, size=_GPU_SIZE, device="cuda")
    if not found:
        return Target(text, "", None)
    rate = max(row["fps"] for row in found)
    return Target(text, f"{rate:.0f} frames/s", rate >= least)


def _gpu_roofline(rows: Sequence[Row], own: str) -> Target:
    text = f"network at {_GPU_SIZE} at 40 % or more of the roofline of a GPU, in the best runtime"
    found = _pick(rows, stage="network", model=own, size=_GPU_SIZE, device="cuda")
    if not found:
        return Target(text, "", None)
    best = max(found, key=lambda row: row["roofline"])
    return Target(
        text, f"{100 * best['roofline']:.0f} % in {best['runtime']}", best["roofline"] >= 0.4
    )
