"""Settings of a training run: frozen dataclasses filled from a YAML file."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from difiisr_models.compact import CompactConfig
from difiisr_models.schedule import exponential_schedule
from difiisr_models.swin_unet import SwinUNetConfig
from difiisr_training.data.crops import CropConfig
from difiisr_training.data.images import ImageSource
from difiisr_training.guidance.injection import GuidanceConfig
from difiisr_training.ranges import require


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW with a warm-up and a cosine to ``final_lr_share`` of the peak rate.

    Attributes:
        lr: peak learning rate.
        final_lr_share: rate at the last iteration over the peak rate; 1 keeps it constant.
        warmup: iterations of linear warm-up.
        weight_decay: AdamW's.
        ema: decay of the exponential moving average of the weights, per iteration.
        grad_clip: largest gradient norm.
    """

    lr: float = 5e-4
    final_lr_share: float = 0.01
    warmup: int = 200
    weight_decay: float = 0.0
    ema: float = 0.999
    grad_clip: float = 1.0

    def __post_init__(self) -> None:
        require(self, lr=(0, math.inf), final_lr_share=(0, 1), warmup=(0, math.inf))
        require(self, weight_decay=(0, math.inf), ema=(0, 1), grad_clip=(1e-9, math.inf))


@dataclass(frozen=True)
class TrainConfig:
    """A whole run. Paths are relative to the folders given on the command line.

    Attributes:
        name: name of the model and of the run's folder.
        sources: where high-resolution frames come from.
        network: sizes of the compact network.
        published: sizes of the published UNet, to train that one in its latent space instead.
        crops: how samples are drawn from the sources.
        optimiser: see :class:`OptimiserConfig`.
        stage: "diffusion" trains all steps (ResShift), "distillation" one step from a teacher.
        guidance: the gradient of L_g in the predicted noise (DifIISR).
        norm: what estimates are compared with their targets by: "l1" mean |a - b|, whose best
            answer is a median; "l2" mean (a - b)^2, as in ResShift, whose best answer is the mean
            and for which ``guidance/injection.py`` derives what an injected gradient does; "psnr"
            the logarithm of that, in which a frame of little contrast counts as much as any. What
            a distillation matches is compared by "l2" whatever this says.
        perceptual_weight: weight of the fidelity-0 estimate's loss; 0 leaves its head untouched. A
            network without that knob (the published one) has this loss alone, where it is not 0.
        begin_as: published network that a new run's weights are made of, see
            :mod:`difiisr_training.transfer`; "none" = fresh weights, or those of ``--init``.
        image_teacher: published network whose outputs the mean estimate is drawn to as well, on
            samples with the clean degradation.
        teacher_weight: share of the image teacher in that loss, 0..1.
        iterations: length of the schedule.
        batch: samples per iteration over all processes.
        last_step_share: share of samples trained at t = T; the rest is uniform over 1..T.
        precision: of the network's convolutions and products (autocast).
        seed: of data, noise and initial weights.
        checkpoint_every: iterations between checkpoints.
        log_every: iterations between lines of statistics.
        validate_every: iterations between validations; 0 = none.
        validation_frames: frames that each of them looks at.
    """

    name: str
    sources: tuple[ImageSource, ...]
    network: CompactConfig = field(default_factory=CompactConfig)
    published: SwinUNetConfig | None = None
    crops: CropConfig = field(default_factory=CropConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    stage: Literal["diffusion", "distillation"] = "diffusion"
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    norm: Literal["l1", "l2", "psnr"] = "l1"
    perceptual_weight: float = 0.0
    begin_as: Literal["none", "rlfn"] = "none"
    image_teacher: Literal["none", "safmn", "rlfn"] = "none"
    teacher_weight: float = 0.5
    iterations: int = 20000
    batch: int = 16
    last_step_share: float = 0.6
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    seed: int = 0
    checkpoint_every: int = 500
    log_every: int = 50
    validate_every: int = 0
    validation_frames: int = 12

    def __post_init__(self) -> None:
        # The distillation of a network with one estimate has no use for that weight.
        weighted = self.published is None or self.stage == "diffusion"
        if self.guidance.kind != "none" and weighted and not self.perceptual_weight:
            raise ValueError(
                f"guidance {self.guidance.kind!r} acts on the perceptual estimate, and "
                "perceptual_weight 0 does not train that: set it above 0"
            )
        if self.guidance.kind != "none":
            self._check_that_guidance_acts()
        if not any(source.weight for source in self.sources):
            raise ValueError(f"sources must hold one with a weight, got {len(self.sources)}")
        if self.begin_as != "none" and self.published is not None:
            raise ValueError(f"begin_as {self.begin_as!r} is for the compact network alone")
        require(self, teacher_weight=(0, 1), last_step_share=(0, 1))
        require(self, perceptual_weight=(0, math.inf), validate_every=(0, math.inf))
        counts = ("iterations", "batch", "checkpoint_every", "log_every", "validation_frames")
        require(self, **dict.fromkeys(counts, (1, math.inf)))

    def _check_that_guidance_acts(self) -> None:
        guidance, steps = self.guidance, exponential_schedule().steps
        if guidance.start_iteration >= self.iterations:
            raise ValueError(
                f"guidance starts at iteration {guidance.start_iteration}, after the last of "
                f"{self.iterations}"
            )
        at_one_step = guidance.timesteps and self.stage == "distillation"
        if at_one_step and steps not in guidance.timesteps:
            raise ValueError(
                f"distillation is guided at t = {steps} alone, guidance timesteps are "
                f"{list(guidance.timesteps)}"
            )


def load_config(path: Path) -> TrainConfig:
    """Read a YAML file.

    Raises:
        ValueError: an unknown or missing key, or a value of the wrong type; the text names it.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a mapping of settings, got {type(data).__name__}")
    return from_dict(data, str(path))


def from_dict(data: dict[str, Any], where: str) -> TrainConfig:
    """Settings from plain data; what an earlier version did not know has its default.

    Raises:
        ValueError: as :func:`load_config`; the text begins with ``where``.
    """
    return _build(TrainConfig, data, where)


def as_dict(config: TrainConfig) -> dict[str, Any]:
    """The resolved settings, for printing and for the checkpoint."""
    return dataclasses.asdict(config)


def _build(kind: Any, value: Any, where: str) -> Any:
    """Make an instance of the annotated type ``kind`` from plain YAML data."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected a mapping, got {value!r}")
        hints = typing.get_type_hints(kind)
        unknown = sorted(set(value) - set(hints))
        if unknown:
            raise ValueError(
                f"{where}: unknown settings {', '.join(unknown)}; known are {', '.join(hints)}"
            )
        missing = [
            f.name
            for f in dataclasses.fields(kind)
            if f.name not in value
            and f.default is dataclasses.MISSING
            and f.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise ValueError(f"{where}: missing settings {', '.join(missing)}")
        return kind(**{k: _build(hints[k], v, f"{where}: {k}") for k, v in value.items()})
    origin = typing.get_origin(kind)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}: expected a list, got {value!r}")
        item = typing.get_args(kind)[0]
        return tuple(_build(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        kind = next(a for a in typing.get_args(kind) if a is not type(None))
        return _build(kind, value, where)
    if origin is typing.Literal:
        if value not in typing.get_args(kind):
            raise ValueError(f"{where}: must be one of {typing.get_args(kind)}, got {value!r}")
        return value
    if kind is float and not isinstance(value, bool):
        try:
            return float(value)  # YAML takes 5e-5, without a point, for text
        except (TypeError, ValueError):
            raise ValueError(f"{where}: expected a number, got {value!r}") from None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where}: expected {kind.__name__}, got {value!r}")
    return value
