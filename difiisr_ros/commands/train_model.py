"""``difiisr train``: train a model, or say what a configuration asks for."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from difiisr_models.compact import parameter_count
from difiisr_models.diffusion import exponential_schedule
from difiisr_models.motion import require_opencv
from difiisr_models.published.convert import load_published
from difiisr_models.weights import MANIFEST_NAME, share_dir
from difiisr_ros.bags import find_recordings, frames_of
from difiisr_ros.commands.answers import Answer, answers
from difiisr_ros.commands.arguments import AskedCamera, Duration, Threads
from difiisr_training import train as training
from difiisr_training.checkpoints import (
    CHECKPOINT_NAME,
    STATISTICS_NAME,
    export_run,
    starting_weights,
)
from difiisr_training.config import TrainConfig, from_dict, load_config, read_yaml
from difiisr_training.data import images
from difiisr_training.losses import build_loss
from difiisr_training.recipes.begin_as_rlfn import begin
from difiisr_training.validation import FilmValidator, Validator, save_learning_curve

OWN_CAMERA = "own_camera"
_FITTED = 48, 4  # clips, and frames of each, that a detail head is fitted to


@answers
def train(
    config: str = OWN_CAMERA,
    /,
    *,
    data: Path | None = None,
    run: Path | None = None,
    init: Path | None = None,
    teacher: Path | None = None,
    device: Literal["auto", "cpu"] = "auto",
    budget: Duration = math.inf,
    workers: int = 1,
    threads: Threads = 0,
    vgg: Path | None = None,
    sam: Path | None = None,
    lpips: Path | None = None,
    peers: Path | None = None,
    autoencoder: Path | None = None,
    export: Path | None = None,
    dry_run: bool = False,
) -> Answer:
    """Train a model. `accelerate launch` and `torchrun` start several processes.

    Args:
        config: YAML file, or the name of a preset (config/train/). The default trains the shipped
            model on with all that --data holds.
        data: folder that the configured sources lie in; own_camera takes a recording, or a folder
            of recordings or images.
        run: run folder, continued if it exists; runs/NAME by default.
        init: run or weights folder that a new run starts from.
        teacher: run or weights folder to distil; of a recurrent model, whose detail its detail head
            is fitted to as it is exported, and which makes its first frames if it has the same
            sizes.
        device: auto takes a GPU.
        budget: wall-clock limit: 90s, 30m, 8h.
        workers: processes that load samples.
        threads: CPU threads; 0 leaves the default.
        vgg: weights of the configured VGG.
        sam: checkpoint of a Segment Anything model.
        lpips: folder of the LPIPS-squeeze networks, for the validation.
        peers: folder with the published weights that begin_as names.
        autoencoder: converted published model whose autoencoder gives the latent space.
        export: write the weights here at the end.
        dry_run: print settings, sizes and cost only.
    """
    path = preset_or_file(config)
    if config == OWN_CAMERA and init is None:
        init = Path("difiisr-rt-x4")
    is_recurrent = "stages" in (read_yaml(path) or {})
    if is_recurrent:
        require_opencv()
        from difiisr_training import sequence_training

        settings = from_dict(read_yaml(path), str(path), sequence_training.SequenceConfig)
    else:
        settings = load_config(path)
    if dry_run:
        facts = asdict(settings)
        return Answer(facts, json.dumps(facts, indent=2) if is_recurrent else describe(settings))
    if data is None:
        raise ValueError("--data DIR is needed: the folder that the configured sources lie in")
    load = partial(load_source, data=data)
    if export:
        _check_export(export)
    if threads:
        torch.set_num_threads(threads)
    run = run or Path("runs") / settings.name

    if is_recurrent:
        clips = sequence_training.clips_of(settings, data, load)
        accelerator = Accelerator(cpu=True)
        task = sequence_training.clips_task(settings, clips)
        initial = starting_weights(init) if init else None
        judge: Callable = partial(FilmValidator, settings.stills, load)
        write: Callable[..., None] = export_run
        if teacher is not None:
            first, (count, length) = 64 * settings.iterations, _FITTED
            drawn = (clips.draw(first + k, length) for k in range(count))
            fit = sequence_training.fit_detail
            sibling = starting_weights(teacher)
            fitted = partial(fit, teacher=sibling, clips=drawn)
            write = partial(export_run, refine=fitted, sibling=sibling)
    else:
        accelerator = training.make_accelerator(settings, device)
        taught = None
        if teacher and settings.stage == "distillation":
            taught = starting_weights(teacher).to(accelerator.device)
        initial, how = _beginning(settings, run, init, (teacher, taught), peers, load)
        if accelerator.is_main_process:
            print(f"{run}: {how}", file=sys.stderr)
            if settings.precision != "fp32" and accelerator.device.type == "cpu":
                text = f"precision {settings.precision} is for GPUs; most CPUs are faster in fp32"
                print(text, file=sys.stderr)
        latent = load_published(autoencoder)[1] if autoencoder else None
        loss_of = build_loss(
            settings, accelerator.device, autoencoder=latent, vgg=vgg, sam=sam, teacher=taught
        )
        task = training.images_task(settings, loss_of, load, accelerator, workers)
        judge = partial(Validator, settings, load, run, latent, lpips)
        write = partial(export_run, published=autoencoder)
    validate = judge() if settings.validate_every else None
    state = training.train(settings, task, run, accelerator, initial, validate, budget)
    facts, text = {}, ""
    if accelerator.is_main_process:
        facts = {"run": str(run), "iterations": state.iteration, "of": settings.iterations}
        text = f"{run / CHECKPOINT_NAME}: {state.iteration} of {settings.iterations} iterations"
        if export:
            write(run, export)
            facts["weights"] = str(export)
            text += f"\n{export}: weights of the moving average, ready for load_upscaler"
        if (run / STATISTICS_NAME).is_file():
            save_learning_curve(run, run / "learning_curve.png")
    accelerator.end_training()  # a process that ends with its group open may abort
    if state.interrupted:
        # What it had is saved; `train A && train B` must not go on.
        print(text, file=sys.stderr)
        raise KeyboardInterrupt(state.interrupted)
    return Answer(facts, text)


def _beginning(
    config: TrainConfig,
    run: Path,
    init: Path | None,
    teacher: tuple[Path | None, nn.Module | None],
    peers: Path | None,
    load: images.LoadFrames,
) -> tuple[nn.Module | None, str]:
    """The weights that a run starts from, None: its own, or fresh ones; and that in words."""
    if init and config.begin_as != "none":
        raise ValueError(
            f"--init {init} and begin_as {config.begin_as!r} both say what the run begins with: "
            "leave one out"
        )
    if (run / CHECKPOINT_NAME).is_file():
        return None, "going on"
    if init:
        return starting_weights(init), f"beginning with the weights of {init}"
    if config.begin_as != "none":
        return begin(config, peers, load), f"beginning as {config.begin_as}"
    if teacher[1]:
        return teacher[1], f"beginning with the weights of {teacher[0]}"
    return None, "beginning with fresh weights; --init DIR begins with those of another run"


def preset_or_file(name: str) -> Path:
    """The file of a configuration: ``name`` itself, or the preset that is called so.

    Raises:
        FileNotFoundError: there is neither; the text lists the presets.
    """
    folder = share_dir() / "config" / "train"
    for path in (Path(name), folder / f"{name}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise FileNotFoundError(f"no configuration {name}: neither a file nor a preset ({known})")


def load_source(source: images.ImageSource, part: images.Part, *, data: Path) -> list[np.ndarray]:
    """Frames of one part of a source: a folder of images, a recording, or a folder of recordings.

    What is damaged is skipped, counted and named in the log.

    Raises:
        FileNotFoundError: the folder does not exist or holds neither images nor recordings.
        ValueError: a recording has no such topic, nothing of the training part is readable, or
            there are images beside the recordings.
    """
    root = data / source.folder
    recordings = find_recordings(root)
    if not recordings:
        return images.load_images(source, part, data=data)
    if loose := [p for p in root.rglob("*") if p.suffix.lower() in images.SUFFIXES]:
        raise ValueError(
            f"{root} holds {len(recordings)} recordings and {len(loose)} images: "
            "make folders, and sources, of their own of them"
        )
    camera = AskedCamera(camera=source.camera).known

    def read(path: Path, skipped: Callable[[str], None]) -> Iterator[np.ndarray]:
        frames = frames_of(path, source.topic, source.every, skipped=skipped, camera=camera)
        return (counts for _, counts in frames)

    sequences = [path.relative_to(root).as_posix() for path in recordings]
    return images.read_part(source, root, part, recordings, sequences, read)


def describe(config: TrainConfig) -> str:
    """What a run is, the network's size and what an iteration and the run cost."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:  # shapes alone
        network = training.build_network(config)
        x, y, t = torch.zeros(1, 16, 64, 64), torch.zeros(1, 3, 64, 64), torch.zeros(1).long()
        if config.published is None:
            network(x, x, x[:, :1], t, torch.ones(1))
        else:
            network(y, t, y)
    tile = counter.get_total_flops() / 1e9
    # A backward pass costs two forward ones. SinSR's terms: three passes forward and back, one
    # forward, and the teacher's T.
    forwards = 10 + exponential_schedule().steps if config.stage == "distillation" else 3
    iteration = forwards * tile * (config.crops.lr_size / 64) ** 2 * config.batch
    sources = ", ".join(source.folder for source in config.sources)
    guidance: str = config.guidance.kind
    guidance = guidance if guidance == "none" else f"{guidance}, {config.guidance.mode}"
    return f"""{config.name}, {config.stage}: {config.iterations} iterations of {config.batch}
sources           {sources}
guidance          {guidance}
parameters        {parameter_count(network):,}
network           {tile:.2f} GFLOP for 64x64 -> 256x256
one iteration     {iteration:.1f} GFLOP (batch {config.batch}; without guidance and autoencoder)
the whole run     {iteration * config.iterations / 1e6:.2f} PFLOP"""


def _check_export(folder: Path) -> None:
    """Make the folder; ValueError, before hours of training, if it holds something else."""
    if folder.is_file():
        raise ValueError(f"--export {folder} is a file")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST_NAME).is_file():
        raise ValueError(f"--export {folder} holds files that are no weights folder's")
    folder.mkdir(parents=True, exist_ok=True)
