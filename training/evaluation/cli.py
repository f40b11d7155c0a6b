"""``difiisr evaluate``: judge models on recordings and images."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Mapping, Sequence
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
        raise ValueError(
            "--detector needs --annotations, a COCO or HIT-UAV file or a folder of Pascal VOC files"
        )
    for given, reader in (("annotations", "detector"), ("labels", "segmenter")):
        if getattr(options, given) and not getattr(options, reader):
            raise ValueError(f"--{given} needs --{reader}, which reads the frames")
    for path in (options.detector, options.segmenter):
        if path is not None and not path.exists():
            raise FileNotFoundError(f"no file or folder {path}")
    results = run(options, arguments)
    print(markdown_table(results))
    if results.detection:
        print(detection_table(results))
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
    names = [chosen.name for chosen in sets]
    boxes = files_of_sets("--annotations", options.annotations, names)
    labels = files_of_sets("--labels", options.labels, names)
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
        metric_files=judge.files,
    )
    write_per_frame(found.rows, list(found.metrics), options.out)
    write_results(results, options.out)
    results = _with_readers(results, options, boxes, labels)
    write_results(results, options.out)
    return results


def files_of_sets(option: str, given: Sequence[str], sets: Sequence[str]) -> dict[str | None, Path]:
    """Read ``SET=FILE`` and ``FILE``: the file of each named set, and of ``None`` the other.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: there is no such set, or two files are given for one.
    """
    files: dict[str | None, Path] = {}
    for text in given:
        fitting = [name for name in sets if text.startswith(f"{name}=")]
        name = max(fitting, key=len, default=None)
        path = Path(text if name is None else text[len(name) + 1 :]).expanduser()
        if not path.exists():
            if name is None and "=" in text:
                raise ValueError(f"{option} {text}: the sets are called {', '.join(sets)}")
            raise FileNotFoundError(f"{option}: no file or folder {path}")
        if name in files:
            whose = f"for {name}" if name else "without SET="
            raise ValueError(
                f"{option} is given twice {whose}: {files[name]} and {path}; write {option} "
                "SET=FILE once for each set"
            )
        files[name] = path
    return files


def _with_readers(
    results: Results,
    options: argparse.Namespace,
    boxes: Mapping[str | None, Path],
    labels: Mapping[str | None, Path],
) -> Results:
    """Let the detector and the segmenter, where given, judge the frames of every set."""
    for name in ("detection", "segmentation"):  # the sets of an older run do not join this one's
        (options.out / f"{name}.json").unlink(missing_ok=True)
    series = [slug(model.name) for chosen in results.sets[:1] for model in chosen.models]
    series += [HR_FOLDER] if results.mode == "reference" else []
    if options.detector:
        from difiisr_training.detection.judge import NotAnnotated, judge_detection

        def detect(folder: str, path: Path | None) -> dict[str, Any]:
            return judge_detection(options.out, folder, options.detector, path, series)

        found, reasons = _judge_sets(results, "--annotations", boxes, detect, NotAnnotated)
        reasons = {f"detection on {name}": reason for name, reason in reasons.items()}
        results = replace(results, detection=found, not_run={**results.not_run, **reasons})
    if options.segmenter:
        from difiisr_training.segmentation.judge import NotLabelled, judge_segmentation

        def label(folder: str, path: Path | None) -> dict[str, Any]:
            device = str(resolve_device(options.device))
            return judge_segmentation(options.out, folder, options.segmenter, path, series, device)

        found, reasons = _judge_sets(results, "--labels", labels, label, NotLabelled)
        reasons = {f"segmentation on {name}": reason for name, reason in reasons.items()}
        results = replace(results, segmentation=found, not_run={**results.not_run, **reasons})
    return results


def _judge_sets(
    results: Results,
    option: str,
    files: Mapping[str | None, Path],
    judge: Callable[[str, Path | None], dict[str, Any]],
    absent: type[ValueError],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Judge each set by its own file, or by the file without ``SET=``, which must fit one alone.

    Args:
        results: of the sets.
        option: what the files were given with.
        files: see :func:`files_of_sets`; empty: every set is judged without.
        judge: of a set's folder and file; its result holds the sets that were judged before.
        absent: its error where the file holds nothing for the set.

    Returns:
        The last result, and why the other sets were not judged.

    Raises:
        ValueError: a file without ``SET=`` fits two sets, or no set was judged (``absent``).
    """
    found, fitting, reasons = None, None, {}
    for chosen in results.sets:
        path = files.get(chosen.name, files.get(None))
        if files and path is None:
            reasons[chosen.name] = f"no {option} {chosen.name}=... was given"
            continue
        try:
            judged = judge(slug(chosen.name), path)
        except absent as error:
            reasons[chosen.name] = str(error)
            continue
        if files and chosen.name not in files:
            if fitting is not None:
                raise ValueError(
                    f"{option} {path} fits frames of {fitting} and of {chosen.name}; say whose it "
                    f"is: {option} {fitting}={path} or {option} {chosen.name}={path}"
                )
            fitting = chosen.name
        found = judged
    if found is None:
        raise absent("; ".join(reasons.values()))
    return found, reasons


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


def detection_table(results: Results) -> str:
    """COCO mAP per set and model, as a Markdown table."""
    lines = [["set", "model", "mAP@.5:.95", "mAP@.5"], ["---"] * 4]
    for name, judged in results.detection["sets"].items():
        for model, found in judged.items():
            numbers = (found["map"], found["map50"])
            lines.append([name, model, *("" if n is None else f"{n:.4f}" for n in numbers)])
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
        "--annotations",
        metavar="[SET=]FILE",
        action="append",
        default=[],
        help="boxes in the frames: COCO or HIT-UAV JSON, or a folder of Pascal VOC files; SET is "
        "the INPUT that they belong to, which may be left out if they fit one alone; repeatable",
    )
    parser.add_argument("--segmenter", type=Path, metavar="DIR", help="judge by segmentation too")
    parser.add_argument(
        "--labels",
        metavar="[SET=]DIR",
        action="append",
        default=[],
        help="label maps of the frames, likewise; without: agreement with the segmentation of HR",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N (%(default)s)")
    parser.add_argument("--no-report", action="store_true", help="write no report.html")
    parser.add_argument(
        "--recorded",
        action="store_true",
        help="measure what a node recorded instead: see difiisr evaluate --recorded --help",
    )
    return parser
