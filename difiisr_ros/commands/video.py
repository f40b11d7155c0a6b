"""``difiisr video`` (``difiisr evaluate --video``): judge models on films."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from annotated_types import Ge
from cyclopts import Parameter
from matplotlib.figure import Figure
from tabulate import tabulate
from tqdm import tqdm

from difiisr_models import Stream, load_upscaler
from difiisr_models.backends.selection import resolve_device
from difiisr_models.files import replaced, write_json
from difiisr_models.motion import require_opencv
from difiisr_models.resample import SCALE
from difiisr_ros.commands.answers import Answer, answers
from difiisr_ros.commands.environment import environment
from difiisr_ros.commands.evaluate_models import resolve_inputs
from difiisr_training.data.images import crop_to_multiple
from difiisr_training.evaluation import films
from difiisr_training.evaluation.inputs import Selection
from difiisr_training.evaluation.peers import PUBLISHED_FILES, load_peer, split_settings

_FIRST = 3  # frames of a film that settle


@answers
def video(
    inputs: list[str],
    /,
    *,
    out: Path,
    models: str = "bicubic,difiisr-rt-x4,difiisr-rtv-x4",
    noise: Annotated[tuple[float, ...], Parameter(consume_multiple=True)] = (0.0, 1.0, 2.0),
    frames: Annotated[int, Ge(4)] = 30,
    pans: Annotated[int, Ge(0)] = 0,
    hot_object: bool = False,
    data: Path | None = None,
    topic: str | None = None,
    weights: Path | None = None,
    device: str = "auto",
) -> Answer:
    """Judge models on films: PSNR frame by frame, and what the frames before add to it.

    Low resolution is made of the frames. A recurrent model is run once more with its past
    forgotten at every frame (NAME, alone). Writes video.json and video.png.

    Args:
        inputs: folders of images in order, rosbag2 recordings, or folders below --data; with
            --pans, stills.
        out: folder to write.
        models: comma-separated, as of difiisr evaluate.
        noise: standard deviations of the noise that is added, percent of the span.
        frames: of each film, at most.
        pans: pan over so many stills of each input, 0.5 to 8 pixels a frame.
        hot_object: let a hot disk cross each film, and judge its wake.
        data: root of the inputs' folders.
        topic: of a recording.
        weights: folder of the peers' networks.
        device: auto, cpu, cuda, cuda:N.
    """
    require_opencv()
    device = str(resolve_device(device))
    selection = Selection(limit=pans or frames, spread=pans > 0)
    shown = {}
    for chosen in resolve_inputs(inputs, data, topic, selection):
        given = [crop_to_multiple(frame, SCALE) for _, frame in chosen.frames()]
        if not pans:
            shown[chosen.name] = given
            continue
        for k, still in enumerate(given):
            speed = films.PAN_SPEEDS[k % len(films.PAN_SPEEDS)]
            film = films.pan_over(still, speed, films.PAN_TURN * k, frames)
            shown[f"{chosen.name}/{k} at {speed:g} px"] = film
    runs = dict(run for name in models.split(",") for run in _runs(name, weights, device))
    rows: list[dict[str, Any]] = []
    for name, film in tqdm(shown.items(), unit="film"):
        wakes = None
        if hot_object:
            film, wakes = films.with_hot_object(film)
        for level in noise:
            seen = films.low_resolution(film, level)
            for model, begin in runs.items():
                score = films.judge_film(begin(), film, seen, wakes, _FIRST)
                mean = float(np.mean(score.psnr[_FIRST:]))
                row = {"film": name, "noise": level, "model": model, "mean": mean}
                rows.append(row | score._asdict())
    out.mkdir(parents=True, exist_ok=True)
    described = {"inputs": inputs, "pans": pans, "hot_object": hot_object, "first": _FIRST}
    facts = described | environment(device) | {"films": rows}
    write_json(out / "video.json", facts)
    _draw(rows, out / "video.png")
    return Answer(facts, f"{_table(rows)}\n{out / 'video.json'}, {out / 'video.png'}")


def _runs(
    name: str, weights: Path | None, device: str
) -> list[tuple[str, Callable[[], films.Upscale]]]:
    """A model by its name, and what begins a stream of it; a recurrent one also without past."""
    model, settings = split_settings(name)
    if model in ("bicubic", *PUBLISHED_FILES):
        peer = load_peer(name, weights, device)
        return [(peer.title, lambda: peer.upscale)]
    up = load_upscaler(model, device=device, **settings)

    def begin(keeps_past: bool) -> films.Upscale:
        stream = Stream()

        def upscale(lr: np.ndarray) -> np.ndarray:
            if not keeps_past:
                stream.channel().past = None
            return up(lr, stream)

        return upscale

    found = [(Path(name).name, lambda: begin(True))]
    if up.is_recurrent:
        found.append((f"{Path(name).name}, alone", lambda: begin(False)))
    return found


def _table(rows: list[dict[str, Any]]) -> str:
    """Means over the films, by noise and model."""
    names = {"noise": "noise, %", "mean": "PSNR"}
    known = pd.DataFrame(rows).replace([np.inf, -np.inf], np.nan)
    numbers = known[["mean", "flicker", "warping", "wake"]].astype(float)
    means = numbers.groupby([known.noise, known.model], sort=False).mean().reset_index()
    means = means.astype(object).where(means.notna(), None).rename(columns=names)
    return tabulate(means, headers="keys", tablefmt="pipe", floatfmt=".3f", showindex=False)


def _draw(rows: list[dict[str, Any]], target: Path) -> None:
    """PSNR over the first model's, frame by frame, mean of all films; a plot for each noise."""
    shortest = min(len(row["psnr"]) for row in rows)
    table = pd.DataFrame(rows).assign(psnr=[np.array(row["psnr"][:shortest]) for row in rows])
    levels, first = table.noise.unique(), table.model[0]
    figure = Figure(figsize=(4.6 * len(levels), 3.6), layout="constrained")
    for plot, level in zip(figure.subplots(1, len(levels), squeeze=False)[0], levels, strict=True):
        found = table[table.noise == level].groupby("model", sort=False).psnr
        curves = {model: np.mean(list(psnr), axis=0) for model, psnr in found}
        for model, curve in curves.items():
            plot.plot(curve - curves[first], label=model)
        plot.set(xlabel="frame", ylabel=f"PSNR over {first}, dB", title=f"noise {level:g} %")
        plot.grid(alpha=0.3)
    plot.legend()
    with replaced(target) as beside:
        figure.savefig(beside, dpi=110, format="png")
