"""The frame upscaler: counts in, four times as many counts out, in the same units.

radiometry -> tiles -> sampler and network -> blend -> consistency -> counts
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from difiisr_models.backends.selection import resolve_backend, resolve_device, resolve_precision
from difiisr_models.consistency import enforce_consistency
from difiisr_models.diffusion import draw_noise
from difiisr_models.frame_model import BicubicModel, FrameModel
from difiisr_models.model_loading import load_model
from difiisr_models.radiometry import NETWORK_LIMIT, RangeTracker
from difiisr_models.resample import SCALE, unpack
from difiisr_models.tiling import Tile, plan_tiles, process_tiles

MIN_SIDE = 16
DTYPES = (np.uint8, np.uint16, np.float32)


@dataclass(frozen=True)
class UpscalerSettings:
    """What may change from frame to frame.

    Attributes:
        steps: diffusion steps T', 1..15.
        fidelity: 1 = lowest error (posterior mean), 0 = perceptual sample. Models without that
            knob (bicubic, the published network) ignore it.
        seed: of the fixed noise field; the same frame gives the same output. ``None`` = no noise.
        consistency: strength of the consistency step, 0..1; 1 = downsampled output equals input.
        tile: side of the largest tile, low-resolution pixels.
        overlap: pixels that neighbouring tiles share.
        tile_batch: tiles per network call.
    """

    steps: int = 1
    fidelity: float = 1.0
    seed: int | None = 0
    consistency: float = 1.0
    tile: int = 256
    overlap: int = 32
    tile_batch: int = 1

    def __post_init__(self) -> None:
        for name, low, high in (
            ("steps", 1, 15), ("fidelity", 0, 1), ("consistency", 0, 1), ("tile", 16, 4096),
            ("tile_batch", 1, 1024),
        ):  # fmt: skip
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} must lie in {low}..{high}, got {value!r}")
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"seed must be 0 or more, or None for no noise, got {self.seed}")
        if not 0 <= 2 * self.overlap < self.tile:
            raise ValueError(
                f"overlap must be 0 or more and less than half the tile ({self.tile}), "
                f"got {self.overlap}"
            )


class Upscaler:
    """A loaded model with its settings; call it with frames of one stream.

    Attributes:
        name: the model's name or path, as asked for.
        scale: 4.
        device: torch device in words.
        backend: what runs the network.
        weights_sha256: hash of the weights, "" without any.
        parameter_count: trainable values of the network.
        settings: :class:`UpscalerSettings`.
    """

    scale = SCALE

    def __init__(
        self,
        name: str,
        model: FrameModel,
        weights_sha256: str,
        device: torch.device,
        backend: str,
        settings: UpscalerSettings,
    ) -> None:
        """Use :func:`load_upscaler` unless the model is your own."""
        self.name, self.settings, self.backend = name, settings, backend
        self.device, self.weights_sha256 = str(device), weights_sha256
        self.parameter_count = model.parameter_count
        self._model = model
        self._tracker = RangeTracker()
        self._noise_key: tuple = ()
        self._noise: dict[int, Tensor] = {}

    def __call__(self, counts: np.ndarray, tracker: RangeTracker | None = None) -> np.ndarray:
        """Super-resolve one frame.

        Args:
            counts: ``(H, W)`` uint8, uint16 or float32, at least 16x16, any unit. Non-finite
                float pixels are filled for the network and come back as they were.
            tracker: the stream that the frame belongs to; by default this upscaler's own.

        Returns:
            ``(4H, 4W)`` of the same dtype and unit.

        Raises:
            ValueError: another rank, dtype, or a smaller frame.
        """
        check_frame(counts)
        missing = ~np.isfinite(counts) if counts.dtype == np.float32 else None
        if missing is not None and missing.any():
            known = counts[~missing]
            filled = np.where(missing, np.median(known) if known.size else 0, counts)
            result = self._upscale(filled.astype(np.float32), counts, tracker)
            block = np.ones((SCALE, SCALE), bool)
            return np.where(np.kron(missing, block), np.kron(counts, block), result)
        return self._upscale(counts, counts, tracker)

    def reset(self) -> None:
        """Forget the stream seen so far; the next frame sets the radiometric range."""
        self._tracker.reset()

    def with_settings(self, **changes: object) -> Upscaler:
        """The same model on the same stream with other settings; raises as the dataclass does."""
        other = copy.copy(self)
        other.settings = dataclasses.replace(self.settings, **changes)
        return other

    def _upscale(
        self, filled: np.ndarray, counts: np.ndarray, tracker: RangeTracker | None
    ) -> np.ndarray:
        found = (tracker or self._tracker).update(counts)
        frame = torch.from_numpy(found.normalise(filled)).to(self.device)[None, None]
        with torch.inference_mode():
            values = self._super_resolve(frame)[0, 0].cpu().numpy()
        return _to_dtype(found.denormalise(values), counts.dtype)

    def _super_resolve(self, frame: Tensor) -> Tensor:
        """``(1, 1, h, w)`` in network units -> ``(1, 1, 4h, 4w)``."""
        limit, settings = self._model.input_limit, self.settings
        shown = frame.clamp(-limit, limit)
        packed = self._run_tiles(shown)
        packed = enforce_consistency(packed, shown, settings.consistency)
        image = unpack(packed)
        excess = frame - shown
        if excess.any():  # dead pixels, the sun: carried by an interpolation that does not ring
            image = image + F.interpolate(excess, scale_factor=SCALE, mode="bilinear")
        return image

    def _run_tiles(self, frame: Tensor) -> Tensor:
        model, settings = self._model, self.settings
        height, width = frame.shape[-2:]
        padded = pad_to_multiple(frame, model.multiple) if model.multiple > 1 else frame
        tiles = plan_tiles(
            *padded.shape[-2:], settings.tile, settings.overlap, balanced=model.multiple == 1
        )

        def process(lr: Tensor, places: list[Tile]) -> Tensor:
            def noise(k: int) -> Tensor:
                field = self._noise_field(k, padded.shape[-2:])
                return torch.cat([place.cut(field) for place in places])

            return model.super_resolve(lr, noise, settings.steps, settings.fidelity)

        packed = process_tiles(padded, tiles, process, settings.tile_batch, settings.overlap)
        return packed[..., :height, :width]

    def _noise_field(self, k: int, size: tuple[int, int]) -> Tensor:
        """The frame's k-th noise field, kept from frame to frame: static scenes do not flicker."""
        key = (self.settings.seed, *size)
        if key != self._noise_key:
            self._noise_key, self._noise = key, {}
        if k not in self._noise:
            shape = (1, self._model.noise_channels, *size)
            self._noise[k] = draw_noise(shape, self.settings.seed, k).to(self.device)
        return self._noise[k]


def load_upscaler(
    name: str,
    *,
    device: str = "auto",
    backend: str = "auto",
    precision: str = "fp32",
    **settings: object,
) -> Upscaler:
    """Load a model by name.

    Args:
        name: a shipped model (``"difiisr-rt-x4"``), ``"bicubic"``, or a path to a weights folder
            or to a file in one.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        backend: ``"auto"`` or ``"torch"``.
        precision: ``"fp32"``, or ``"bf16"`` / ``"fp16"`` for convolutions and products.
        settings: fields of :class:`UpscalerSettings`.

    Raises:
        FileNotFoundError: no such model.
        WeightsError: its files are damaged.
        ValueError: an unknown device, backend, precision or setting, or a value out of range.
    """
    known = {f.name for f in dataclasses.fields(UpscalerSettings)}
    if unknown := sorted(set(settings) - known):
        raise ValueError(
            f"unknown settings {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    checked = UpscalerSettings(**settings)
    where, how = resolve_device(device), resolve_backend(backend)
    if name == "bicubic":
        return Upscaler(name, BicubicModel(NETWORK_LIMIT), "", where, how, checked)
    model, sha256 = load_model(name, where, resolve_precision(precision, where))
    return Upscaler(Path(name).name, model, sha256, where, how, checked)


def check_frame(counts: np.ndarray) -> None:
    """Raise ValueError unless ``counts`` is a frame that can be super-resolved."""
    if not isinstance(counts, np.ndarray) or counts.ndim != 2:
        shape = getattr(counts, "shape", type(counts).__name__)
        raise ValueError(f"a frame is a two-dimensional array (H, W), got {shape}")
    if counts.dtype not in DTYPES:
        raise ValueError(f"a frame is uint8, uint16 or float32, got {counts.dtype}")
    if min(counts.shape) < MIN_SIDE:
        raise ValueError(f"a frame has at least {MIN_SIDE}x{MIN_SIDE} pixels, got {counts.shape}")


def pad_to_multiple(frame: Tensor, multiple: int) -> Tensor:
    """Pad ``(1, 1, h, w)`` below and right by mirror images until both sides are multiples."""
    for dim in (2, 3):
        size = frame.shape[dim]
        period = 2 * (size - 1)
        index = torch.arange(size + -size % multiple, device=frame.device) % period
        frame = frame.index_select(dim, torch.where(index < size, index, period - index))
    return frame


def _to_dtype(counts: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype == np.float32:
        return counts
    limits = np.iinfo(dtype)
    return np.rint(counts).clip(limits.min, limits.max).astype(dtype)
