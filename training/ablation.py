"""``difiisr train-ablation``: what the guidance does, as in Tables 3 and 4 of the paper.

Every variant starts from the same weights, with a fresh head for fidelity 0, and sees the same
samples, noise and steps; only L_g and the way it acts differ. All are then judged at fidelity 0,
the estimate that the guidance shapes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from difiisr_models.compact import CompactNetwork
from difiisr_training.cli import (
    export,
    make_accelerator,
    parse_duration,
    set_threads,
    starting_weights,
)
from difiisr_training.config import TrainConfig, as_dict, load_config
from difiisr_training.evaluation.cli import main as evaluate
from difiisr_training.evaluation.inputs import Selection, resolve_inputs
from difiisr_training.evaluation.judge import Judge
from difiisr_training.evaluation.results import (
    Results,
    frame_names,
    frames_folder,
    read_frame,
    read_results,
    slug,
)
from difiisr_training.guidance.injection import GuidanceConfig
from difiisr_training.loop import train
from difiisr_training.networks import TrainingFiles, build_objective
from difiisr_training.panels import save_panel

METRICS = ("psnr", "ssim", "lpips_squeeze", "niqe")
_CROP = 192  # pixels of a picture's crop


def variants(guidance: GuidanceConfig) -> dict[str, GuidanceConfig]:
    """Table 3 (none, visual, perceptual, both) and Table 4 ("sum": the same losses, added).

    ``guidance`` gives weights, rho and all else; "both" is also the "gradient" row of Table 4.
    """
    injected = dataclasses.replace(guidance, mode="gradient")
    return {
        "none": dataclasses.replace(injected, kind="none"),
        "visual": dataclasses.replace(injected, kind="visual"),
        "perceptual": dataclasses.replace(injected, kind="perceptual"),
        "both": dataclasses.replace(injected, kind="both"),
        "both-sum": dataclasses.replace(injected, kind="both", mode="sum"),
    }


def main(argv: Sequence[str]) -> int:
    """Train every variant, judge all of them, write table and pictures; returns the exit code."""
    options = _parser().parse_args(list(argv))
    base = load_config(options.config)
    check_inputs(base, options)
    if options.seed is not None:
        base = dataclasses.replace(base, seed=options.seed)
    set_threads(options.threads)
    chosen = variants(base.guidance)
    for name, guidance in chosen.items():
        config = dataclasses.replace(base, name=name, guidance=guidance)
        if not train_variant(config, options):
            print(f"{name}: stopped before its last iteration; the same command goes on")
            return 1
    judge_variants(list(chosen), options)
    results = read_results(options.out / "evaluation")
    write_table(base, results, options.out)
    write_panels(list(chosen), results, options.out)
    print((options.out / "ablation.md").read_text(encoding="utf-8"))
    return 0


def check_inputs(config: TrainConfig, options: argparse.Namespace) -> None:
    """Raise for what would fail only after hours of training.

    Raises:
        FileNotFoundError: a file or a set is missing.
        ValueError: a configuration that this command cannot train, or half of a detector's inputs.
    """
    if config.stage != "diffusion" or config.published is not None:
        raise ValueError(f"{options.config}: the ablation trains compact networks by diffusion")
    if (options.detector is None) != (options.annotations is None):
        raise ValueError("--detector and --annotations go together")
    if config.begin_as != "none":
        raise ValueError(f"begin_as {config.begin_as!r} is not done here: --init DIR is")
    for guidance in variants(config.guidance).values():
        dataclasses.replace(config, guidance=guidance)  # raises where they do not go together
    if options.vgg is None and options.sam is None:
        raise ValueError("--vgg or --sam is needed: three of the variants are perceptual")
    for path in (options.detector, options.annotations, options.vgg, options.sam, options.weights):
        if path is not None and not path.exists():
            raise FileNotFoundError(f"no file or folder {path}")
    resolve_inputs(options.sets, options.data, None, Selection())
    Judge("reference", METRICS, options.weights)  # raises where a metric's file is missing


def train_variant(config: TrainConfig, options: argparse.Namespace) -> bool:
    """Train one variant, or go on with it, and export it; whether its schedule is complete."""
    accelerator = make_accelerator(config, options.device)
    files = TrainingFiles(vgg=options.vgg, sam=options.sam, peers=options.peers)
    state = train(
        config,
        build_objective(config, files, accelerator.device),
        options.data,
        options.out / "runs" / config.name,
        accelerator=accelerator,
        initial=_unguided(starting_weights(options.init)) if options.init else None,
        budget_s=options.budget,
        workers=options.workers,
    )
    export(options.out / "runs" / config.name, options.out / config.name, None)
    return state.iteration == config.iterations


def _unguided(network: nn.Module) -> nn.Module:
    """Weights that no guidance has shaped yet: fidelity 0 of the compact network starts anew."""
    if isinstance(network, CompactNetwork):
        network.reset_detail()
    return network


def judge_variants(names: Sequence[str], options: argparse.Namespace) -> None:
    """Evaluate the exported variants, and bicubic, at fidelity 0."""
    models = ["bicubic", *(f"{options.out / name}@0" for name in names)]
    limit = ["--limit", str(options.limit)] if options.limit else []
    judges = []
    if options.detector:
        judges = ["--detector", str(options.detector), "--annotations", str(options.annotations)]
    evaluate([
        *options.sets, "--data", str(options.data), "--models", ",".join(models),
        "--weights", str(options.weights), "--metrics", ",".join(METRICS),
        "--out", str(options.out / "evaluation"), "--device", options.device, *limit, *judges,
    ])  # fmt: skip


def write_table(config: TrainConfig, results: Results, out: Path) -> None:
    """``ablation.md`` and ``ablation.json``: means per set, and what everything was made with."""
    lines = []
    for chosen in results.sets:
        precision = ((results.detection or {}).get("sets", {})).get(slug(chosen.name), {})
        heads = [results.metrics[name].label for name in METRICS]
        heads += ["mAP@.5:.95", "mAP@.5"] if precision else []
        lines += [
            f"{chosen.name}, {chosen.frames} frames:",
            "",
            "| L_g | " + " | ".join(heads) + " |",
            "|---|" + "---|" * len(heads),
        ]
        for model in chosen.models:
            values = [model.mean[name] for name in METRICS]
            values += [precision[slug(model.name)][k] for k in ("map", "map50") if precision]
            cells = " | ".join(map(_cell, values))
            lines.append(f"| {model.title.removesuffix('@0')} | {cells} |")
        if precision:
            found = [precision["HR"][key] for key in ("map", "map50")]
            cells = " | ".join([""] * len(METRICS) + [_cell(value) for value in found])
            lines.append(f"| high resolution | {cells} |")
        lines.append("")
    (out / "ablation.md").write_text("\n".join(lines), encoding="utf-8")
    settings = {"config": as_dict(config), "environment": results.environment}
    means = {
        chosen.name: {model.title: model.mean for model in chosen.models} for chosen in results.sets
    }
    written = {**settings, "means": means, "detection": results.detection}
    (out / "ablation.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def write_panels(names: Sequence[str], results: Results, out: Path) -> None:
    """``ablation.png``: the middle of one frame of each set, by every variant."""
    folder, rows = out / "evaluation", []
    shown = ["bicubic", *(f"{out / name}@0" for name in names)]
    for chosen in results.sets:
        of_models = [frames_folder(folder, chosen.name, name) for name in shown]
        of_models.append(frames_folder(folder, chosen.name, "hr"))
        frames = frame_names(of_models[-1])
        frame = frames[len(frames) // 2]
        images = [read_frame(one, frame) for one in of_models]
        top, left = ((side - _CROP) // 2 for side in images[0].shape)
        rows.append([image[top : top + _CROP, left : left + _CROP] for image in images])
    save_panel(["bicubic", *names, "high resolution"], rows, out / "ablation.png")


def _cell(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:#.4g}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="difiisr train-ablation",
        description="Train the guidance settings of the paper's Tables 3 and 4 and compare them. "
        "Run again, it goes on where it was.",
    )
    parser.add_argument("config", type=Path, help="YAML file; its guidance is varied")
    parser.add_argument("--data", type=Path, required=True, help="root of sources and sets")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--init", type=Path, metavar="DIR", help="weights that all start from")
    parser.add_argument("--vgg", type=Path, help="weights of the configured VGG")
    parser.add_argument("--sam", type=Path, help="checkpoint of a Segment Anything model")
    parser.add_argument("--peers", type=Path, metavar="DIR", help="weights of the image teacher")
    parser.add_argument("--weights", type=Path, required=True, help="networks of the metrics")
    parser.add_argument(
        "--sets",
        nargs="+",
        default=["hit_uav/test", "msrs/test", "roadscene/last20"],
        help="judged on these (default: %(default)s)",
    )
    parser.add_argument("--limit", type=int, help="frames per set, evenly spaced (default: all)")
    parser.add_argument("--detector", type=Path, help="ONNX detector, for mAP")
    parser.add_argument("--annotations", type=Path, help="boxes of one or more of the sets")
    parser.add_argument("--seed", type=int, help="instead of the configuration's")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu"), help="auto: a GPU")
    parser.add_argument(
        "--budget", type=parse_duration, default=math.inf, help="limit of each variant: 90s, 30m"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that load samples")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 = the default")
    return parser
