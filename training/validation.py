"""How good the moving average is while it trains: frames that training never sees, and curves."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from difiisr_models import Runtime, Stream, Upscaler
from difiisr_models.backends import NetworkSource
from difiisr_models.backends.torch_runner import build_torch_runner
from difiisr_models.compact import CompactNetwork
from difiisr_models.diffusion import exponential_schedule
from difiisr_models.frame_model import CompactModel, FrameModel
from difiisr_models.published.sampler import PublishedModel
from difiisr_models.published.vq_autoencoder import VQAutoencoder
from difiisr_models.resample import SCALE
from difiisr_training.checkpoints import STATISTICS_NAME, VALIDATION_NAME, read_journal
from difiisr_training.config import TrainConfig
from difiisr_training.data.images import ImageSource, LoadFrames
from difiisr_training.degradations import pillow_resize
from difiisr_training.evaluation import films
from difiisr_training.evaluation.inputs import evenly, full_range
from difiisr_training.evaluation.measures import Judge
from difiisr_training.evaluation.metrics import psnr

_SIDE = 256  # high-resolution pixels of a validation crop
_SHOWN = 4


class Validator:
    """Scores a network on fixed crops from the middle of validation frames."""

    def __init__(
        self,
        config: TrainConfig,
        load: LoadFrames,
        run: Path,
        autoencoder: VQAutoencoder | None = None,
        lpips: Path | None = None,
    ) -> None:
        """Read the frames of the sources' validation parts, evenly spaced over all of them.

        ``run``: pictures go to ``run/samples``; ``autoencoder``: of the published network;
        ``lpips``: folder of the LPIPS-squeeze networks, measured too where it is given.
        """
        self._hr = []
        for frame in _held_out(config.sources, load, config.validation_frames, _SIDE):
            top, left = ((side - _SIDE) // 2 for side in frame.shape)
            self._hr.append(frame[top : top + _SIDE, left : left + _SIDE])
        self._lr = [pillow_resize(hr, _SIDE // SCALE, _SIDE // SCALE) for hr in self._hr]
        self._bicubic = [pillow_resize(lr, _SIDE, _SIDE) for lr in self._lr]
        self._run, self._autoencoder = run, autoencoder
        metrics = ("psnr",) if lpips is None else ("psnr", "lpips_squeeze")
        self._judge = Judge("reference", metrics, lpips)
        self._both_ends = config.published is None and config.perceptual_weight > 0

    def __call__(self, network: nn.Module, iteration: int) -> dict[str, float]:
        """Mean PSNR in dB (and LPIPS-squeeze) of bicubic and of the network; saves a picture."""
        up, results = upscaler_of(network, self._autoencoder), {"bicubic": self._bicubic}
        for fidelity in (1, 0) if self._both_ends else (1,):
            up.change(fidelity=float(fidelity))
            results[f"fidelity_{fidelity}"] = [up(lr, Stream()) for lr in self._lr]
        values = {}
        for name, images in results.items():
            given = zip(images, self._lr, self._hr, strict=True)
            scores = [self._judge(sr, lr, hr) for sr, lr, hr in given]
            for metric in scores[0]:
                values[f"{metric}_{name}"] = float(np.mean([score[metric] for score in scores]))
        rows = list(zip(*results.values(), self._hr, strict=True))[:_SHOWN]
        picture = self._run / "samples" / f"{iteration:07}.png"
        save_panel([*results, "high resolution"], rows, picture)
        return values


class FilmValidator:
    """Scores a recurrent network on pans over the middle of validation stills."""

    def __init__(self, stills: Sequence[ImageSource], load: LoadFrames, count: int = 4) -> None:
        """``count``: of the films, evenly spaced over the validation parts of ``stills``."""
        pans = itertools.cycle([(0.7, 0.0), (2.5, 1.0), (5.0, 2.0), (8.0, 3.0)])
        chosen = zip(_held_out(stills, load, count, side=16), pans, strict=False)
        self._films = [films.pan_over(frame, *pan, 8, _SIDE) for frame, pan in chosen]

    def __call__(self, network: nn.Module, _: int) -> dict[str, float]:
        """Mean PSNR in dB of the last frames: bicubic, with the past (fidelity_1), without it."""
        up, scores = upscaler_of(network), []
        for film, noise in itertools.product(self._films, (0.0, 2.0)):
            seen, stream = films.low_resolution(film, noise), Stream()
            results = [up(lr, stream) for lr in seen][-1], up(seen[-1], Stream())
            span = full_range(film[0])[1]
            bicubic = pillow_resize(seen[-1], *film[-1].shape)
            scores.append([psnr(sr, film[-1], span) for sr in (bicubic, *results)])
        names = ("psnr_bicubic", "psnr_fidelity_1", "psnr_alone")
        return dict(zip(names, np.mean(scores, axis=0).tolist(), strict=True))


def upscaler_of(network: nn.Module, autoencoder: VQAutoencoder | None = None) -> Upscaler:
    """What the network computes now, on frames; ``autoencoder``: of the published network."""
    device = next(network.parameters()).device
    frozen: Any = copy.deepcopy(network).eval().requires_grad_(False)
    model: FrameModel
    if isinstance(frozen, CompactNetwork):
        source = NetworkSource(frozen, "", device, Runtime().repeatable)
        model = CompactModel(frozen, exponential_schedule(), build_torch_runner(source), None)
    else:
        assert autoencoder is not None, "it works in latents"
        model = PublishedModel(frozen, autoencoder.to(device), exponential_schedule())
    return Upscaler("validation", model, device=device)


def _held_out(
    sources: Sequence[ImageSource], load: LoadFrames, count: int, side: int
) -> list[np.ndarray]:
    """``count`` frames of the sources' validation parts, evenly spaced; ValueError if none is."""
    frames = [frame for source in sources for frame in load(source, "val")]
    frames = [frame for frame in frames if min(frame.shape) >= side]
    if not frames:
        raise ValueError(
            f"no validation frame of {side} pixels on a side: of each source whole sequences are "
            "held out, never its only one (files numbered without a gap, or one recording). Raise "
            "val_share, add a source of several sequences, or set validate_every: 0"
        )
    return evenly(frames, count)


def save_panel(titles: Sequence[str], rows: Sequence[Sequence[np.ndarray]], out: Path) -> None:
    """Draw ``(H, W)`` images, pixels as squares: one row per scene, one column per result.

    Args:
        titles: of the columns.
        rows: as many images each as there are titles. 8-bit ones are shown as they are; of others
            in counts the last of a row sets that row's grey scale.
        out: picture to write, its type by its suffix; folders are made.
    """
    figure = Figure(figsize=(2.6 * len(titles), 2.6 * len(rows) + 0.3), layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for row, places in zip(rows, axes, strict=True):
        low, high = (0, 255) if row[-1].dtype == np.uint8 else np.percentile(row[-1], (0.5, 99.5))
        for image, place in zip(row, places, strict=True):
            shades = {"cmap": "gray", "vmin": low, "vmax": max(high, low + 1e-6)}
            place.imshow(image, interpolation="nearest", **shades)
            place.set(xticks=[], yticks=[])
    for title, place in zip(titles, axes[0], strict=True):
        place.set_title(title, fontsize=9)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def save_learning_curve(run: Path, out: Path) -> None:
    """Plot a run folder's loss, and validation PSNR over bicubic's, against the iteration."""
    statistics, validation = (read_journal(run, n) for n in (STATISTICS_NAME, VALIDATION_NAME))
    columns = 2 if validation else 1
    figure = Figure(figsize=(5 * columns, 3.6), layout="constrained")
    loss, *gains = figure.subplots(1, columns, squeeze=False)[0]
    iterations, losses = np.array([(x["iteration"], x["loss"]) for x in statistics]).T
    loss.plot(iterations, losses, lw=0.8, alpha=0.4)
    window = 1 + len(losses) // 20
    means = (np.convolve(x, np.ones(window) / window, "valid") for x in (iterations, losses))
    loss.plot(*means, color="C0", label=f"running mean, {window} points")
    is_logarithm = losses.min() <= 0  # of norm: psnr
    loss.set(xlabel="iteration", ylabel="loss", yscale="linear" if is_logarithm else "log")
    for gain in gains:
        for end in ("fidelity 1", "fidelity 0"):
            key = "psnr_" + end.replace(" ", "_")
            points = [(x["iteration"], x[key] - x["psnr_bicubic"]) for x in validation if key in x]
            if points:
                gain.plot(*zip(*points, strict=True), marker=".", label=end)
        gain.set(xlabel="iteration", ylabel="PSNR over bicubic, dB (validation)")
    for place in (loss, *gains):
        place.legend()
        place.grid(alpha=0.3)
    figure.savefig(out, dpi=120)
