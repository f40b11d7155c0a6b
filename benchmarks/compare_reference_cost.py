"""Cost of the compact and the published model on the same frame and machine, as JSON and a table.

``python -m benchmarks.compare_reference_cost [OUT.json]``. The published network gets random
weights: they do not change its cost.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from difiisr_models import Upscaler, UpscalerSettings, load_upscaler
from difiisr_ros.bench.contenders import PUBLISHED, published_model


def gflop(run: Callable[[], object]) -> float:
    """Multiply-accumulates of ``run`` times two, in 1e9."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops() / 1e9


def seconds(run: Callable[[], object], runs: int) -> float:
    """Median wall time after one warm-up."""
    run()
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def peak_mib() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(out: Path) -> None:
    """Measure both models on one 64x64 frame and write the results."""
    frame = (np.random.default_rng(0).random((64, 64)) * 2000 + 7000).astype(np.uint16)
    compact = load_upscaler("difiisr-rt-x4", device="cpu", backend="torch")
    results = {
        "difiisr-rt-x4": {
            "parameters": compact.parameter_count,
            "gflop": {"total": gflop(lambda: compact(frame))},
            "seconds": seconds(lambda: compact(frame), 5),
            "peak_mib": peak_mib(),
        }
    }
    cpu = torch.device("cpu")
    model = published_model(cpu)
    unet, coder = model.unet, model.autoencoder
    published = Upscaler(PUBLISHED, model, "", cpu, "torch", UpscalerSettings())
    latent, image = torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 256, 256)
    results[PUBLISHED] = {
        "parameters": published.parameter_count,
        "gflop": {
            "unet": gflop(lambda: unet(latent, torch.zeros(1, dtype=torch.int64), latent)),
            "encoder": gflop(lambda: coder.encode(image)),
            "decoder": gflop(lambda: coder.decode(latent)),
            "total": gflop(lambda: published(frame)),
        },
        "seconds": seconds(lambda: published(frame), 1),
        "peak_mib": peak_mib(),
    }
    device = {"machine": platform.machine(), "threads": torch.get_num_threads()}
    text = json.dumps({"device": device, "torch": torch.__version__, "models": results}, indent=2)
    out.write_text(text + "\n", encoding="utf-8")
    print(
        "| model | parameters | GFLOP (64x64 frame) | seconds | peak MiB |\n|---|---|---|---|---|"
    )
    for name, r in results.items():
        parts = ", ".join(f"{part} {value:.1f}" for part, value in r["gflop"].items())
        print(
            f"| {name} | {r['parameters']:,} | {parts} | {r['seconds']:.3f} | {r['peak_mib']:.0f} |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", default=Path("reference_cost.json"))
    main(parser.parse_args().out)
