"""``difiisr train``: the command line of training."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from difiisr_models.backends import resolve_device
from difiisr_models.compact import CompactNetwork, parameter_count
from difiisr_models.model_loading import save_compact
from difiisr_training.config import TrainConfig, as_dict, load_config
from difiisr_training.loop import CHECKPOINT_NAME, load_weights, train


def main(argv: Sequence[str]) -> int:
    """Train, or describe, the run of a configuration file; returns the exit code."""
    options = _parser().parse_args(list(argv))
    config = load_config(options.config)
    if options.dry_run:
        print(describe(config))
        return 0
    if options.data is None:
        raise ValueError("--data DIR is needed: the folder that the configured sources lie in")
    run = options.run or Path("runs") / config.name
    if options.threads:
        torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    state = train(config, options.data, run, device, options.budget, options.workers)
    print(f"{run / CHECKPOINT_NAME}: {state.iteration} of {config.iterations} iterations")
    if options.export:
        export(run, options.export)
        print(f"{options.export}: weights of the moving average, ready for load_upscaler")
    return 0


def describe(config: TrainConfig) -> str:
    """The resolved settings, the network's size and what an iteration and the run cost."""
    network = CompactNetwork(config.network)
    forward = _forward_gflop(network, config.crops.lr_size) * config.batch
    lines = [
        json.dumps(as_dict(config), indent=2),
        f"parameters        {parameter_count(network):,}",
        f"network           {_forward_gflop(network, 64):.2f} GFLOP for 64x64 -> 256x256",
        f"one iteration     {3 * forward:.1f} GFLOP (forward and backward, batch {config.batch})",
        f"the whole run     {3 * forward * config.iterations / 1e6:.2f} PFLOP",
    ]
    return "\n".join(lines)


def export(run: Path, folder: Path) -> None:
    """Write the moving average of a run's checkpoint as a weights folder.

    Raises:
        FileNotFoundError: the run has no checkpoint.
    """
    config, network, iteration = load_weights(run / CHECKPOINT_NAME)
    card = {
        "name": config["name"],
        "training": {
            "iterations": iteration,
            "batch": config["batch"],
            "seed": config["seed"],
            "sources": [source["folder"] for source in config["sources"]],
        },
    }
    save_compact(network, folder, card)


def parse_duration(text: str) -> float:
    """``90``, ``90s``, ``30m`` or ``1.5h`` -> seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration like 90s, 30m or 1.5h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _forward_gflop(network: CompactNetwork, side: int) -> float:
    packed, lr = torch.zeros(1, 16, side, side), torch.zeros(1, 1, side, side)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(packed, packed, lr, torch.zeros(1, dtype=torch.int64), torch.ones(1))
    return counter.get_total_flops() / 1e9


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="difiisr train", description="Train a model.")
    parser.add_argument("config", type=Path, help="YAML file, see config/train/")
    parser.add_argument("--data", type=Path, help="folder that the configured sources lie in")
    parser.add_argument("--run", type=Path, help="run folder, continued if it exists (runs/NAME)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--budget", type=parse_duration, default=float("inf"), help="wall-clock limit: 90s, 30m, 8h"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that load samples")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 = the default")
    parser.add_argument(
        "--export", type=Path, metavar="DIR", help="write the weights here at the end"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print settings, sizes and cost only"
    )
    return parser
