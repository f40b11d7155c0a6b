"""What the guidance does, as in Tables 3 and 4 of the paper.

Every variant starts from the same weights, with a fresh head for fidelity 0, and sees the same
samples, noise and steps; only L_g and the way it acts differ. All are then judged at fidelity 0,
the estimate that the guidance shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from difiisr_models.files import write_json, write_text
from difiisr_training.config import TrainConfig, from_dict
from difiisr_training.evaluation.results import (
    Results,
    frame_names,
    frames_folder,
    read_frame,
    slug,
)
from difiisr_training.run_pictures import save_panel

METRICS = ("psnr", "ssim", "lpips_squeeze", "niqe")
_CROP = 192  # pixels of a picture's crop


def variants(config: TrainConfig) -> dict[str, TrainConfig]:
    """Table 3 (none, visual, perceptual, both) and Table 4 ("sum": the same losses, added).

    The guidance of ``config`` gives weights, rho and all else; "both" is also the "gradient" row of
    Table 4.
    """
    if config.stage != "diffusion" or config.published is not None:
        raise ValueError(f"{config.name}: the ablation trains compact networks by diffusion")
    if config.begin_as != "none":
        raise ValueError(f"begin_as {config.begin_as!r} is not done here: --init DIR is")
    found, settings = {}, asdict(config)
    for name in ("none", "visual", "perceptual", "both", "both-sum"):
        kind, _, mode = name.partition("-")
        guidance = settings["guidance"] | {"kind": kind, "mode": mode or "gradient"}
        found[name] = from_dict(settings | {"name": name, "guidance": guidance}, config.name)
    return found


def write_table(config: TrainConfig, results: Results, out: Path) -> str:
    """``ablation.md``, which is returned, and ``ablation.json``: means per set, what made them."""
    parts = []
    for judged in results.sets:
        detected = (results.detection or {}).get("sets", {}).get(slug(judged.name), {})
        rows = {model.title.removesuffix("@0"): dict(model.mean) for model in judged.models}
        if detected:
            for model, row in zip(judged.models, rows.values(), strict=True):
                row |= detected[slug(model.name)]
            rows["high resolution"] = detected["HR"]
        heads = {name: results.metrics[name].label for name in METRICS}
        heads |= {"map": "mAP@.5:.95", "map50": "mAP@.5"} if detected else {}
        table = pd.DataFrame(rows).T.reindex(columns=list(heads)).rename(columns=heads)
        table = table.astype(object).where(table.notna(), None).rename_axis("L_g")
        text = table.to_markdown(floatfmt="#.4g", missingval="")
        parts.append(f"{judged.name}, {judged.frames} frames:\n\n{text}\n")
    write_text(out / "ablation.md", "\n".join(parts))
    written = {
        "config": asdict(config),
        "environment": results.environment,
        "means": {
            judged.name: {model.title: dict(model.mean) for model in judged.models}
            for judged in results.sets
        },
        "detection": results.detection,
    }
    write_json(out / "ablation.json", written)
    return "\n".join(parts)


def write_panels(names: Sequence[str], sets: Sequence[str], out: Path) -> None:
    """``ablation.png``: the middle of one frame of each set, by every variant."""
    series = ["bicubic", *(f"{out / name}@0" for name in names), "hr"]
    rows = []
    for judged in sets:
        folders = [frames_folder(out / "evaluation", judged, name) for name in series]
        frames = frame_names(folders[-1])
        images = [read_frame(folder, frames[len(frames) // 2]) for folder in folders]
        top, left = ((side - _CROP) // 2 for side in images[0].shape)
        rows.append([image[top : top + _CROP, left : left + _CROP] for image in images])
    save_panel(["bicubic", *names, "high resolution"], rows, out / "ablation.png")
