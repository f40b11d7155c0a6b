"""Settings of a training run: frozen dataclasses, which pydantic fills from a YAML file."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Gt, Le
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from difiisr_models.compact import CompactConfig
from difiisr_models.diffusion import exponential_schedule
from difiisr_models.files import read_text
from difiisr_models.published.swin_unet import SwinUNetConfig
from difiisr_training.data.images import ImageSource, Share
from difiisr_training.data.training_pairs import CropConfig
from difiisr_training.guidance import GuidanceConfig

Count = Annotated[int, Ge(1)]
RunName = Annotated[str, Field(pattern=r"^[\w@+-][\w.@+-]*$", max_length=100)]
"""Of a folder below runs/, and of nothing beside it."""


@dataclass(frozen=True, config={"extra": "forbid"})
class OptimiserConfig:
    """AdamW with a warm-up and a cosine to ``final_lr_share`` of the peak rate.

    Attributes:
        lr: peak learning rate.
        final_lr_share: rate at the last iteration over the peak rate; 1 keeps it constant.
        warmup: iterations of linear warm-up.
        weight_decay: AdamW's.
        ema: decay of the exponential moving average of the weights, per iteration.
        ema_warmup: the average has a shorter memory at first; without, as in the public reference,
            it holds the initial weights for long.
        grad_clip: largest gradient norm; null leaves gradients as they are.
    """

    lr: Annotated[float, Ge(0), Le(1)] = 5e-4
    final_lr_share: Share = 0.01
    warmup: Annotated[int, Ge(0)] = 200
    weight_decay: Annotated[float, Ge(0), Le(1)] = 0.0
    ema: Share = 0.999
    ema_warmup: bool = True
    grad_clip: Annotated[float, Gt(0)] | None = 1.0


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class RunConfig:
    """What every run has, on images or on clips.

    Attributes:
        name: name of the model and of the run's folder: letters, digits and ``_-.@+``.
        optimiser: see :class:`OptimiserConfig`.
        norm: what estimates are compared with their targets by: "l1" mean |a - b|; "l2" mean
            (a - b)^2, as in ResShift, for which ``guidance.py`` derives what an injected gradient
            does; "psnr" the logarithm of that, in which a frame of little contrast counts as much
            as any. What a distillation matches is compared by "l2" whatever this says.
        last_step_share: share of samples trained at t = T; the rest is uniform over 1..T.
        seed: of data, noise and initial weights.
        checkpoint_every: iterations between checkpoints.
        log_every: iterations between lines of statistics.
        validate_every: iterations between validations; 0 = none.
    """

    name: RunName
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    norm: Literal["l1", "l2", "psnr"] = "l1"
    last_step_share: Share = 0.6
    seed: int = 0
    checkpoint_every: Count = 500
    log_every: Count = 50
    validate_every: Annotated[int, Ge(0)] = 0


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class TrainConfig(RunConfig):
    """A run on single images. Paths are relative to the folders given on the command line.

    Attributes:
        sources: where high-resolution frames come from.
        network: sizes of the compact network.
        published: sizes of the published UNet, to train that one in its latent space instead.
        crops: how samples are drawn from the sources.
        stage: "diffusion" trains all steps (ResShift), "distillation" one step from a teacher.
        guidance: the gradient of L_g in the predicted noise (DifIISR).
        inverse_scaled_at: the step whose 1 / sqrt(kappa^2 eta_t + 1) scales the input of the
            distillation's learned inverse: "last" t = T, as in the public reference, or "first"
            t = 1, which the network is told.
        perceptual_weight: weight of the fidelity-0 estimate's loss; 0 leaves its head untouched. A
            network without that knob (the published one) has this loss alone, where it is not 0.
        begin_as: published network that a new run's weights are made of, see
            ``recipes/begin_as_rlfn.py``; "none" = fresh weights, or those of ``--init``.
        iterations: length of the schedule.
        batch: samples per iteration over all processes.
        precision: of the network's convolutions and products (autocast).
        validation_frames: frames that each validation looks at.
    """

    sources: tuple[ImageSource, ...]
    network: CompactConfig = field(default_factory=CompactConfig)
    published: SwinUNetConfig | None = None
    crops: CropConfig = field(default_factory=CropConfig)
    stage: Literal["diffusion", "distillation"] = "diffusion"
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    inverse_scaled_at: Literal["last", "first"] = "last"
    perceptual_weight: Annotated[float, Ge(0)] = 0.0
    begin_as: Literal["none", "rlfn"] = "none"
    iterations: Count = 20000
    batch: Count = 16
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    validation_frames: Count = 12

    def __post_init__(self) -> None:
        if not any(source.weight for source in self.sources):
            raise ValueError(f"sources must hold one with a weight, got {len(self.sources)}")
        if self.begin_as != "none" and self.published is not None:
            raise ValueError(f"begin_as {self.begin_as!r} is for the compact network alone")
        guidance, steps = self.guidance, exponential_schedule().steps
        if guidance.kind == "none":
            return
        # The distillation of a network with one estimate has no use for that weight.
        weighted = self.published is None or self.stage == "diffusion"
        if weighted and not self.perceptual_weight:
            raise ValueError(
                f"guidance {guidance.kind!r} acts on the perceptual estimate, and "
                "perceptual_weight 0 does not train that: set it above 0"
            )
        first = guidance.start_iteration
        if first >= self.iterations:
            raise ValueError(f"guidance starts at {first}, after the last of {self.iterations}")
        if self.stage == "distillation" and steps not in (guidance.timesteps or (steps,)):
            raise ValueError(
                f"distillation is guided at t = {steps} alone, not at {list(guidance.timesteps)}"
            )


def load_config(path: Path) -> TrainConfig:
    """Read a YAML file; ValueError that names an unknown or missing key, a wrong type or range."""
    return from_dict(read_yaml(path), str(path))


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; ValueError for one that is none."""
    try:
        return yaml.safe_load(read_text(Path(path)))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error


def from_dict(data: Any, where: str | Path, kind: type = TrainConfig) -> Any:
    """Settings of a ``kind`` from plain data; what an earlier version did not know has its default.

    Its ``image_teacher``, which is gone, is passed over where it was "none". Raises as
    :func:`load_config` does; the text begins with ``where``.
    """
    if isinstance(data, dict) and data.get("image_teacher") == "none":
        data = {k: v for k, v in data.items() if k not in ("image_teacher", "teacher_weight")}
    try:
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            place = ".".join(map(str, fault["loc"]))
            got = "" if isinstance(fault["input"], dict) else f", got {fault['input']!r}"
            faults.append(f"{place}: {fault['msg'].removeprefix('Value error, ')}{got}")
        raise ValueError(f"{where}: {'; '.join(faults)}") from error
