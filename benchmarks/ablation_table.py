"""What ``difiisr train-ablation`` came to over several seeds: ``benchmarks/ablation.json``.

    python -m benchmarks.ablation_table OUT_OF_SEED_0 OUT_OF_SEED_1 OUT_OF_SEED_2

A difference is taken frame by frame and averaged over the seeds; its 95 % interval is over the
frames of these sets, so what another seed would change stands beside it, seed by seed.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import cyclopts
import numpy as np
import pandas as pd

from difiisr_models.files import write_json
from difiisr_ros.commands.train_ablation import METRICS
from difiisr_training.config import load_config
from difiisr_training.evaluation.metrics import mean_and_interval
from difiisr_training.evaluation.results import PER_FRAME_FILE, RESULTS_FILE
from difiisr_training.evaluation.task_scores import interval, over_resamples

ADDED = ("both-strong-sum", "both-middle-sum", "both-sum", "none")
"""Of LPIPS that rises: the added losses at their strengths."""
PAIRS = (
    ("none", "bicubic"),
    *((name, "none") for name in ("visual", "perceptual", "both", "both-strong")),
    *((name, "none") for name in ("both-network", "both-prediction")),
    ("both", "both-sum"),
    ("both-strong", "both-strong-sum"),
)


def main(*folders: Path, out: Path = Path("benchmarks/ablation.json")) -> None:
    """Write means and paired differences, of each set and of all.

    ``folders``: the --out of ``difiisr train-ablation``, one for each seed.
    """
    judged = json.loads((folders[0] / "evaluation" / RESULTS_FILE).read_text())
    read = [pd.read_csv(folder / "evaluation" / PER_FRAME_FILE) for folder in folders]
    rows = pd.concat(dict(enumerate(read)), names=["seed", None]).reset_index("seed")
    rows["model"] = rows["model"].map(lambda name: Path(name).name.removesuffix("@0"))
    sets = {}
    for title, part in [*rows.groupby("set"), ("all", rows)]:
        table = part.pivot(index=["set", "frame"], columns=["model", "seed"], values=list(METRICS))
        differences: dict[str, dict[str, object]] = {}
        judged_here = set(part["model"])
        for one, other in (pair for pair in PAIRS if judged_here.issuperset(pair)):
            found = differences[f"{one} - {other}"] = {}
            for metric in METRICS:
                gaps = table[metric][one] - table[metric][other]
                mean, ends = mean_and_interval(gaps.mean(axis=1).to_numpy())
                found[metric] = {"mean": mean, "interval": ends, "seeds": gaps.mean().tolist()}
        at_equal = differences["both-network - added at equal LPIPS"] = {}
        for metric in ("psnr", "spectral", "niqe"):
            gap, frames = partial(gap_at_equal_lpips, table, metric), len(table)
            seeds = [gap(np.arange(frames), [seed]) for seed in range(len(folders))]
            over = interval(over_resamples(frames, gap))
            at_equal[metric] = {"mean": gap(np.arange(frames)), "interval": over, "seeds": seeds}
        means = table.mean().groupby(level=[1, 0]).mean()
        models = {name: means[name].to_dict() for name in dict.fromkeys(part["model"])}
        sets[title] = {"frames": len(table), "models": models, "differences": differences}
    runs = sorted((folders[0] / "runs").glob("*.yaml"))
    guidance = {path.stem: asdict(load_config(path).guidance) for path in runs}
    write_json(out, {"environment": judged["environment"], "guidance": guidance, "sets": sets})


def gap_at_equal_lpips(
    table: pd.DataFrame, metric: str, frames: np.ndarray, seeds: list[int] | None = None
) -> float:
    """What injecting through the network has over adding, between whose strengths is interpolated.

    ``frames``: numbers of rows; ``seeds``: all by default.
    """
    means = table.iloc[frames].mean().unstack("seed")  # (metric, model) x seed
    of = (means if seeds is None else means[seeds]).mean(axis=1)
    lpips, score = of["lpips_squeeze"], of[metric]
    added = np.interp(lpips["both-network"], lpips[list(ADDED)], score[list(ADDED)])
    return float(score["both-network"] - added)


if __name__ == "__main__":
    cyclopts.run(main)
