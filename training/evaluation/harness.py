"""Every model on every held-out set: ``python -m difiisr_training.evaluation.harness --help``.

Low-resolution frames are made from the high-resolution ones (cut to multiples of 4) by antialiased
bicubic /4, rounded to the file's type; results are compared with the whole high-resolution frame.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from difiisr_models.resample import SCALE
from difiisr_training.data.images import crop_to_multiple, list_images, pillow_resize, read_counts
from difiisr_training.evaluation.metrics import LpipsSqueeze, Niqe, psnr, ssim
from difiisr_training.evaluation.peers import Contestant, full_range, load_contestant

METRICS = ("psnr", "ssim", "lpips_squeeze", "niqe")
_DIGITS = {"psnr": 3, "ssim": 4, "lpips_squeeze": 4, "niqe": 3, "seconds": 3}


@dataclass(frozen=True)
class EvaluationSet:
    """Images that training never sees.

    Attributes:
        name: as given on the command line.
        folder: relative to the data root.
        last: only so many at the end of the list sorted by name; 0 = all.
    """

    name: str
    folder: str
    last: int = 0


HELD_OUT = (
    EvaluationSet("hit_uav/test", "hit_uav/test"),
    EvaluationSet("msrs/test", "msrs/test"),
    EvaluationSet("roadscene/last20", "roadscene/train", last=20),
)


@dataclass(frozen=True)
class Score:
    """One model on one set; ``values``: one number per image for each metric and ``seconds``."""

    model: str
    set_name: str
    values: dict[str, list[float]]

    def mean(self, metric: str) -> float:
        """Mean over the images."""
        return statistics.fmean(self.values[metric])


class Judge:
    """Applies the chosen metrics; keeps what depends on the high-resolution frame alone."""

    def __init__(self, metrics: Sequence[str], weights: Path | None, device: str = "cpu") -> None:
        """``weights``: folder with the files of LPIPS-squeeze and NIQE, where those are chosen.

        Raises:
            ValueError: an unknown metric, or one that needs ``weights`` without them.
            FileNotFoundError: a file is missing in ``weights``.
        """
        if unknown := sorted(set(metrics) - set(METRICS)):
            raise ValueError(
                f"unknown metrics {', '.join(unknown)}; known are {', '.join(METRICS)}"
            )
        self.metrics = tuple(metrics)
        if weights is None and not {"psnr", "ssim"}.issuperset(metrics):
            raise ValueError("lpips_squeeze and niqe need the folder that holds their weights")
        if "lpips_squeeze" in metrics:
            self._lpips = LpipsSqueeze(
                weights / "squeezenet1_1_features_lpips.pth",
                weights / "lpips_lin_v0.1_squeeze.pth",
                device,
            )
        if "niqe" in metrics:
            self._niqe = Niqe(weights / "niqe_pris_params.npz")

    def score(self, results: Sequence[np.ndarray], hr: np.ndarray) -> list[dict[str, float]]:
        """Compare several results with one high-resolution frame."""
        lo, span = full_range(hr)
        features = None
        if "lpips_squeeze" in self.metrics:
            features = self._lpips.features(hr.astype(np.float32) - lo, span)
        scores = []
        for sr in results:
            score = {}
            if "psnr" in self.metrics:
                score["psnr"] = psnr(sr, hr, span)
            if "ssim" in self.metrics:
                score["ssim"] = ssim(sr, hr, span)
            if features is not None:
                own = self._lpips.features(sr.astype(np.float32) - lo, span)
                score["lpips_squeeze"] = self._lpips.distance(own, features)
            if "niqe" in self.metrics:
                score["niqe"] = self._niqe(sr.astype(np.float32) - lo, span)
            scores.append(score)
        return scores


def choose_images(chosen: EvaluationSet, data: Path, limit: int | None) -> list[Path]:
    """The set's files, sorted by name; with ``limit`` so many of them, evenly spaced.

    Raises:
        FileNotFoundError: no images in the set's folder.
        ValueError: a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"the limit is at least 1 image per set, got {limit}")
    paths = list_images(data / chosen.folder)[-chosen.last :]
    if limit is None or limit >= len(paths):
        return paths
    return [paths[i] for i in np.linspace(0, len(paths) - 1, limit).round().astype(int)]


def make_pair(hr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(lr, hr)``: antialiased bicubic /4 of the frame cut to multiples of 4, and that frame."""
    hr = crop_to_multiple(hr, SCALE)
    return pillow_resize(hr, hr.shape[0] // SCALE, hr.shape[1] // SCALE), hr


def evaluate(
    models: Sequence[Contestant],
    sets: Sequence[EvaluationSet],
    data: Path,
    judge: Judge,
    limit: int | None = None,
) -> list[Score]:
    """Run every model on every set, images outermost.

    Args:
        models: from :func:`~difiisr_training.evaluation.peers.load_contestant`.
        sets: e.g. :data:`HELD_OUT`.
        data: root of the sets' folders.
        judge: the metrics.
        limit: images per set, evenly spaced; ``None`` = all.

    Returns:
        One score per set and model, sets outermost.
    """
    work = [(chosen, choose_images(chosen, data, limit)) for chosen in sets]
    scores = []
    with tqdm(total=sum(len(paths) for _, paths in work), unit="image") as progress:
        for chosen, paths in work:
            names = (*judge.metrics, "seconds")
            found = [Score(m.name, chosen.name, {name: [] for name in names}) for m in models]
            for path in paths:
                progress.set_description(chosen.name)
                lr, hr = make_pair(read_counts(path))
                results, seconds = zip(*(_timed(m, lr) for m in models), strict=True)
                judged = judge.score(results, hr)
                for entry, score, taken in zip(found, judged, seconds, strict=True):
                    for name, value in {**score, "seconds": taken}.items():
                        entry.values[name].append(value)
                progress.update()
            scores += found
    return scores


def markdown_table(scores: Sequence[Score]) -> str:
    """Means per set and model, as a Markdown table."""
    columns = list(scores[0].values)
    rows = [["set", "images", "model", *columns], ["---", "---:", "---", *["---:"] * len(columns)]]
    for score in scores:
        means = [f"{score.mean(name):.{_DIGITS[name]}f}" for name in columns]
        images = str(len(score.values[columns[0]]))
        rows.append([score.set_name, images, score.model, *means])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def report(
    models: Sequence[Contestant], scores: Sequence[Score], device: str, limit: int | None
) -> dict:
    """Everything needed to read the numbers again, ready for JSON."""
    return {
        "device": torch.cuda.get_device_name(device) if device != "cpu" else _processor(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("numpy", "pillow", "torch")},
        "limit": limit,
        "models": {
            m.name: {"weights_sha256": m.weights_sha256, "parameters": m.parameter_count}
            for m in models
        },
        "scores": [
            {
                "set": score.set_name,
                "model": score.model,
                "images": len(next(iter(score.values.values()))),
                "mean": {name: score.mean(name) for name in score.values},
                "per_image": score.values,
            }
            for score in scores
        ],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    known = {chosen.name: chosen for chosen in HELD_OUT}
    parser = argparse.ArgumentParser(
        prog="python -m difiisr_training.evaluation.harness", description=__doc__
    )
    parser.add_argument(
        "--models",
        required=True,
        help="comma-separated: bicubic, safmn, rlfn, realesrgan, DIR, DIR@F",
    )
    parser.add_argument(
        "--sets",
        default=",".join(known),
        help="comma-separated: names above or folders below --data",
    )
    parser.add_argument("--data", type=Path, required=True, help="root of the image folders")
    parser.add_argument("--weights", type=Path, help="folder with the peers' and metrics' weights")
    parser.add_argument("--metrics", default="psnr,ssim,lpips_squeeze", help=", ".join(METRICS))
    parser.add_argument("--limit", type=int, help="images per set, evenly spaced (default: all)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    try:
        judge = Judge(options.metrics.split(","), options.weights, options.device)
        models = [
            load_contestant(name, options.weights, options.device)
            for name in options.models.split(",")
        ]
        sets = [known.get(name, EvaluationSet(name, name)) for name in options.sets.split(",")]
        scores = evaluate(models, sets, options.data, judge, options.limit)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        parser.error(str(error))
    print(markdown_table(scores))
    if options.out:
        result = report(models, scores, options.device, options.limit)
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def _timed(model: Contestant, lr: np.ndarray) -> tuple[np.ndarray, float]:
    started = time.perf_counter()
    return model.upscale(lr), time.perf_counter() - started


def _processor() -> str:
    return f"{platform.processor() or platform.machine()}, {platform.system()}"


if __name__ == "__main__":
    raise SystemExit(main())
