"""``difiisr train``: the command line of training."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from difiisr_models.checkpoint import load_published
from difiisr_models.compact import CompactNetwork, parameter_count
from difiisr_models.model_loading import load_network, save_compact, save_published_unet
from difiisr_models.schedule import exponential_schedule
from difiisr_models.weights import MANIFEST_NAME
from difiisr_training.config import TrainConfig, as_dict, load_config
from difiisr_training.curves import save_learning_curve
from difiisr_training.evaluation.judge import SQUEEZE_FILE, SQUEEZE_LINEAR_FILE
from difiisr_training.evaluation.metrics import LpipsSqueeze
from difiisr_training.journal import STATISTICS_NAME, read_journal
from difiisr_training.loop import CHECKPOINT_NAME, train
from difiisr_training.networks import (
    TrainingFiles,
    begin,
    build_network,
    build_objective,
    load_average,
)
from difiisr_training.preview import save_preview
from difiisr_training.validation import Validator

_MOST_THREADS = 256


def main(argv: Sequence[str]) -> int:
    """Train, or describe, the run of a configuration file; returns the exit code.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM ended the run; what it had is saved.
    """
    options = _parser().parse_args(list(argv))
    config = load_config(options.config)
    if options.dry_run:
        print(describe(config))
        return 0
    if options.data is None:
        raise ValueError("--data DIR is needed: the folder that the configured sources lie in")
    if options.preview:
        save_preview(config, options.data, options.preview)
        print(f"{options.preview}: samples of the configured degradations")
        return 0
    if options.export:
        _check_export(options.export)
    set_threads(options.threads)
    run = options.run or Path("runs") / config.name
    is_new = not (run / CHECKPOINT_NAME).is_file()
    accelerator = make_accelerator(config, options.device)
    files = TrainingFiles(
        autoencoder=load_published(options.autoencoder)[1] if options.autoencoder else None,
        vgg=options.vgg,
        sam=options.sam,
        peers=options.peers,
    )
    teacher = None
    if config.stage == "distillation":
        if options.teacher is None:
            raise ValueError("stage 'distillation' needs --teacher RUN, the run to distil")
        teacher = starting_weights(options.teacher).to(accelerator.device)
    initial = teacher
    if options.init:
        if config.begin_as != "none":
            raise ValueError(
                f"--init {options.init} and begin_as {config.begin_as!r} both say what the run "
                "begins with: leave one out"
            )
        initial = starting_weights(options.init) if is_new else None
    elif config.begin_as != "none" and is_new:
        initial = begin(config, files, options.data)
    if accelerator.is_main_process:
        first = options.init or options.teacher
        print(_beginning(run, config, first, accelerator.device), file=sys.stderr)
    validator = None
    if config.validate_every:
        validator = Validator(config, options.data, run, files.autoencoder, _lpips(options.lpips))
    state = train(
        config,
        build_objective(config, files, accelerator.device),
        options.data,
        run,
        accelerator=accelerator,
        teacher=teacher,
        initial=initial,
        validate=validator,
        tensorboard=options.tensorboard,
        budget_s=options.budget,
        workers=options.workers,
    )
    if accelerator.is_main_process:
        print(f"{run / CHECKPOINT_NAME}: {state.iteration} of {config.iterations} iterations")
        if options.export:
            export(run, options.export, options.autoencoder)
            print(f"{options.export}: weights of the moving average, ready for load_upscaler")
        if read_journal(run, STATISTICS_NAME):
            save_learning_curve(run, run / "learning_curve.png")
    accelerator.end_training()  # a process that ends with its group open may abort
    if state.interrupted:
        raise KeyboardInterrupt
    return 0


def _beginning(run: Path, config: TrainConfig, first: Path | None, device: torch.device) -> str:
    """What the run begins with, and whether this machine is slow at what it asks for.

    ``first``: the folder whose weights a new run takes, if there is one.
    """
    if (run / CHECKPOINT_NAME).is_file():
        text = f"{run}: going on"
    elif first or config.begin_as != "none":
        text = f"{run}: beginning with the weights of {first or config.begin_as}"
    else:
        text = f"{run}: beginning with fresh weights; --init DIR begins with those of another run"
    if config.precision != "fp32" and device.type == "cpu":
        text += f"\nprecision {config.precision} is for GPUs; most CPUs are faster in fp32"
    return text


def set_threads(count: int) -> None:
    """Let torch compute on ``count`` CPU threads; 0 leaves its default."""
    if not 0 <= count <= _MOST_THREADS:
        raise ValueError(f"--threads must lie in 0..{_MOST_THREADS}, got {count}")
    if count:
        torch.set_num_threads(count)


def make_accelerator(config: TrainConfig, device: str) -> Accelerator:
    """Processes and precision of a run; ``device``: "auto" or "cpu"."""
    unused = DistributedDataParallelKwargs(find_unused_parameters=_has_idle_head(config))
    accelerator = Accelerator(
        # Left to itself without a GPU, accelerate makes every process a run of its own.
        cpu=device == "cpu" or not torch.cuda.is_available(),
        mixed_precision="no" if config.precision == "fp32" else config.precision,
        kwargs_handlers=[unused],
    )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise ValueError(
            f"{started} processes were started and {accelerator.num_processes} train together: "
            "start them with torchrun or accelerate launch, on one kind of device"
        )
    return accelerator


def describe(config: TrainConfig) -> str:
    """The resolved settings, the network's size and what an iteration and the run cost."""
    network = build_network(config)
    tile = _forward_gflop(network, 64)
    # A backward pass costs two forward ones. SinSR's terms: three passes forward and back, one
    # forward, and the teacher's T.
    distilling = 10 + exponential_schedule().steps
    forwards = distilling if config.stage == "distillation" else 3
    iteration = forwards * tile * (config.crops.lr_size / 64) ** 2 * config.batch
    lines = [
        json.dumps(as_dict(config), indent=2),
        f"parameters        {parameter_count(network):,}",
        f"network           {tile:.2f} GFLOP for 64x64 -> 256x256",
        f"one iteration     {iteration:.1f} GFLOP (batch {config.batch}; without image teacher, "
        "guidance and autoencoder)",
        f"the whole run     {iteration * config.iterations / 1e6:.2f} PFLOP",
    ]
    return "\n".join(lines)


def starting_weights(path: Path) -> nn.Module:
    """Network of a run folder (its moving average) or of a weights folder."""
    if (path / CHECKPOINT_NAME).is_file():
        return load_average(path / CHECKPOINT_NAME)[1]
    return load_network(path)


def export(run: Path, folder: Path, published: Path | None) -> None:
    """Write the moving average of a run's checkpoint as a weights folder.

    Args:
        run: run folder.
        folder: to write.
        published: where a published network's autoencoder comes from.

    Raises:
        FileNotFoundError: the run has no checkpoint.
    """
    config, network, iteration = load_average(run / CHECKPOINT_NAME)
    kept = ("batch", "seed", "stage", "guidance", "begin_as", "image_teacher", "perceptual_weight")
    training = {
        "iterations": iteration,
        "sources": [source["folder"] for source in config["sources"]],
        **{name: config[name] for name in kept},
    }
    card = {"name": config["name"], "training": training}
    if isinstance(network, CompactNetwork):
        save_compact(network, folder, card)
    else:
        save_published_unet(network, published, folder, card)


def _check_export(folder: Path) -> None:
    """Make the folder; ValueError, before hours of training, if it holds something else."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--export {folder} is a file")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST_NAME).is_file():
        raise ValueError(f"--export {folder} holds files that are no weights folder's")
    folder.mkdir(parents=True, exist_ok=True)


def _has_idle_head(config: TrainConfig) -> bool:
    """Whether the fidelity-0 head gets no gradient: processes must not wait for one."""
    return config.stage == "diffusion" and config.perceptual_weight == 0


def _lpips(weights: Path | None) -> LpipsSqueeze | None:
    if weights is None:
        return None
    return LpipsSqueeze(weights / SQUEEZE_FILE, weights / SQUEEZE_LINEAR_FILE)


def parse_duration(text: str) -> float:
    """``90``, ``90s``, ``30m`` or ``1.5h`` -> seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration like 90s, 30m or 1.5h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _forward_gflop(network: nn.Module, side: int) -> float:
    lr, t = torch.zeros(1, 1, side, side), torch.zeros(1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        if isinstance(network, CompactNetwork):
            packed = torch.zeros(1, 16, side, side)
            network(packed, packed, lr, t, torch.ones(1))
        else:
            latent = torch.zeros(1, 3, side, side)
            network(latent, t, lr.expand(-1, 3, -1, -1))
    return counter.get_total_flops() / 1e9


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="difiisr train", description="Train a model.")
    parser.add_argument("config", type=Path, help="YAML file, see config/train/")
    parser.add_argument("--data", type=Path, help="folder that the configured sources lie in")
    parser.add_argument("--run", type=Path, help="run folder, continued if it exists (runs/NAME)")
    parser.add_argument(
        "--init", type=Path, metavar="DIR", help="run or weights folder that a new run starts from"
    )
    parser.add_argument(
        "--teacher", type=Path, metavar="DIR", help="run or weights folder to distil"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu"), help="auto: a GPU")
    parser.add_argument(
        "--budget", type=parse_duration, default=math.inf, help="wall-clock limit: 90s, 30m, 8h"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that load samples")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 = the default")
    parser.add_argument("--vgg", type=Path, help="weights of the configured VGG")
    parser.add_argument("--sam", type=Path, help="checkpoint of a Segment Anything model")
    parser.add_argument(
        "--lpips", type=Path, metavar="DIR", help="LPIPS-squeeze networks, for the validation"
    )
    parser.add_argument("--peers", type=Path, metavar="DIR", help="weights of published networks")
    parser.add_argument(
        "--autoencoder", type=Path, metavar="DIR",
        help="converted published model whose autoencoder gives the latent space",
    )  # fmt: skip
    parser.add_argument("--tensorboard", action="store_true", help="write event files too")
    parser.add_argument(
        "--export", type=Path, metavar="DIR", help="write the weights here at the end"
    )
    parser.add_argument("--preview", type=Path, metavar="PNG", help="draw samples, train nothing")
    parser.add_argument(
        "--dry-run", action="store_true", help="print settings, sizes and cost only"
    )
    return parser
