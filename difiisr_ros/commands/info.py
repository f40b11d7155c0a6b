"""``difiisr info``: what a model is, what a frame costs, and whether it is the published one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from difiisr_models import Runtime
from difiisr_ros.commands.arguments import ImageSize, RuntimeOptions, as_asked

if TYPE_CHECKING:
    from difiisr_models import Upscaler


def info(
    model: str,
    /,
    *,
    runtime: RuntimeOptions = Runtime(),
    profile: ImageSize | None = None,
    parity: Literal["tiny", "full"] | None = None,
    parity_data: Path | None = None,
) -> int:
    """Say what a model is, and what a frame costs.

    Args:
        model: model name, or path of weights.
        profile: also time each stage of mono16 frames of this size, HxW as in 120x160.
        parity: also compare the published network of this size with the reference's outputs.
        parity_data: folder of the recorded outputs, tiny_expected.safetensors, ...; they are not
            part of the package.
    """
    if parity and parity_data is None:
        raise ValueError("--parity needs --parity-data DIR, the reference's recorded outputs")
    import numpy as np
    from torch.utils.flop_counter import FlopCounterMode

    from difiisr_models import load_upscaler

    upscaler = load_upscaler(model, runtime=as_asked(runtime))
    # Operations are counted in plain torch: other backends hide them, CUDA graphs repeat them.
    in_torch = upscaler
    if (upscaler.backend, upscaler.device, runtime.compile) != ("torch", "cpu", False):
        in_torch = load_upscaler(model, device="cpu", backend="torch")
    with FlopCounterMode(display=False) as counter:
        in_torch(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64))
    print(f"name        {upscaler.name}")
    print(f"scale       {upscaler.scale}")
    print(f"parameters  {upscaler.parameter_count:,}")
    print(f"sha256      {upscaler.weights_sha256 or '(no weights)'}")
    print(f"cost        {counter.get_total_flops() / 1e9:.2f} GFLOP for a 64x64 frame")
    print(f"backend     {upscaler.backend} on {upscaler.device}")
    for backend, reason in upscaler.passed_over:
        print(f"            not {backend}: {reason}")
    if profile:
        _profile(upscaler, *profile)
    return _parity(parity, parity_data) if parity else 0


def _profile(upscaler: Upscaler, height: int, width: int) -> None:
    from difiisr_models.frame_profile import profile_stages

    stages = profile_stages(upscaler, height, width)
    print(f"profile     {height}x{width} mono16, median ms per frame with the profiler running")
    print(f"            {'stage':<12} {'CPU':>8} {'GPU':>8}")
    for stage, (host, device) in stages.items():
        name = "  network" if stage == "network" else stage  # a part of the tiles
        print(f"            {name:<12} {host:8.2f} {f'{device:.2f}' if device else '-':>8}")


def _parity(size: str, folder: Path) -> int:
    from difiisr_models.published.parity import TOLERANCE, run_parity

    rows = run_parity(size, folder, lambda name: print(f"parity      {name} ...", file=sys.stderr))
    for row in rows:
        ties = f", {row.ties_settled} ties settled as recorded" if row.ties_settled else ""
        verdict = "ok" if row.passed else "FAILED"
        print(f"parity      {row.name}: {row.max_abs_diff:.1e} {verdict}{ties}")
    print(f"            largest absolute difference allowed: {TOLERANCE:.0e}")
    return 0 if all(row.passed for row in rows) else 1
