"""``difiisr train-ablation``: what the guidance does, as in Tables 3 and 4 of the paper.

Every variant starts from the same weights, with a fresh head for fidelity 0, and sees the same
samples, noise and steps; only L_g and the way it acts differ. All are then judged at fidelity 0,
the estimate that the guidance shapes.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from difiisr_models.diffusion import exponential_schedule
from difiisr_models.files import write_json
from difiisr_models.model_loading import save_compact
from difiisr_models.resample import SCALE
from difiisr_ros.commands.answers import Answer, answers
from difiisr_ros.commands.arguments import Count, Duration, Threads
from difiisr_ros.commands.evaluate_models import Judgement, evaluate, resolve_inputs
from difiisr_ros.commands.train_model import train
from difiisr_training.checkpoints import CHECKPOINT_NAME, read_checkpoint, starting_weights
from difiisr_training.config import TrainConfig, from_dict, load_config
from difiisr_training.evaluation.inputs import Selection
from difiisr_training.evaluation.measures import Judge
from difiisr_training.guidance import added_weight

_STRONG = 10.0
_THROUGH_THE_NETWORK = 3e5  # times rho: a step of x_0 about as large as with fixed noise

SETS = ("hit_uav/test", "msrs/test", "roadscene/last20")
METRICS = ("psnr", "ssim", "lpips_squeeze", "spectral", "niqe")


@answers
def train_ablation(
    config: Path,
    /,
    *,
    data: Path,
    out: Path,
    weights: Path,
    init: Path | None = None,
    vgg: Path | None = None,
    sam: Path | None = None,
    sets: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = SETS,
    only: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    limit: Count | None = None,
    detector: Path | None = None,
    annotations: list[str] = [],  # noqa: B006
    seed: int | None = None,
    device: Literal["auto", "cpu"] = "auto",
    budget: Duration = math.inf,
    workers: int = 1,
    threads: Threads = 0,
) -> Answer:
    """Train the guidance settings of the paper's Tables 3 and 4 and compare them.

    Run again, it goes on where it was. What they came to is in OUT/evaluation, as difiisr evaluate
    writes it.

    Args:
        config: YAML file; its guidance is varied.
        data: root of sources and sets.
        out: folder to write.
        weights: networks of the metrics.
        init: weights that all start from.
        vgg: weights of the configured VGG.
        sam: checkpoint of a Segment Anything model.
        sets: judged on these.
        only: these variants; by default all.
        limit: frames per set, evenly spaced; all by default.
        detector: ONNX detector, for mAP.
        annotations: SET=FILE, boxes in the frames of a set; repeatable.
        seed: instead of the configuration's.
        device: auto takes a GPU.
        budget: limit of each variant: 90s, 30m.
        workers: processes that load samples.
        threads: CPU threads; 0 leaves the default.
    """
    # What would fail only after hours of training is said before.
    base = load_config(config)
    if seed is not None:
        base = dataclasses.replace(base, seed=seed)
    chosen = variants(base)
    if unknown := sorted(set(only) - chosen.keys()):
        raise ValueError(f"no variant {', '.join(unknown)}; there are {', '.join(chosen)}")
    chosen = {name: chosen[name] for name in only or chosen}
    if (detector is None) != (not annotations):
        raise ValueError("--detector and --annotations go together")
    if vgg is None and sam is None:
        raise ValueError("--vgg or --sam is needed: three of the variants are perceptual")
    for path in (detector, vgg, sam, weights):
        if path is not None and not path.exists():
            raise FileNotFoundError(f"no file or folder {path}")
    resolve_inputs(sets, data, None, Selection())
    Judge("reference", METRICS, weights)

    if init:
        network = starting_weights(init)
        network.reset_detail()  # what guidance shapes begins anew
        save_compact(network, out / "start", {"name": str(init)})
    for name, variant in chosen.items():
        run = out / "runs" / name
        write_json(out / "runs" / f"{name}.yaml", dataclasses.asdict(variant))  # JSON is YAML too
        train(
            f"{out}/runs/{name}.yaml", data=data, run=run, export=out / name, device=device,
            init=out / "start" if init else None, vgg=vgg, sam=sam, budget=budget,
            workers=workers, threads=threads,
        )  # fmt: skip
        if read_checkpoint(run / CHECKPOINT_NAME)["iteration"] < variant.iterations:
            text = f"{name}: stopped before its last iteration; the same command goes on"
            return Answer({"stopped": name}, text, 1)
    models = ["bicubic", *(f"{out / name}@0" for name in chosen)]
    judged_by = Judgement(
        models=",".join(models), weights=weights, metrics=",".join(METRICS), limit=limit,
        device=device,
    )  # fmt: skip
    return evaluate(
        list(sets), data=data, out=out / "evaluation", judged_by=judged_by, detector=detector,
        annotations=annotations,
    )  # fmt: skip


def variants(config: TrainConfig) -> dict[str, TrainConfig]:
    """Table 3 (none, visual, perceptual, both) and Table 4 ("sum": the same losses, added).

    The guidance of ``config`` gives weights, rho and all else; "both" is also the "gradient" row of
    Table 4. "both-sum" adds the losses as strongly as "both" injects them
    (``guidance.added_weight``); the "-strong" ones do ten times as much, "both-middle-sum" the root
    of that. "both-network" injects through the network, by a rho that makes the step about as large
    as that of "both", and "both-prediction" corrects the prediction.
    """
    guidance, pixels = config.guidance, (SCALE * config.crops.lr_size) ** 2
    steps = exponential_schedule().steps
    form = (guidance.mode, guidance.corrects, guidance.gradient_path, guidance.timesteps)
    if config.stage != "diffusion" or config.published is not None:
        raise ValueError(f"{config.name}: the ablation trains compact networks by diffusion")
    if config.begin_as != "none":
        raise ValueError(f"begin_as {config.begin_as!r} is not done here: --init DIR is")
    if form != ("gradient", "target", "fixed_noise", (steps,)) or config.norm != "l2":
        raise ValueError(
            f"{config.name}: injected and added losses are matched where the gradient corrects the "
            f"target, with fixed noise and the squared error, at t = {steps} alone"
        )

    def added(times: float) -> dict[str, Any]:
        weight = added_weight(times * guidance.rho, steps, pixels)
        names = ("weight_visual", "weight_perceptual", "weight_pattern")
        return {"mode": "sum"} | {name: weight * getattr(guidance, name) for name in names}

    changes: dict[str, dict[str, Any]] = {
        "none": {"kind": "none"},
        "visual": {"kind": "visual"},
        "perceptual": {"kind": "perceptual"},
        "both": {},
        "both-sum": added(1.0),
        "both-strong": {"rho": _STRONG * guidance.rho},
        "both-middle-sum": added(_STRONG**0.5),
        "both-strong-sum": added(_STRONG),
        "both-network": {"gradient_path": "network", "rho": _THROUGH_THE_NETWORK * guidance.rho},
        "both-prediction": {"corrects": "prediction"},
    }
    settings = dataclasses.asdict(config)
    return {
        name: from_dict(
            settings | {"name": name, "guidance": settings["guidance"] | {"kind": "both"} | change},
            config.name,
        )
        for name, change in changes.items()
    }
