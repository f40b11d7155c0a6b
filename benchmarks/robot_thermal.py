"""What a robot needs of thermal super-resolution, measured: ``benchmarks/robot_thermal.json``.

``python -m benchmarks.robot_thermal FOLDER... --weights WEIGHTS --out OUT`` in the checkout. HR are
middle crops of the images in each folder, LR is D(HR) by Pillow with the faults of ``ROWS``. 8-bit
images become 14-bit counts; 16-bit ones stay as they are, and are judged in kelvin too. ``OUT/lr``
holds what the models saw: another method's images of the same names in the same folders are judged
by ``--outputs NAME=FOLDER``.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import cyclopts
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pydantic import BaseModel
from scipy.ndimage import gaussian_filter, gaussian_laplace, maximum_filter, uniform_filter
from scipy.spatial.distance import cdist
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from difiisr_models import Stream
from difiisr_models.consistency import noise_aware_consistency
from difiisr_models.resample import SCALE, pack, unpack
from difiisr_training.data.images import list_images, read_counts
from difiisr_training.degradations import pillow_resize, random_jpeg
from difiisr_training.evaluation import measures, metrics
from difiisr_training.evaluation.inputs import evenly, to_dtype
from difiisr_training.evaluation.peers import load_peer
from difiisr_training.evaluation.results import read_frame, slug, write_frame


class Degradation(NamedTuple):
    """What happens to a frame."""

    noise: float = 0  # percent of the span
    pattern: float = 0  # of rows and columns, times the noise
    blur: float = 0  # standard deviation of the lens, HR pixels
    jpeg: int = 0  # 8 bit of this quality; 0 without


ROWS = {
    "clean": Degradation(),
    "0.5 %": Degradation(0.5),
    "1 %": Degradation(1),
    "2 %": Degradation(2),
    "3 %": Degradation(3),
    "2 % + pattern": Degradation(2, 1),
    "3 % + pattern": Degradation(3, 1),
    "blur + 1 % + pattern": Degradation(1, 1, blur=2),
    "8-bit JPEG 50": Degradation(jpeg=50),
}
COUNTS = 64  # of a grey level of an 8-bit image
PAIRS, APART, LEAST_STEP = 400, 40, 0.02  # regions compared, pixels between them, share of the span
TARGET, NEAR = 2.0, 4.0  # standard deviation of a small target, and how far off it may be, pixels
CONTRAST = 0.1  # of the span, that a target has; half of it will do to find it again
BINS = 8  # of temperatures, or so
PAIR = ("clean", "2 % + pattern")  # of the second table
NAME = "robot_thermal"  # of the files
STEP = "+c"  # ends the name of a model that our consistency step follows


class Measured(BaseModel):
    """One model, one degradation: means over the images; None where there was nothing to measure.

    Attributes:
        psnr, ssim, lpips: over the span, the 0.2 to 99.8 % quantiles of HR; dB, LPIPS-squeeze.
        consistency: mean |D(SR) - LR|, percent of the span.
        order: percent of pairs of 5x5 regions, near each other and 2 % of the span apart in HR or
            more, that have swapped.
        peak_bias, peak_error: of hot spots' maxima, mean and mean magnitude, percent of their
            contrast.
        targets: small hot targets in an image of HR: LoG maxima of 10 % of the span.
        saved, invented: percent of them that are found again, and that only the result has.
        kelvin_bias, kelvin_p95: mean error of the 16-bit images, and 95th percentile of its
            magnitude; ``bins`` has the same by the temperature that a pixel should have.
    """

    psnr: float
    ssim: float
    lpips: float | None = None
    consistency: float
    order: float | None
    peak_bias: float | None
    peak_error: float | None
    targets: float
    saved: float | None
    invented: float | None
    kelvin_bias: float | None = None
    kelvin_p95: float | None = None
    bins: list[dict[str, float]] = []


class Contender(BaseModel):
    """A model: ``rows`` by degradation, flicker over bicubic's, and what a crop costs (medians)."""

    weights_sha256: str = ""
    gflop: float | None = None
    cpu_ms: float | None = None
    joule: float | None = None
    flicker: float | None = None
    rows: dict[str, Measured] = {}


class Report(BaseModel):
    """The JSON file; its schema is written beside it."""

    version: int = 1
    seed: int
    crop: tuple[int, int]
    torch: str
    images: list[str]
    sequence: list[str]
    radiometry: str
    energy: str
    models: dict[str, Contender]


class Scene(NamedTuple):
    """A crop of an image."""

    name: str
    hr: np.ndarray  # (H, W) float32 counts
    span: float
    black: float  # counts of 8-bit black
    unit: float  # counts of an 8-bit grey level
    is_kelvin: bool  # the counts are the camera's own


def read_scene(path: Path, height: int, width: int) -> Scene:
    """The middle of an image."""
    hr = middle(read_counts(path), height, width, path)
    is_kelvin = hr.dtype != np.uint8
    hr = hr.astype(np.float32) * (1 if is_kelvin else COUNTS)
    black, unit = (float(hr.min()), float(np.ptp(hr)) / 255) if is_kelvin else (0.0, COUNTS)
    span = float(np.ptp(np.quantile(hr, (0.002, 0.998))))
    name = "-".join((*path.parts[-3:-1], path.stem))
    return Scene(name, hr, span, black, unit, is_kelvin)


def middle(image: np.ndarray, height: int, width: int, path: Path) -> np.ndarray:
    """The middle ``(height, width)``; ValueError for a smaller image."""
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    if min(top, left) < 0:
        raise ValueError(f"{path} has {image.shape} pixels, {(height, width)} are asked for")
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def degraded(scene: Scene, how: Degradation, seed: int) -> np.ndarray:
    """What the camera gives: ``(H/4, W/4)`` uint16 counts, or uint8."""
    height, width = (side // SCALE for side in scene.hr.shape)
    lr = pillow_resize(gaussian_filter(scene.hr, how.blur), height, width)
    rng = np.random.default_rng(seed)
    if how.jpeg:
        eight_bit = np.rint((lr - scene.black) / scene.unit).clip(0, 255).astype(np.uint8)
        return random_jpeg(eight_bit, (how.jpeg, how.jpeg), rng)
    noise = rng.normal(0, 1, lr.shape)
    lines = rng.normal(0, 0.5, lr.shape[1]) + rng.normal(0, 0.3, (len(lr), 1))
    noise = (noise + how.pattern * lines) * how.noise / 100 * scene.span
    return np.rint(lr + noise).clip(0, 65535).astype(np.uint16)


def swapped(sr: np.ndarray, hr: np.ndarray, step: float, seed: int) -> float:
    """Percent of the pairs of regions, at least ``step`` apart, whose order is not HR's."""
    rng, last = np.random.default_rng(seed), np.array(hr.shape) - 1
    first = rng.integers((0, 0), last, (PAIRS, 2), endpoint=True)
    second = (first + rng.integers(-APART, APART + 1, (PAIRS, 2))).clip(0, last)
    was, now = (
        image[tuple(first.T)] - image[tuple(second.T)]
        for image in (uniform_filter(hr, 5), uniform_filter(sr, 5))
    )
    told_apart = np.abs(was) >= step
    return 100 * float((was * now < 0)[told_apart].mean()) if told_apart.any() else np.nan


def targets(image: np.ndarray, contrast: float) -> np.ndarray:
    """Places ``(N, 2)`` of small hot targets of at least that contrast, counts."""
    # A Gaussian of height A and standard deviation s answers the normalised LoG of s with A / 2.
    response = -2 * TARGET**2 * gaussian_laplace(image, TARGET)
    found = (response == maximum_filter(response, 9)) & (response >= contrast)
    return np.argwhere(found[4:-4, 4:-4]) + 4


def target_measures(sr: np.ndarray, hr: np.ndarray, contrast: float) -> dict[str, float]:
    """Numbers of small hot targets, saved ones and invented ones; NaN for the peaks of none."""
    places, peaks = targets(hr, contrast), []
    for y, x in places:
        near, around = (
            (slice(max(0, y - reach), y + reach + 1), slice(max(0, x - reach), x + reach + 1))
            for reach in (2, 8)
        )
        got, true = sr[near].max(), hr[near].max()
        peaks.append(100 * (got - true) / max(true - np.median(hr[around]), 1e-6))

    def found_again(there: np.ndarray, others: np.ndarray) -> np.ndarray:
        none = np.zeros(len(there), bool)
        return (cdist(there, others) <= NEAR).any(axis=1) if len(others) else none

    return {
        "targets": len(places),
        "saved": found_again(places, targets(sr, contrast / 2)).sum(),
        "invented": (~found_again(targets(sr, contrast), targets(hr, contrast / 2))).sum(),
        "peak_bias": np.mean(peaks) if peaks else np.nan,
        "peak_error": np.mean(np.abs(peaks)) if peaks else np.nan,
    }


class Referee:
    """What all results are judged by."""

    def __init__(self, weights: Path | None, radiometry: str, scenes: Sequence[Scene]) -> None:
        squeeze = (measures.SQUEEZE_FILE, measures.SQUEEZE_LINEAR_FILE)
        self._lpips = weights and metrics.LpipsSqueeze(weights / squeeze[0], weights / squeeze[1])
        self._radiometry = measures.Radiometry.parse(radiometry)
        kelvin = [self._radiometry.kelvin(scene.hr) for scene in scenes if scene.is_kelvin]
        low, high = np.quantile(kelvin, (0.002, 0.998)) if kelvin else (0, 1)
        self._edges = np.round(MaxNLocator(BINS, steps=[1, 2, 5, 10]).tick_values(low, high), 6)

    def __call__(
        self, results: Sequence[tuple[Scene, np.ndarray, np.ndarray]], seed: int
    ) -> Measured:
        """Means over (scene, LR, SR), the latter in the counts of LR."""
        found, kelvin, errors = defaultdict(list), [np.empty(0)], [np.empty(0)]
        for number, (scene, lr, sr) in enumerate(results):
            unit, black = (scene.unit, scene.black) if lr.dtype == np.uint8 else (1.0, 0.0)
            hr, span = scene.hr.astype(np.float64), scene.span
            sr, lr = (unit * image.astype(np.float64) + black for image in (sr, lr))
            values = {"psnr": metrics.psnr(sr, hr, span), "ssim": metrics.ssim(sr, hr, span)}
            if self._lpips:
                shown = ((image - np.quantile(hr, 0.002)).clip(0, span) for image in (sr, hr))
                values["lpips"] = self._lpips(*shown, span)
            values["consistency"] = 100 / span * metrics.consistency(sr, lr).mean()
            values["order"] = swapped(sr, hr, LEAST_STEP * span, seed + number)
            values |= target_measures(sr, hr, CONTRAST * span)
            if scene.is_kelvin:
                error = self._radiometry.gain * (sr - hr)
                values["kelvin_bias"] = error.mean()
                values["kelvin_p95"] = np.quantile(np.abs(error), 0.95)
                kelvin.append(self._radiometry.kelvin(hr).ravel())
                errors.append(error.ravel())
            for name, value in values.items():
                found[name].append(value)
        means: dict[str, Any] = {name: mean_of(values) for name, values in found.items()}
        for part in ("saved", "invented"):
            means[part] = mean_of([100 * means[part] / (means["targets"] or np.nan)])
        bins = by_temperature(np.concatenate(kelvin), np.concatenate(errors), self._edges)
        return Measured(**means, bins=bins)


def by_temperature(
    kelvin: np.ndarray, errors: np.ndarray, edges: np.ndarray
) -> list[dict[str, float]]:
    """Errors ``(N,)`` of pixels by the temperature that they should have, ``(N,)``, both kelvin.

    Of each bin between ascending ``edges`` with a pixel (the end bins take what lies beyond):
    ``low``, ``high``, ``pixels``, mean error ``bias`` and 95th percentile of its size ``p95``.
    """
    rows = []
    for place, found in pd.Series(errors).groupby(np.digitize(kelvin, edges[1:-1])):
        ends = {"low": float(edges[place]), "high": float(edges[place + 1]), "pixels": len(found)}
        size = {"bias": float(found.mean()), "p95": float(found.abs().quantile(0.95))}
        rows.append(ends | size)
    return rows


def mean_of(values: Sequence[float]) -> float | None:
    """Of those that are numbers, to five digits; None without any."""
    mean = pd.Series(values, dtype=float).mean()
    return None if np.isnan(mean) else float(f"{mean:.5g}")


class Runner:
    """A model on frames, with our step after it if its name says so; or a folder of results."""

    def __init__(self, name: str, weights: Path | None, outputs: Path | None = None) -> None:
        self._outputs, self._has_step = outputs, name.endswith(STEP)
        self.contender = Contender()
        self._times: list[np.ndarray] = []
        if outputs is None:
            model = name.removesuffix(STEP)
            self._peer = load_peer(model, weights, "cpu", "torch")  # its arithmetic can be counted
            self.contender.weights_sha256 = self._peer.weights_sha256

    def reset(self) -> None:
        """The next frame begins a stream."""
        self._stream = Stream()
        if self._outputs is None:
            self._peer.reset()

    def __call__(self, lr: np.ndarray, place: Path) -> np.ndarray:
        """``(4h, 4w)`` of the dtype of ``lr``; ``place``: of its result, without suffix."""
        if self._outputs is not None:
            return read_frame(self._outputs / place.parent, place.name)
        begun = np.array([time.process_time(), joules()])
        sr = self._peer.upscale(lr)
        if self._has_step:
            self._stream.begin_frame(lr, None)
            sigma = self._stream.see(lr, 0, False).noise
            large, small = (torch.from_numpy(x.astype(np.float32))[None, None] for x in (sr, lr))
            pulled = unpack(noise_aware_consistency(pack(large), small, sigma))
            sr = to_dtype(pulled[0, 0].numpy(), lr.dtype)
        self._times.append(np.array([time.process_time(), joules()]) - begun)
        return sr

    def note_cost(self, size: tuple[int, int]) -> None:
        """The medians so far, and the arithmetic of a frame."""
        if self._outputs is not None:
            return
        seconds, joule = np.median(self._times, axis=0)
        self.contender.cpu_ms, self.contender.joule = map(mean_of, ([1000 * seconds], [joule]))
        self.reset()
        with FlopCounterMode(display=False) as counter:
            self._peer.upscale(np.arange(size[0] * size[1], dtype=np.uint16).reshape(size))
        self.contender.gflop = round(counter.get_total_flops() / 1e9, 2)


def joules() -> float:
    """What the processors have used so far, by RAPL; NaN where that cannot be read."""
    counters = Path("/sys/class/powercap").glob("intel-rapl:?/energy_uj")
    try:
        return sum(int(path.read_text()) for path in counters) / 1e6 or np.nan
    except OSError:  # root's alone on most machines
        return np.nan


def measure(
    folders: list[Path],
    /,
    *,
    out: Path,
    models: str = "bicubic,safmn,rlfn,realesrgan,difiisr-rt-x4,difiisr-rt-x4@0",
    outputs: Annotated[list[str], cyclopts.Parameter(consume_multiple=True)] = [],  # noqa: B006
    weights: Path | None = None,
    sequence: Path | None = None,
    frames: int = 12,
    each: int = 8,
    size: str = "384x288",
    radiometry: str = "kelvin=0.1*counts+173.15",
    seed: int = 0,
) -> None:
    """Measure, write robot_thermal.json, its schema and a plot to ``out``, and print the tables.

    Args:
        folders: of images, 8 or 16 bit.
        out: folder to write.
        models: as of difiisr evaluate; all but ours are judged with our consistency step (+c) too.
        outputs: NAME=FOLDER, results of other methods for the frames in OUT/lr.
        weights: folder of the peers' and of LPIPS' files.
        sequence: folder of consecutive frames of a camera, for flicker.
        frames: of them.
        each: images a folder.
        size: of a crop of HR, WIDTHxHEIGHT.
        radiometry: of the 16-bit images.
        seed: of the noise.
    """
    torch.set_num_threads(1)
    width, height = (int(side) // SCALE * SCALE for side in size.split("x"))
    paths = [path for folder in folders for path in evenly(list_images(folder), each)]
    scenes = [read_scene(path, height, width) for path in paths]
    judge, runners = Referee(weights, radiometry, scenes), {}
    for name in filter(None, models.split(",")):
        has_step = name.startswith("difiisr") or Path(name).is_dir()  # of its own: it is ours
        for one in [name] if has_step else [name, name + STEP]:
            runners[one] = Runner(one, weights)
    for name, _, folder in (text.partition("=") for text in outputs):
        runners[name] = Runner(name, None, Path(folder))
    small = height // SCALE, width // SCALE
    film = list_images(sequence)[:frames] if sequence else []
    seen = {
        Path(slug(row), scene.name): degraded(scene, how, seed + number)
        for row, how in ROWS.items()
        for number, scene in enumerate(scenes)
    }
    shots = {Path("sequence", p.stem): middle(read_counts(p), *small, p) for p in film}
    for place, lr in (seen | shots).items():
        write_frame(out / "lr" / place.parent, place.name, lr)
    for runner in tqdm(runners.values(), disable=None):
        for row in ROWS:
            made = []
            for scene in scenes:
                runner.reset()
                place = Path(slug(row), scene.name)
                made.append((scene, seen[place], runner(seen[place], place)))
            runner.contender.rows[row] = judge(made, seed)
        runner.note_cost(small)
        runner.reset()
        flicker = measures.Flicker()
        found = [flicker(runner(lr, place), lr)[0] for place, lr in shots.items()]
        runner.contender.flicker = mean_of(found)
    report = Report(
        seed=seed, crop=(height, width), torch=torch.__version__, radiometry=radiometry,
        images=[scene.name for scene in scenes], sequence=[path.name for path in film],
        energy="not readable" if np.isnan(joules()) else "RAPL",
        models={name: runner.contender for name, runner in runners.items()},
    )  # fmt: skip
    (out / f"{NAME}.json").write_text(report.model_dump_json(indent=1) + "\n")
    schema = json.dumps(Report.model_json_schema(), indent=1)
    (out / f"{NAME}.schema.json").write_text(schema + "\n")
    plot(report, out / f"{NAME}.png")
    print(tables(report))


def tables(report: Report) -> str:
    """Markdown; a comment before each table, and in its head, says where in the JSON cells are."""
    pair = ",".join(PAIR)
    fidelity = {row: f"rows/{row}/psnr,ssim,lpips,consistency" for row in ROWS}
    robot = {
        title: f"rows/{pair}/{part}"
        for title, part in (
            ("order swapped, %", "order"), ("peaks: bias, %", "peak_bias"),
            ("error, %", "peak_error"), ("targets saved, %", "saved"), ("invented, %", "invented"),
            ("temperature: bias, K", "kelvin_bias"), ("p95, K", "kelvin_p95"),
        )
    }  # fmt: skip
    robot |= {"flicker": "flicker", "GFLOP": "gflop", "CPU ms": "cpu_ms", "J": "joule"}
    bins = next(iter(report.models.values())).rows[PAIR[0]].bins
    by_bin = {
        f"{one['low']:g} to {one['high']:g} K": f"rows/{PAIR[0]}/bins/{place}/bias,p95"
        for place, one in enumerate(bins)
    }
    return "\n\n".join(_table(report, columns) for columns in (fidelity, robot, by_bin) if columns)


def _table(report: Report, columns: dict[str, str]) -> str:
    head = [f"{title} <!-- {path} -->" for title, path in columns.items()]
    lines = [
        f"<!-- benchmarks/{NAME}.json#/models/ROW/COLUMN -->",
        "",
        f"| | {' | '.join(head)} |",
        "|---" * (len(head) + 1) + "|",
    ]
    for name, contender in report.models.items():
        cells = []
        for path in columns.values():
            found: list[Any] = [contender.model_dump()]
            for part in path.split("/"):
                keys = [int(key) if key.isdigit() else key for key in part.split(",")]
                found = [value[key] for value in found for key in keys]
            cells.append(" / ".join(map(_shown, found)))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    decimals = 0 if abs(value) >= 100 else 2 if abs(value) >= 1 or value == 0 else 3
    return f"{round(value, decimals) + 0.0:.{decimals}f}"  # no minus zero


def plot(report: Report, path: Path) -> None:
    """PSNR under each degradation, and the error of the clean row by temperature.

    A model has a colour; with our step after it it is dashed.
    """
    alone = list(dict.fromkeys(name.removesuffix(STEP) for name in report.models))
    figure = Figure((12, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, contender in report.models.items():
        colour, bins = f"C{alone.index(name.removesuffix(STEP))}", contender.rows[PAIR[0]].bins
        style = colour + ("--" if name.endswith(STEP) else "-")
        left.plot(list(ROWS), [contender.rows[row].psnr for row in ROWS], style, label=name)
        right.plot([one["low"] for one in bins], [one["p95"] for one in bins], style)
    left.set_ylabel("PSNR, dB")
    left.set_xticks(range(len(ROWS)), list(ROWS), rotation=40, ha="right")
    right.set(xlabel="true temperature, K", ylabel="95th percentile of the error, K")
    figure.legend(loc="outside right upper")
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    cyclopts.run(measure)
