"""How good the moving average is while it trains: frames that training never sees, both ends."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from difiisr_models import Upscaler, UpscalerSettings
from difiisr_models.backends import NetworkSource
from difiisr_models.backends.torch_runner import TorchRunner
from difiisr_models.compact import CompactNetwork, parameter_count
from difiisr_models.frame_model import CompactModel, FrameModel
from difiisr_models.published import PublishedModel
from difiisr_models.radiometry import NETWORK_LIMIT
from difiisr_models.schedule import exponential_schedule
from difiisr_models.vq_autoencoder import VQAutoencoder
from difiisr_training.config import TrainConfig
from difiisr_training.data.images import load_images
from difiisr_training.evaluation.metrics import LpipsSqueeze, psnr
from difiisr_training.evaluation.pairs import make_pair
from difiisr_training.evaluation.peers import full_range, load_contestant
from difiisr_training.panels import save_panel

_SIDE = 256  # high-resolution pixels of a validation crop
_SHOWN = 4


@dataclass(frozen=True)
class Example:
    """One validation crop: low and high resolution, counts, and plain bicubic beside them."""

    lr: np.ndarray
    hr: np.ndarray
    bicubic: np.ndarray


class Validator:
    """Scores a network on fixed crops from the middle of validation frames."""

    def __init__(
        self,
        config: TrainConfig,
        data: Path,
        run: Path,
        autoencoder: VQAutoencoder | None = None,
        lpips: LpipsSqueeze | None = None,
    ) -> None:
        """Read the frames of the sources' validation parts, evenly spaced over all of them.

        Args:
            config: the run; ``validation_frames`` says how many.
            data: folder that the sources lie in.
            run: run folder; pictures go to ``run/samples``.
            autoencoder: of the published network.
            lpips: measured too where it is given.

        Raises:
            ValueError: no source has a validation part; the text says what to do.
        """
        frames = [
            frame
            for source in config.sources
            for frame in load_images(source, data, "val")
            if min(frame.shape) >= _SIDE
        ]
        if not frames:
            raise ValueError(
                f"no validation frame of {_SIDE} pixels on a side: of each source whole sequences "
                "are held out, val_share of its files at most, and never its only one (files "
                "numbered without a gap, or one recording). Raise val_share, add a source of "
                "several sequences, or set validate_every: 0"
            )
        chosen = np.linspace(0, len(frames) - 1, min(config.validation_frames, len(frames)))
        self.examples = [_example(frames[i]) for i in chosen.round().astype(int)]
        self._run, self._autoencoder, self._lpips = run, autoencoder, lpips
        self._both_ends = config.published is None and config.perceptual_weight > 0

    def __call__(self, network: nn.Module, iteration: int) -> dict[str, float]:
        """Mean PSNR in dB (and LPIPS-squeeze) of bicubic and of the network; saves a picture."""
        ends = {"fidelity_1": 1.0} | ({"fidelity_0": 0.0} if self._both_ends else {})
        up = self._upscaler(network)
        results = {"bicubic": [example.bicubic for example in self.examples]}
        for name, fidelity in ends.items():
            results[name] = [self._upscale(up, example.lr, fidelity) for example in self.examples]
        values = {}
        for name, images in results.items():
            scores = [self._score(sr, e.hr) for sr, e in zip(images, self.examples, strict=True)]
            for metric in scores[0]:
                values[f"{metric}_{name}"] = float(np.mean([score[metric] for score in scores]))
        rows = [
            [*(images[i] for images in results.values()), example.hr]
            for i, example in enumerate(self.examples[:_SHOWN])
        ]
        save_panel(
            [*results, "high resolution"], rows, self._run / "samples" / f"{iteration:07}.png"
        )
        return values

    def _upscaler(self, network: nn.Module) -> Upscaler:
        device = next(network.parameters()).device
        frozen = copy.deepcopy(network).eval().requires_grad_(False)
        schedule = exponential_schedule()
        model: FrameModel
        if isinstance(frozen, CompactNetwork):
            runner = TorchRunner(NetworkSource(frozen, "", device))
            model = CompactModel(runner, parameter_count(frozen), schedule, NETWORK_LIMIT)
        else:
            model = PublishedModel(frozen, self._autoencoder.to(device), schedule)
        return Upscaler("validation", model, "", device, "torch", UpscalerSettings())

    def _upscale(self, up: Upscaler, lr: np.ndarray, fidelity: float) -> np.ndarray:
        up.reset()
        return up.with_settings(fidelity=fidelity)(lr)

    def _score(self, sr: np.ndarray, hr: np.ndarray) -> dict[str, float]:
        lo, span = full_range(hr)
        score = {"psnr": psnr(sr, hr, span)}
        if self._lpips is not None:
            score["lpips_squeeze"] = self._lpips(
                sr.astype(np.float32) - lo, hr.astype(np.float32) - lo, span
            )
        return score


def _example(frame: np.ndarray) -> Example:
    top, left = ((side - _SIDE) // 2 for side in frame.shape)
    lr, hr = make_pair(frame[top : top + _SIDE, left : left + _SIDE])
    return Example(lr, hr, load_contestant("bicubic", None, "cpu").upscale(lr))
