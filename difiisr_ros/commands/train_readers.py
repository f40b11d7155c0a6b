"""``difiisr train-detector`` and ``train-segmenter``: what reads super-resolved frames, trained."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from cyclopts import Parameter
from safetensors.torch import load_file, save_file

from difiisr_models.files import write_json
from difiisr_ros.commands.answers import Answer, answers
from difiisr_ros.commands.arguments import Duration, Threads
from difiisr_training.checkpoints import CHECKPOINT_NAME, VALIDATION_NAME, read_journal
from difiisr_training.data.annotations import pair_with_labels, read_annotations
from difiisr_training.evaluation import readers
from difiisr_training.recipes import centre_network, reader_training
from difiisr_training.recipes.reader_training import DetectorConfig, SegmenterConfig


@dataclass(frozen=True, kw_only=True)
class ReaderRun:
    """Where and how a reader is trained.

    Attributes:
        out: folder of the run.
        init: start from these weights: a detector's .safetensors, a local SegFormer folder.
        resume: go on with the run in --out.
        budget: wall-clock limit, e.g. 20m or 2h.
        device: auto takes a GPU.
        threads: of the CPU; 0: all.
    """

    out: Path
    init: Path | None = None
    resume: bool = False
    budget: Duration = math.inf
    device: Literal["auto", "cpu"] = "auto"
    threads: Threads = 0

    def prepare(self) -> None:
        """Raise a ValueError where ``out`` holds a training run that nobody asked to resume."""
        if (self.out / CHECKPOINT_NAME).exists() and not self.resume:
            raise ValueError(f"{self.out} holds a run: --resume goes on with it, or choose another")
        if self.threads:
            torch.set_num_threads(self.threads)


@answers
def train_detector(
    data: Path,
    /,
    *,
    annotations: Path,
    run: Annotated[ReaderRun, Parameter(name="*")],
    val_data: Path | None = None,
    val_annotations: Path | None = None,
    config: Annotated[DetectorConfig, Parameter(name="*")] = DetectorConfig(),
) -> Answer:
    """Train a small object detector on high-resolution thermal frames and export it as ONNX.

    With it difiisr evaluate judges the frames of every model.

    Args:
        data: folder of images.
        annotations: their boxes: COCO or HIT-UAV JSON, or a folder of Pascal VOC.
        val_data: images that choose the best weights.
        val_annotations: their boxes.
    """
    if (val_data is None) != (val_annotations is None):
        raise ValueError("--val-data and --val-annotations go together")
    run.prepare()
    truth = read_annotations(annotations)
    frames, val_frames = reader_training.load_frames(data, truth), []
    if val_data and val_annotations:
        val_truth = read_annotations(val_annotations)
        if val_truth.classes != truth.classes:
            found = f"{val_annotations} has the classes {', '.join(val_truth.classes)}"
            raise ValueError(f"{found}, {annotations} has {', '.join(truth.classes)}")
        val_frames = reader_training.load_frames(val_data, val_truth)
    initial = None
    if run.init:
        initial = centre_network.CentreDetector(len(truth.classes), config.width)
        initial.load_state_dict(load_file(run.init))
    network, state = reader_training.fit_detector(
        config, truth.classes, frames, val_frames, run.out, initial=initial, device=run.device,
        budget_s=run.budget,
    )  # fmt: skip
    if state.interrupted:
        raise KeyboardInterrupt(state.interrupted)
    weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    save_file(weights, run.out / "detector.safetensors")
    write_json(run.out / "config.json", {"classes": truth.classes, **asdict(config)})
    path = centre_network.export_detector(network, truth.classes, run.out / "detector.onnx")
    validation = read_journal(run.out, VALIDATION_NAME)
    done = f"{state.iteration} of {config.iterations} iterations on {len(frames)} frames"
    lines = [f"{path}: {done}"]
    for line in validation:
        scores = f"{line['map']:.1%} mAP@.5:.95, {line['map50']:.1%} mAP@.5"
        lines.append(
            f"validation, {len(val_frames)} frames, iteration {line['iteration']}: {scores}"
        )
    facts = {"detector": str(path), "iterations": state.iteration, "frames": len(frames)}
    return Answer(facts | {"validation": validation}, "\n".join(lines))


@answers
def train_segmenter(
    data: Path,
    /,
    *,
    labels: Path,
    classes: str,
    run: Annotated[ReaderRun, Parameter(name="*")],
    config: Annotated[SegmenterConfig, Parameter(name="*")] = SegmenterConfig(),
) -> Answer:
    """Train SegFormer-b1 on thermal frames with label maps; the defaults are the paper's settings.

    The result is a folder as transformers reads it.

    Args:
        data: folder of images (FMB: train/Infrared).
        labels: folder of their label maps (FMB: train/Label).
        classes: names in the order of the labels 0, 1, .., with commas.
    """
    names = [name.strip() for name in classes.split(",")]
    if len(names) < 2:
        raise ValueError(f"--classes needs two names or more, got {classes}")
    run.prepare()
    pairs = pair_with_labels(data, labels)
    torch.manual_seed(config.seed)
    model = readers.load_segformer(run.init, names) if run.init else readers.build_segformer(names)
    model, state = reader_training.fit_segmenter(
        config, model, pairs, run.out, device=run.device, budget_s=run.budget
    )
    if state.interrupted:
        raise KeyboardInterrupt(state.interrupted)
    model.save_pretrained(run.out)
    facts = {"segmenter": str(run.out), "iterations": state.iteration, "frames": len(pairs)}
    done = f"{state.iteration} of {config.iterations} iterations on {len(pairs)} images"
    return Answer(facts, f"{run.out}: {done}")
