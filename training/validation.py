"""How good the moving average is while it trains: frames that training never sees, both ends."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import nn

from difiisr_models import Runtime, Stream, Upscaler
from difiisr_models.backends import NetworkSource
from difiisr_models.backends.torch_runner import build_runner
from difiisr_models.compact import CompactNetwork, parameter_count
from difiisr_models.diffusion import exponential_schedule
from difiisr_models.frame_model import CompactModel
from difiisr_models.published.sampler import PublishedModel
from difiisr_models.published.vq_autoencoder import VQAutoencoder
from difiisr_models.radiometry import NETWORK_LIMIT
from difiisr_models.resample import SCALE
from difiisr_training.config import TrainConfig
from difiisr_training.data.images import LoadFrames
from difiisr_training.degradations.mix import pillow_resize
from difiisr_training.evaluation.inputs import evenly
from difiisr_training.evaluation.measures import Judge
from difiisr_training.preview import save_panel

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

        Raises:
            ValueError: no source has a validation part; the text says what to do.
        """
        frames = [f for source in config.sources for f in load(source, "val")]
        frames = [frame for frame in frames if min(frame.shape) >= _SIDE]
        if not frames:
            raise ValueError(
                f"no validation frame of {_SIDE} pixels on a side: of each source whole sequences "
                "are held out, never its only one (files numbered without a gap, or one "
                "recording). Raise val_share, add a source of several sequences, or set "
                "validate_every: 0"
            )
        self._hr = [_middle(frame) for frame in evenly(frames, config.validation_frames)]
        self._lr = [pillow_resize(hr, _SIDE // SCALE, _SIDE // SCALE) for hr in self._hr]
        self._bicubic = [pillow_resize(lr, _SIDE, _SIDE) for lr in self._lr]
        self._run, self._autoencoder = run, autoencoder
        metrics = ("psnr",) if lpips is None else ("psnr", "lpips_squeeze")
        self._judge = Judge("reference", metrics, lpips)
        self._both_ends = config.published is None and config.perceptual_weight > 0

    def __call__(self, network: nn.Module, iteration: int) -> dict[str, float]:
        """Mean PSNR in dB (and LPIPS-squeeze) of bicubic and of the network; saves a picture."""
        device = next(network.parameters()).device
        frozen = copy.deepcopy(network).eval().requires_grad_(False)
        if isinstance(frozen, CompactNetwork):
            up = compact_upscaler(frozen, device)
        else:
            model = PublishedModel(frozen, self._autoencoder.to(device), exponential_schedule())
            up = Upscaler("validation", model, device=device)
        results = {"bicubic": self._bicubic}
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


def compact_upscaler(network: CompactNetwork, device: torch.device) -> Upscaler:
    """A network under training as a model that runs on frames, in torch."""
    runtime = Runtime().repeatable
    runner = build_runner(NetworkSource(network, "", device, runtime))
    model = CompactModel(
        runner, parameter_count(network), exponential_schedule(), NETWORK_LIMIT, None,
        network.config.recurrent,
    )  # fmt: skip
    return Upscaler("training", model, device=device)


def _middle(frame: np.ndarray) -> np.ndarray:
    top, left = ((side - _SIDE) // 2 for side in frame.shape)
    return frame[top : top + _SIDE, left : left + _SIDE]
