"""``difiisr evaluate``: judge models on recordings and images."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from difiisr_models.backends.selection import resolve_device
from difiisr_training.degradations.mix import KINDS
from difiisr_training.evaluation.inputs import HELD_OUT, Selection, resolve_inputs
from difiisr_training.evaluation.judge import METRICS, Judge
from difiisr_training.evaluation.outputs import OutputFolder
from difiisr_training.evaluation.peers import PUBLISHED_NAMES, load_contestant
from difiisr_training.evaluation.results import (
    HR_FOLDER,
    PER_FRAME_FILE,
    RESULTS_FILE,
    Results,
    slug,
    write_per_frame,
    write_results,
)
from difiisr_training.evaluation.run import Protocol, evaluate
from difiisr_training.evaluation.temperature import Radiometry

_CORE = ("difiisr_ros", "numpy", "pillow", "torch")
_OPTIONAL = ("rosbags", "spandrel", "lpips", "pyiqa", "onnxruntime", "pycocotools", "transformers")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Raises:
        OSError, ValueError, ModuleNotFoundError: the text says what is wrong.
    """
    arguments = list(argv or ())
    if "--recorded" in arguments:
        from difiisr_training.evaluation.recorded.cli import main as evaluate_recorded

        return evaluate_recorded(arguments)
    options = _parser().parse_args(arguments)
    if options.detector and not options.annotations:
        raise ValueError("--detector needs --annotations, a COCO or HIT-UAV file")
    for path in (options.detector, options.annotations, options.segmenter, options.labels):
        if path is not None and not path.exists():
            raise FileNotFoundError(f"no file or folder {path}")
    results = run(options, arguments)
    print(markdown_table(results))
    for name, reason in results.not_run.items():
        print(f"not run: {name}: {reason}")
    print(f"{options.out / RESULTS_FILE}, {options.out / PER_FRAME_FILE}")
    if not options.no_report:
        from difiisr_training.evaluation.report.page import write_report

        print(write_report(options.out))
    return 0


def run(options: argparse.Namespace, command: Sequence[str]) -> Results:
    """Evaluate as the options say and write ``results.json`` and ``per_frame.csv``."""
    torch.backends.cudnn.deterministic = True
    device = str(resolve_device(options.device))
    radiometry = Radiometry.parse(options.radiometry) if options.radiometry else None
    selection = Selection(
        options.every, options.last, options.limit, spread=options.mode == "reference"
    )
    sets = resolve_inputs(options.inputs, options.data, options.topic, selection)
    metrics = options.metrics.split(",") if options.metrics else None
    judge = Judge(options.mode, metrics, options.weights, device, radiometry)
    models = [load_contestant(name, options.weights, device) for name in options.models.split(",")]
    models += [OutputFolder.parse(text) for text in options.outputs]
    protocol = Protocol(options.mode, options.degradation, radiometry, environment(device, _CORE))
    options.out.mkdir(parents=True, exist_ok=True)
    found = evaluate(sets, models, protocol, judge, options.out)
    results = Results(
        command=["difiisr", "evaluate", *command],
        environment=environment(device, _CORE + _OPTIONAL),
        mode=options.mode,
        degradation=options.degradation if options.mode == "reference" else None,
        metrics=found.metrics,
        not_run={**judge.not_run, **found.without_value},
        sets=found.sets,
    )
    write_per_frame(found.rows, list(found.metrics), options.out)
    write_results(results, options.out)
    results = _with_readers(results, options)
    write_results(results, options.out)
    return results


def _with_readers(results: Results, options: argparse.Namespace) -> Results:
    """Let the detector and the segmenter, where given, judge the frames of every set."""
    series = [slug(model.name) for chosen in results.sets[:1] for model in chosen.models]
    series += [HR_FOLDER] if results.mode == "reference" else []
    if options.detector:
        results = _with_detector(results, options, series)
    if options.segmenter:
        from difiisr_training.segmentation.judge import judge_segmentation

        for chosen in results.sets:
            found = judge_segmentation(
                options.out,
                slug(chosen.name),
                options.segmenter,
                options.labels,
                series,
                str(resolve_device(options.device)),
            )
            results = replace(results, segmentation=found)
    return results


def _with_detector(results: Results, options: argparse.Namespace, series: Sequence[str]) -> Results:
    """Judge the annotated sets; the others are named among what was not run.

    Raises:
        NotAnnotated: there is no annotated set.
    """
    from difiisr_training.detection.judge import NotAnnotated, judge_detection

    skipped: dict[str, NotAnnotated] = {}
    for chosen in results.sets:
        try:
            found = judge_detection(
                options.out, slug(chosen.name), options.detector, options.annotations, series
            )
        except NotAnnotated as error:
            skipped[chosen.name] = error
        else:
            results = replace(results, detection=found)
    if results.detection is None:
        raise skipped[results.sets[0].name]
    reasons = {f"detection on {name}": str(error) for name, error in skipped.items()}
    return replace(results, not_run={**results.not_run, **reasons})


def markdown_table(results: Results) -> str:
    """Means per set and model, as a Markdown table."""
    columns = list(results.metrics)
    lines = [
        ["set", "frames", "model", *columns, "seconds"],
        ["---", "---:", "---", *["---:"] * (len(columns) + 1)],
    ]
    for chosen in results.sets:
        for model in chosen.models:
            numbers = [*(model.mean[name] for name in columns), model.seconds_per_frame]
            cells = ["" if n is None or n != n else f"{n:.4g}" for n in numbers]
            lines.append([chosen.name, str(chosen.frames), model.title, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def environment(device: str, packages: Sequence[str]) -> dict[str, Any]:
    """What the numbers and times were taken with; packages that are absent are left out."""
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {platform.system()}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="difiisr evaluate",
        description="Judge models on recordings and images: report.html, results.json, "
        "per_frame.csv and all frames. What a folder already holds is not run again.",
    )
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="folder of images (8 or 16 bit), rosbag2 recording, or a set below --data: "
        + ", ".join(chosen.name for chosen in HELD_OUT),
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--models",
        default="bicubic,difiisr-rt-x4",
        help="comma-separated: bicubic, a shipped model, a weights folder, a published x4 "
        f"network's file (.pth, .safetensors), {', '.join(PUBLISHED_NAMES)}; after ours "
        "@FIDELITY, @steps=N, @consistency=F, @seed=N (default: %(default)s)",
    )
    parser.add_argument(
        "--outputs",
        metavar="NAME=DIR",
        nargs="+",
        action="extend",
        default=[],
        help="results of other methods: an image per frame, under the frame's name",
    )
    parser.add_argument(
        "--mode",
        choices=tuple(METRICS),
        default="reference",
        help="reference: the input is high resolution, and low resolution is made of it; camera: "
        "the input is super-resolved as it is, and judged without reference (%(default)s)",
    )
    parser.add_argument(
        "--degradation", choices=KINDS, default="bicubic", help="with reference (%(default)s)"
    )
    parser.add_argument("--topic", metavar="T", help="of a recording (default: its only images)")
    parser.add_argument("--data", type=Path, help="root of the sets' folders")
    parser.add_argument("--every", type=int, default=1, help="use the first of each so many frames")
    parser.add_argument("--last", type=int, default=0, help="use so many at the end (0: all)")
    parser.add_argument(
        "--limit",
        type=int,
        help="frames per set, evenly spaced; in camera mode the first ones (default: all)",
    )
    parser.add_argument("--weights", type=Path, help="folder of the metrics' and peers' networks")
    parser.add_argument(
        "--metrics",
        help="comma-separated (default: all that can be measured): "
        + "; ".join(f"{mode}: {', '.join(names)}" for mode, names in METRICS.items()),
    )
    parser.add_argument(
        "--radiometry", metavar="FORMULA", help="of the counts, e.g. 'kelvin=0.1*counts+173.15'"
    )
    parser.add_argument(
        "--detector", type=Path, metavar="ONNX", help="judge by detections too; see --annotations"
    )
    parser.add_argument(
        "--annotations", type=Path, metavar="JSON", help="boxes in the frames of every set"
    )
    parser.add_argument("--segmenter", type=Path, metavar="DIR", help="judge by segmentation too")
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="DIR",
        help="label maps of the frames; without: agreement with the segmentation of HR",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N (%(default)s)")
    parser.add_argument("--no-report", action="store_true", help="write no report.html")
    parser.add_argument(
        "--recorded",
        action="store_true",
        help="measure what a node recorded instead: see difiisr evaluate --recorded --help",
    )
    return parser
