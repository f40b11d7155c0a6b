"""``difiisr bench``: the command."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from difiisr_models.backends.selection import BACKENDS, check_precision, resolve_device
from difiisr_models.precision import PRECISIONS
from difiisr_ros.bench.contenders import (
    PUBLISHED,
    Running,
    network_contenders,
    upscaler_contenders,
)
from difiisr_ros.bench.machine import describe_machine
from difiisr_ros.bench.roofline import measure_ceilings
from difiisr_ros.bench.rows import (
    contender_row,
    identity,
    no_result,
    size_columns,
    stream_rows,
    times,
    work,
)
from difiisr_ros.bench.samples import time_in_turns
from difiisr_ros.bench.tables import markdown, save_plot
from difiisr_ros.bench.targets import Row, Target, check_targets
from difiisr_ros.commands.arguments import camera_size, positive, positive_number, threads
from difiisr_ros.demo.live import dds_environment, missing_ros
from difiisr_ros.demo.processes import ProcessFailed

STAGES = ("network", "upscaler", "node")
PUBLISHED_SIZE = (64, 64)  # the published network takes seconds for this already
_TILE = 16  # networks are timed on tiles of whole multiples, which every peer's graph takes
_FRAMES = 4  # different ones that the camera sends over and over


def main(argv: Sequence[str]) -> int:
    """Run the stages asked for; write ``bench.json``, ``bench.md`` and ``bench.png``.

    ``bench.json`` is written after each stage, and where one is interrupted or fails, with the rows
    that it had.
    """
    options = _parser().parse_args(list(argv))
    if options.quick:
        options.sizes, options.rates = [(120, 160)], [9.0]
        options.runs, options.seconds = 1, 1.0
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    check_precision(options.precision, device)
    options.out.mkdir(parents=True, exist_ok=True)
    machine, rows = describe_machine(device), []
    models = [PUBLISHED if name == "published" else name for name in options.models.split(",")]
    own = next((m for m in models if m not in ("bicubic", PUBLISHED)), models[0])

    def write() -> list[Target]:
        targets = check_targets(rows, own)
        judged = [{"target": t.text, "found": t.found, "verdict": t.verdict} for t in targets]
        written = {
            "version": 1, "command": ["difiisr", "bench", *argv], "machine": machine,
            "runs": options.runs, "seconds_per_run": options.seconds, "rows": rows,
            "targets": judged,
        }  # fmt: skip
        (options.out / "bench.json").write_text(json.dumps(written, indent=2) + "\n")
        return targets

    for stage in (stage for stage in STAGES if stage in options.only):
        try:
            for row in _stage_rows(stage, models, own, options, device):
                rows.append(row)
        finally:
            if rows:
                write()
    targets = write()
    text = markdown(rows, targets, own)
    (options.out / "bench.md").write_text(text, encoding="utf-8")
    save_plot(rows, options.out / "bench.png")
    print(text)
    print(f"{options.out}: bench.json, bench.md, bench.png")
    return 0


def _stage_rows(
    stage: str, models: list[str], own: str, options: argparse.Namespace, device: torch.device
) -> Iterator[Row]:
    if stage != "node":
        yield from bench_calls(stage, models, options, device)
    elif why := missing_ros():
        print(f"node: not run, no ROS in this Python: {why}")
    else:
        yield from bench_node(list(dict.fromkeys(("bicubic", own))), options, device)


def bench_calls(
    stage: str, models: list[str], options: argparse.Namespace, device: torch.device
) -> Iterator[Row]:
    """Time networks or upscalers at every size, all models in turns."""
    running, ceilings = _running(options), {}
    sizes = list(options.sizes)
    if stage == "upscaler" and PUBLISHED in models:
        sizes.insert(0, PUBLISHED_SIZE)
    if stage == "network":
        ceilings = {p: measure_ceilings(device, p) for p in ("fp32", options.precision)}
    for height, width in sizes:
        if stage == "network":
            height, width = (-(-side // _TILE) * _TILE for side in (height, width))
            found = network_contenders(models, (height, width), options.weights, device, running)
        else:
            heavy = (height, width) == PUBLISHED_SIZE
            chosen = [m for m in models if heavy or m != PUBLISHED]
            frame = thermal_frames(height, width, 1)[0]
            found = upscaler_contenders(chosen, frame, options.weights, device, running)
        by_name = {f"{c.model} {c.runtime}": c for c in found}
        timed = {key: c.call for key, c in by_name.items() if not c.no_result}
        name = f"{stage} {width}x{height}"
        with tqdm(total=options.runs * len(timed), desc=name, unit="turn") as progress:
            summaries = time_in_turns(timed, options.runs, options.seconds / 4, progress.update)
        for key, contender in by_name.items():
            row = contender_row(stage, (height, width), device, contender)
            if contender.no_result:
                yield row | {"no_result": contender.no_result}
            else:
                ceiling = ceilings.get(contender.precision)
                yield row | times(summaries[key]) | work(contender, summaries[key], ceiling)


def bench_node(
    models: list[str], options: argparse.Namespace, device: torch.device
) -> Iterator[Row]:
    """The node at fixed rates and at its peak, model by model and size by size.

    A stream that fails is a row without a result, and the next one begins.
    """
    os.environ.update(dds_environment(os.environ))
    from difiisr_ros.bench.node_stream import NodeUnderTest

    streams = [(model, size) for model in models for size in options.sizes]
    for model, size in tqdm(streams, desc="node", unit="stream"):
        try:
            with NodeUnderTest(
                thermal_frames(*size, _FRAMES), model, _running(options), device,
                options.threads or 0, options.out, os.environ,
            ) as node:  # fmt: skip
                described = size_columns("node", model, size) | identity(node.identity)
                for row in stream_rows(node.run, options.rates, options.runs, options.seconds):
                    yield described | row
        except ProcessFailed as error:
            yield size_columns("node", model, size) | no_result(None, False, str(error))


def thermal_frames(height: int, width: int, count: int) -> list[np.ndarray]:
    """Smooth structure with sensor noise, ``(height, width)`` uint16 counts around 7500."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    frames = []
    for i in range(count):
        waves = 400 * np.sin((x + 3 * i) / 17) * np.cos(y / 23) + 200 * (x > width / 2)
        frames.append((7500 + waves + rng.normal(0, 4, (height, width))).astype(np.uint16))
    return frames


def _running(options: argparse.Namespace) -> Running:
    return Running(options.backend, options.precision, options.engine, options.compile)


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
        "--sizes", nargs="+", type=camera_size, default=[(120, 160), (256, 320), (512, 640)],
        metavar="WxH", help="of the camera (default: 160x120 320x256 640x512)",
    )  # fmt: skip
    parser.add_argument(
        "--rates", nargs="+", type=positive_number, default=[9.0, 30.0, 60.0], metavar="HZ",
        help="of the camera (default: 9 30 60), beside the search for the peak",
    )  # fmt: skip
    parser.add_argument("--runs", type=positive, default=5, help="best and worst are dropped")
    parser.add_argument(
        "--seconds", type=positive_number, default=4.0, help="of a run (%(default)s)"
    )
    parser.add_argument("--threads", type=threads, help="CPU threads (default: torch's)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N (%(default)s)")
    parser.add_argument(
        "--backend", choices=BACKENDS, default="auto",
        help="of our models; auto compares torch with the fastest that works (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--precision", choices=list(PRECISIONS), default="fp32", help="of our models (%(default)s)"
    )
    parser.add_argument("--compile", action="store_true", help="our models in torch: compiled")
    parser.add_argument("--engine", default="", help="TensorRT engine file for our models")
    parser.add_argument("--quick", action="store_true", help="one short run at 160x120 and 9 Hz")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder (%(default)s)")
    return parser
