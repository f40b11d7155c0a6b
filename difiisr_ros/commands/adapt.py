"""``difiisr adapt``: fit a compact model to a camera of which there is no high resolution."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from difiisr_models.files import write_json
from difiisr_ros.commands.answers import Answer, answers
from difiisr_ros.commands.arguments import Count, Duration, Threads
from difiisr_ros.commands.train_model import OWN_CAMERA, load_source, preset_or_file
from difiisr_training import train as training
from difiisr_training.checkpoints import export_run, starting_weights
from difiisr_training.config import load_config
from difiisr_training.data.images import ImageSource
from difiisr_training.evaluation.films import next_frame_errors, surely_better
from difiisr_training.losses import build_loss
from difiisr_training.validation import upscaler_of

_HELD_OUT, _FEWEST, _MOST = 0.2, 16, 48  # share and numbers of frames, at the end
_FEWEST_PAIRS = 8  # of neighbours, between which the scene moved
_LR_SIZE, _LEAST_LR_SIZE = 32, 8  # of crops
_MARGIN = 8  # low-resolution pixels that a crop needs around it


@answers
def adapt(
    recording: Path,
    /,
    *,
    out: Path,
    init: Path = Path("difiisr-rt-x4"),
    topic: str | None = None,
    camera: str | None = None,
    every: Count = 1,
    iterations: Count = 500,
    budget: Duration = 900.0,
    run: Path | None = None,
    device: Literal["auto", "cpu"] = "auto",
    threads: Threads = 0,
) -> Answer:
    """Fit a compact model to a camera without high resolution, by its own frames.

    They are scaled down by 4 and the model learns to undo that. Whether it serves the camera is
    judged by something else, on frames at the end that the fit has not seen, at their own scale:
    how well each super-resolved frame, moved as the scene moved, foretells the next measured one.
    Weights that do not foretell it better, by two standard errors, are not written.

    Args:
        recording: recording, or folder of recordings or images in their order, of a moving camera.
        out: folder for the weights.
        init: model to begin with: a shipped one, or a weights folder.
        topic: image topic of the recording; not needed where there is only one.
        camera: name of a camera, or a YAML file.
        every: use the first of each so many frames to learn from.
        iterations: length of the fit.
        budget: wall-clock limit of the fit: 90s, 30m, 8h.
        run: folder of the fit, continued if it exists; OUT-run by default.
        device: auto takes a GPU.
        threads: CPU threads; 0 leaves the default.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"--out {out} is not empty")
    if threads:
        torch.set_num_threads(threads)
    source = ImageSource(".", topic=topic, camera=camera, val_share=0)
    frames = load_source(source, "train", data=recording)
    count = min(_MOST, int(_HELD_OUT * len(frames)))
    if count < _FEWEST or len({frame.shape for frame in frames}) > 1:
        raise ValueError(
            f"{recording} has {len(frames)} frames of {len({f.shape for f in frames})} sizes; "
            f"{int(_FEWEST / _HELD_OUT)} or more of one size are needed"
        )
    learnt, held_out = frames[: -count - 1 : every], frames[-count:]
    lr_size = min(_LR_SIZE, min(frames[0].shape) // 4 - _MARGIN)
    if lr_size < _LEAST_LR_SIZE:
        least = 4 * (_LEAST_LR_SIZE + _MARGIN)
        raise ValueError(f"frames of {frames[0].shape} pixels; {least}x{least} are needed")
    begun = starting_weights(init)
    config = load_config(preset_or_file(OWN_CAMERA))
    config = replace(
        config, name=f"{config.name}-adapted", iterations=iterations, network=begun.config,
        crops=replace(config.crops, lr_size=lr_size),
    )  # fmt: skip
    accelerator = training.make_accelerator(config, device)
    run = run or out.with_name(f"{out.name}-run")
    loss_of = build_loss(config, accelerator.device)
    task = training.images_task(config, loss_of, lambda _source, _part: learnt, accelerator)
    state = training.train(config, task, run, accelerator, begun, budget_s=budget)
    if state.interrupted:
        raise KeyboardInterrupt(state.interrupted)

    judged = [upscaler_of(one.cpu()) for one in (begun, state.ema)]
    before, after = next_frame_errors(held_out, judged)
    if len(before) < _FEWEST_PAIRS:
        raise ValueError(
            f"not exported: the scene moves in {len(before)} of the last {count} frames of "
            f"{recording}, {_FEWEST_PAIRS} are needed to judge by; record while the camera moves"
        )
    change = 100 * (after.mean() / before.mean() - 1)
    text = f"error in foretelling {len(before)} held-out frames: {change:+.2f} % with the fit"
    facts = {"before": before.tolist(), "after": after.tolist()}
    write_json(run / "gate.json", facts)
    if not surely_better(before, after):
        raise ValueError(f"not exported: {text}, which is no sure improvement. Keep {init}")
    export_run(run, out)
    facts |= {"weights": str(out), "run": str(run), "change_percent": float(change)}
    return Answer(facts, f"{text}\n{out}: weights, ready for load_upscaler")
