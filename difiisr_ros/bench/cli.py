"""``difiisr bench``: the command."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from difiisr_models.backends.selection import resolve_device
from difiisr_ros.bench.contenders import (
    PUBLISHED,
    Contender,
    network_contenders,
    upscaler_contenders,
)
from difiisr_ros.bench.machine import describe_machine
from difiisr_ros.bench.samples import Summary, summarise, time_in_turns
from difiisr_ros.bench.tables import markdown, save_plot
from difiisr_ros.bench.targets import Row, check_targets
from difiisr_ros.demo.live import dds_environment, missing_ros

STAGES = ("network", "upscaler", "node")
PUBLISHED_SIZE = (64, 64)  # the published network takes seconds for this already
_TILE = 16  # networks are timed on tiles of whole multiples, which every peer's graph takes
_FRAMES = 4  # different ones that the camera sends over and over


def main(argv: Sequence[str]) -> int:
    """Run the stages asked for; write ``bench.json``, ``bench.md`` and ``bench.png``."""
    options = _parser().parse_args(list(argv))
    if options.quick:
        options.sizes, options.rates = [(120, 160)], [9.0]
        options.runs, options.seconds = 1, 1.0
    if options.threads:
        torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    machine, rows = describe_machine(device), []
    models = [PUBLISHED if name == "published" else name for name in options.models.split(",")]
    own = next((m for m in models if m not in ("bicubic", PUBLISHED)), models[0])
    if "network" in options.only:
        rows += bench_calls("network", models, options, device)
    if "upscaler" in options.only:
        rows += bench_calls("upscaler", models, options, device)
    if "node" in options.only:
        why = missing_ros()
        if why:
            print(f"node: not run, no ROS in this Python: {why}")
        else:
            rows += bench_node([m for m in dict.fromkeys(("bicubic", own))], options)
    targets = check_targets(rows, own)
    text = markdown(rows, targets, own)
    judged = [{"target": t.text, "found": t.found, "verdict": t.verdict} for t in targets]
    written = {
        "version": 1, "command": ["difiisr", "bench", *argv], "machine": machine,
        "runs": options.runs, "seconds_per_run": options.seconds, "rows": rows, "targets": judged,
    }  # fmt: skip
    (options.out / "bench.json").write_text(json.dumps(written, indent=2) + "\n")
    (options.out / "bench.md").write_text(text, encoding="utf-8")
    save_plot(rows, options.out / "bench.png")
    print(text)
    print(f"{options.out}: bench.json, bench.md, bench.png")
    return 0


def bench_calls(
    stage: str, models: list[str], options: argparse.Namespace, device: torch.device
) -> list[Row]:
    """Time networks or upscalers at every size, all models in turns."""
    rows = []
    sizes = list(options.sizes)
    if stage == "upscaler" and PUBLISHED in models:
        sizes.insert(0, PUBLISHED_SIZE)
    for height, width in sizes:
        if stage == "network":
            height, width = (-(-side // _TILE) * _TILE for side in (height, width))
            found = network_contenders(models, (height, width), options.weights, device)
        else:
            heavy = (height, width) == PUBLISHED_SIZE
            chosen = [m for m in models if heavy or m != PUBLISHED]
            frame = thermal_frames(height, width, 1)[0]
            found = upscaler_contenders(chosen, frame, options.weights, device)
        by_name = {f"{c.model} {c.runtime}": c for c in found}
        name = f"{stage} {width}x{height}"
        with tqdm(total=options.runs * len(by_name), desc=name, unit="turn") as progress:
            summaries = time_in_turns(
                {key: c.call for key, c in by_name.items()},
                options.runs,
                options.seconds / 4,
                progress.update,
            )
        rows += [
            _call_row(stage, (height, width), device, by_name[key], summary)
            for key, summary in summaries.items()
        ]
    return rows


def bench_node(models: list[str], options: argparse.Namespace) -> list[Row]:
    """The node at fixed rates and at its peak, model by model and size by size."""
    os.environ.update(dds_environment(os.environ))
    from difiisr_ros.bench.node_stream import NodeUnderTest, find_peak

    rows = []
    work = [(model, size) for model in models for size in options.sizes]
    for model, (height, width) in tqdm(work, desc="node", unit="stream"):
        frames = thermal_frames(height, width, _FRAMES)
        with NodeUnderTest(
            frames, model, options.device, options.threads, options.out, os.environ
        ) as node:
            for rate in options.rates:
                runs = [node.run(rate, options.seconds) for _ in range(options.runs)]
                rows.append(_stream_row(model, (height, width), runs, search=False))
            sustained = 1 / max(1e-3, np.median(runs[-1].intervals or [1e-3]))
            peak = find_peak(node, float(sustained), options.seconds)
            if peak:
                rows.append(_stream_row(model, (height, width), [peak], search=True))
    return rows


def thermal_frames(height: int, width: int, count: int) -> list[np.ndarray]:
    """Smooth structure with sensor noise, ``(height, width)`` uint16 counts around 7500."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    frames = []
    for i in range(count):
        waves = 400 * np.sin((x + 3 * i) / 17) * np.cos(y / 23) + 200 * (x > width / 2)
        frames.append((7500 + waves + rng.normal(0, 4, (height, width))).astype(np.uint16))
    return frames


def _call_row(
    stage: str, size: tuple[int, int], device: torch.device, contender: Contender, s: Summary
) -> Row:
    return {
        "stage": stage, "size": f"{size[1]}x{size[0]}", "pixels": size[0] * size[1],
        "model": contender.model, "runtime": contender.runtime, "device": device.type,
        "calls": s.calls, "fps": s.rate, "p50": s.p50, "p90": s.p90, "p99": s.p99,
        "jitter": s.jitter, "parameters": contender.parameters,
        "weights_sha256": contender.weights_sha256,
    }  # fmt: skip


def _stream_row(model: str, size: tuple[int, int], runs: Sequence, search: bool) -> Row:
    latency = summarise([run.latencies for run in runs])
    sent, received = (sum(getattr(run, key) for run in runs) for key in ("sent", "received"))
    intervals = [i for run in runs for i in run.intervals] or [0.0]
    return {
        "stage": "node", "size": f"{size[1]}x{size[0]}", "pixels": size[0] * size[1],
        "model": model, "search": search,
        "rate": float(np.mean([run.rate for run in runs])),
        "fps": received / sum(run.seconds for run in runs),
        "sent": sent, "received": received, "loss": 1 - received / sent,
        "p50": latency.p50, "p90": latency.p90, "p99": latency.p99,
        "jitter": float(np.std(intervals)),
        "cpu": float(np.mean([run.load.cpu for run in runs])),
        "memory_mib": max(run.load.memory_mib for run in runs),
    }  # fmt: skip


def _size(text: str) -> tuple[int, int]:
    """``640x512`` -> (height, width)."""
    width, cross, height = text.partition("x")
    if not cross or not (width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 640x512")
    return int(height), int(width)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="difiisr bench",
        description="Time the network, the upscaler and the node over DDS, beside other models in "
        "the same run. Ratios carry over to other machines, milliseconds do not.",
    )
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument(
        "--models",
        default="difiisr-rt-x4,bicubic",
        help="comma-separated, the first network is ours: model names or folders, bicubic, safmn, "
        "rlfn, realesrgan (these three: --weights), published: random weights, one 64x64 frame "
        "(default: %(default)s)",
    )
    parser.add_argument("--weights", type=Path, help="folder of the peers' files")
    parser.add_argument(
        "--sizes", nargs="+", type=_size, default=[(120, 160), (256, 320), (512, 640)],
        metavar="WxH", help="of the camera (default: 160x120 320x256 640x512)",
    )  # fmt: skip
    parser.add_argument(
        "--rates", nargs="+", type=float, default=[9.0, 30.0, 60.0], metavar="HZ",
        help="of the camera (default: 9 30 60), beside the search for the peak",
    )  # fmt: skip
    parser.add_argument("--runs", type=int, default=5, help="best and worst are dropped")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a run (%(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 = the default")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="one short run at 160x120 and 9 Hz")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder (%(default)s)")
    return parser
