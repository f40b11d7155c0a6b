"""``difiisr fleet evaluate``: models judged on many recordings."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge
from cyclopts import Parameter

from difiisr_models.backends.selection import resolve_device
from difiisr_ros.bags import frames_of
from difiisr_ros.commands.answers import Answer, answers
from difiisr_ros.commands.environment import environment
from difiisr_ros.commands.evaluate_models import Judgement, recorded_set
from difiisr_ros.commands.fleet_report import write_picture
from difiisr_ros.commands.fleet_work import Cluster, ClusterOptions, do_all
from difiisr_ros.fleet_jobs import Job, Make, find_jobs
from difiisr_training.evaluation.evaluate import judge_models
from difiisr_training.evaluation.report import write_report
from difiisr_training.evaluation.results import (
    frame_names,
    frames_folder,
    read_frame,
    write_results,
)


@dataclass(frozen=True)
class Evaluate:
    """What is measured of each recording; every worker gets it.

    Attributes:
        image_topic: default: the only image topic.
        threads: CPU threads of a worker.
    """

    by: Annotated[Judgement, Parameter(name="*")] = Judgement()
    image_topic: str | None = None
    threads: Annotated[int, Ge(1)] = 1

    @property
    def device(self) -> str:
        """As asked for."""
        return self.by.device

    def product(self) -> dict[str, Any]:
        """All that a result depends on, for a job's name."""
        torch.set_num_threads(self.threads)
        models, judge = self.by.networks()
        hashes = {model.name: model.weights_sha256 for model in models}
        own = asdict(replace(self, by=replace(self.by, weights=None)))
        return {"verb": "evaluate", **own, "hashes": hashes, "metric_files": judge.files}

    def load(self) -> Make:
        """Load models and metrics."""
        torch.set_num_threads(self.threads)
        models, judge = self.by.networks()
        device = str(resolve_device(self.device))

        def make(job: Job, source: Path, folder: Path) -> dict[str, Any]:
            folder.mkdir()
            lost: list[str] = []
            taken = self.by.selection()
            chosen = recorded_set(source.name, source, self.image_topic, taken)
            read = partial(
                frames_of, source, chosen.topic, choose=taken.choose, skipped=lost.append
            )
            chosen = replace(chosen, read=read)
            told = environment(device)
            results = judge_models([chosen], models, judge, folder, self.by.degradation, told)
            results.command = ["difiisr", "fleet", "evaluate", job.path]
            write_results(results, folder)
            write_report(results, folder)
            (judged,) = results.sets
            shown = frames_folder(folder, chosen.name, models[-1].name)
            names = frame_names(shown)
            write_picture(folder, [read_frame(shown, names[len(names) // 2])])
            return {
                "topic": chosen.topic,
                "frames_in": judged.frames,
                "frames_out": judged.frames,
                "refused": 0,
                "fault": "; ".join(dict.fromkeys(lost)),
                "metrics": {
                    f"{name} of {model.title}": value
                    for model in judged.models
                    for name, value in model.mean.items()
                },
                "notes": [f"{name}: {reason}" for name, reason in results.not_run.items()],
                "model": self.by.models,
                "device": device,
            }

        return make


@answers
def fleet_evaluate(
    inputs: list[str],
    /,
    *,
    out: str,
    task: Annotated[Evaluate, Parameter(name="*")] = Evaluate(),
    cluster: ClusterOptions = Cluster(),
) -> Answer:
    """Judge models on many recordings; what is done already is not done again.

    Args:
        inputs: as of difiisr fleet replay.
        out: folder or URI for bags/ (an evaluation each), fleet.parquet and report.html.
    """
    if task.by.pan:
        raise ValueError("--pan is for images: a recording has a past of its own")
    by = replace(task.by, weights=task.by.weights and task.by.weights.resolve())
    return do_all(find_jobs(inputs, out), out, replace(task, by=by), cluster)
