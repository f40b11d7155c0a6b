"""The frame upscaler: counts in, four times as many counts out, in the same units.

radiometry -> tiles -> sampler and network -> blend -> consistency -> counts
"""

from __future__ import annotations

import copy
import dataclasses
import threading
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from difiisr_models.backends import ENGINE_MISMATCH
from difiisr_models.backends.selection import (
    check_precision,
    resolve_device,
    torch_only,
)
from difiisr_models.consistency import enforce_consistency
from difiisr_models.diffusion import draw_noise
from difiisr_models.frame_model import SMALLEST_OWN_TILE, BicubicModel, FrameModel
from difiisr_models.model_loading import LoadedModel, load_model
from difiisr_models.radiometry import NETWORK_LIMIT, NO_DATA, CountRange, RangeTracker
from difiisr_models.resample import SCALE, unpack
from difiisr_models.tiling import Tile, plan_axis, process_tiles
from difiisr_models.upscaler_settings import MIN_SIDE, UpscalerSettings

DTYPES = {np.uint8: torch.uint8, np.uint16: torch.uint16, np.float32: torch.float32}
WARM_UP_SIDE = 64

STAGE = "difiisr: "
"""Begins the name of each stage of a frame in a torch profile; see ``frame_profile``."""


class Upscaler:
    """A loaded model with its settings; call it with frames of one stream.

    Threads may share it, and what :meth:`with_settings` made of it: frames are computed one by one,
    in memory that backends keep.

    Attributes:
        name: the model's name or path, as asked for.
        scale: 4.
        device: torch device in words.
        backend: what runs the network, one of ``selection.BACKENDS`` but auto.
        passed_over: (backend, reason) of each that would have come before it.
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
        passed_over: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Use :func:`load_upscaler` unless the model is your own."""
        self.name, self.settings, self.backend = name, settings, backend
        self.passed_over = passed_over
        self.device, self.weights_sha256 = str(device), weights_sha256
        self.parameter_count = model.parameter_count
        self._model = model
        self._tracker = RangeTracker()
        self._lock = threading.Lock()
        self._noise_key: tuple = ()
        self._noise: dict[int, Tensor] = {}

    def __call__(self, counts: np.ndarray, tracker: RangeTracker | None = None) -> np.ndarray:
        """Super-resolve one frame.

        Args:
            counts: ``(H, W)`` uint8, uint16 or float32, at least 16x16, any unit. Float pixels
                that are not finite, or beyond 1e30 (a mark for no data), are filled for the
                network and come back as they were.
            tracker: the stream that the frame belongs to; by default this upscaler's own.

        Returns:
            ``(4H, 4W)`` of the same dtype and unit.

        Raises:
            ValueError: another rank, dtype, or a smaller frame.
        """
        check_frame(counts)
        with self._lock, record_function(STAGE + "frame"):
            return self._fill_and_upscale(counts, tracker)

    def _fill_and_upscale(self, counts: np.ndarray, tracker: RangeTracker | None) -> np.ndarray:
        missing = ~(np.abs(counts) < NO_DATA) if counts.dtype == np.float32 else None
        if missing is not None and missing.any():
            known = counts[~missing]
            filled = np.where(missing, np.median(known) if known.size else 0, counts)
            result = self._upscale(filled.astype(np.float32), counts, tracker)
            block = np.ones((SCALE, SCALE), bool)
            return np.where(np.kron(missing, block), np.kron(counts, block), result)
        return self._upscale(counts, counts, tracker)

    def warm_up(self) -> None:
        """Run once on a frame of no meaning, 64x64 where the backend takes tiles of any size.

        What is slow at the first frame only is over then; a new frame size or number of steps may
        be slow once more.
        """
        _, height, width = self._model.tile_shape or (1, WARM_UP_SIDE, WARM_UP_SIDE)
        self(np.arange(height * width).reshape(height, width).astype(np.uint16), RangeTracker())

    def reset(self) -> None:
        """Forget the stream seen so far; the next frame sets the radiometric range."""
        self._tracker.reset()

    def with_settings(self, **changes: object) -> Upscaler:
        """The same model on the same stream with other settings.

        Raises:
            ValueError: as the dataclass does, or other tiles than the only ones that the backend
                takes.
        """
        other = copy.copy(self)
        other.settings = dataclasses.replace(self.settings, **changes)
        for name in ("tile", "tile_batch") if self._model.tile_shape else ():
            if getattr(other.settings, name) != getattr(self.settings, name):
                raise ValueError(
                    f"{name} cannot change: {self.backend} takes tiles of "
                    f"{'x'.join(map(str, self._model.tile_shape))} (batch, height, width) only"
                )
        return other

    def _upscale(
        self, filled: np.ndarray, counts: np.ndarray, tracker: RangeTracker | None
    ) -> np.ndarray:
        with record_function(STAGE + "range"):
            found = (tracker or self._tracker).update(counts)
            ends = found.normalise(np.array([filled.min(), filled.max()]))
            inside = bool(np.abs(ends).max() <= self._model.input_limit)
        with torch.inference_mode():
            with record_function(STAGE + "to device"):
                frame = _normalise(_to_device(filled, self.device), found)
            image = self._super_resolve(frame[None, None], inside)[0, 0]
            with record_function(STAGE + "to counts"):
                return _to_host(_to_counts(image, found, DTYPES[counts.dtype.type])).numpy()

    def _super_resolve(self, frame: Tensor, inside: bool) -> Tensor:
        """``(1, 1, h, w)`` in network units -> ``(1, 1, 4h, 4w)``.

        ``inside``: no pixel lies beyond what the model is shown.
        """
        limit, settings = self._model.input_limit, self.settings
        shown = frame if inside else frame.clamp(-limit, limit)
        with record_function(STAGE + "tiles"):
            packed = self._run_tiles(shown)
        with record_function(STAGE + "consistency"):
            packed = enforce_consistency(packed, shown, settings.consistency)
            image = unpack(packed)
        if not inside:  # dead pixels, the sun: carried by an interpolation that does not ring
            excess = frame - shown
            image = image + F.interpolate(excess, scale_factor=SCALE, mode="bilinear")
        return image

    def _run_tiles(self, frame: Tensor) -> Tensor:
        model, settings = self._model, self.settings
        height, width = frame.shape[-2:]
        if model.tile_shape is None:
            side = settings.tile or model.own_tile
            side += -side % model.multiple
            batch, sides = settings.tile_batch, (side, side)
            padded = pad_to(frame, *(n + -n % model.multiple for n in (height, width)))
        else:
            batch, *sides = model.tile_shape
            padded = pad_to(frame, max(height, sides[0]), max(width, sides[1]))
        overlap = min(settings.overlap, (min(sides) - 1) // 2)
        balanced = model.tile_shape is None and model.multiple == 1
        rows, columns = (
            plan_axis(length, side, overlap, balanced)
            for length, side in zip(padded.shape[-2:], sides, strict=True)
        )
        tiles = [Tile(*row, *column) for row in rows for column in columns]

        def process(lr: Tensor, places: list[Tile]) -> Tensor:
            def noise(k: int) -> Tensor:
                field = self._noise_field(k, padded.shape[-2:])
                cut = [place.cut(field) for place in places]
                return cut[0] if len(cut) == 1 else torch.cat(cut)  # that of a frame is large

            with record_function(STAGE + "network"):
                return model.super_resolve(lr, noise, settings.steps, settings.fidelity)

        packed = process_tiles(padded, tiles, process, batch, overlap)
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
    compile: bool = False,
    engine: str | Path = "",
    engine_mismatch: str = "fallback",
    **settings: object,
) -> Upscaler:
    """Load a model by name.

    The network gets as many CPU threads as torch has (``torch.set_num_threads``) at this call.

    Args:
        name: a shipped model (``"difiisr-rt-x4"``), ``"bicubic"``, or a path to a weights folder
            or to a file in one.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        backend: ``"auto"`` for the fastest that works here, or ``"tensorrt"``,
            ``"torch_tensorrt"``, ``"onnxruntime"``, ``"torch"``. The first export for ONNX Runtime
            takes seconds; its graph is kept in the user's cache folder.
        precision: ``"fp32"``, or ``"bf16"`` / ``"fp16"`` for convolutions and products.
        compile: let the torch backend compile the network; each new frame size takes up to a
            minute.
        engine: TensorRT engine file, as ``difiisr build-engine`` writes it; "" for none.
        engine_mismatch: when that file does not fit network, machine and runtime: ``"rebuild"``
            it, ``"fallback"`` to another backend, or ``"fail"``.
        settings: fields of :class:`UpscalerSettings`.

    Raises:
        FileNotFoundError: no such model.
        WeightsError: its files are damaged.
        BackendUnavailable: the backend asked for does not work here (a ValueError).
        ValueError: an unknown device, backend, precision or setting, or a value out of range.
    """
    known = {f.name for f in dataclasses.fields(UpscalerSettings)}
    if unknown := sorted(set(settings) - known):
        raise ValueError(
            f"unknown settings {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    if engine_mismatch not in ENGINE_MISMATCH:
        raise ValueError(
            f"engine_mismatch {engine_mismatch!r} is not one of {', '.join(ENGINE_MISMATCH)}"
        )
    checked = UpscalerSettings(**settings)
    where = resolve_device(device)
    check_precision(precision, where)
    if name == "bicubic":
        choice = torch_only(backend, "bicubic", engine, engine_mismatch)
        loaded = LoadedModel(BicubicModel(NETWORK_LIMIT), "", choice)
    else:
        loaded = load_model(
            name,
            where,
            backend,
            precision=precision,
            compile=compile,
            engine=Path(engine).expanduser() if engine else None,
            engine_mismatch=engine_mismatch,
            tile=checked.tile or SMALLEST_OWN_TILE,
            tile_given=checked.tile > 0,
            tile_batch=checked.tile_batch,
        )
    return Upscaler(
        Path(name).name,
        loaded.model,
        loaded.weights_sha256,
        where,
        loaded.backend.name,
        checked,
        loaded.backend.passed_over,
    )


def check_frame(counts: np.ndarray) -> None:
    """Raise ValueError unless ``counts`` is a frame that can be super-resolved."""
    if not isinstance(counts, np.ndarray) or counts.ndim != 2:
        shape = getattr(counts, "shape", type(counts).__name__)
        raise ValueError(f"a frame is a two-dimensional array (H, W), got {shape}")
    if counts.dtype.type not in DTYPES or not counts.dtype.isnative:
        raise ValueError(f"a frame is uint8, uint16 or float32, got {counts.dtype}")
    if min(counts.shape) < MIN_SIDE:
        raise ValueError(f"a frame has at least {MIN_SIDE}x{MIN_SIDE} pixels, got {counts.shape}")


def pad_to(frame: Tensor, height: int, width: int) -> Tensor:
    """Pad ``(1, 1, h, w)`` below and right by mirror images to at least its own size."""
    for dim, wanted in ((2, height), (3, width)):
        size = frame.shape[dim]
        if wanted > size:
            period = 2 * (size - 1)
            index = torch.arange(wanted, device=frame.device) % period
            frame = frame.index_select(dim, torch.where(index < size, index, period - index))
    return frame


def _normalise(counts: Tensor, found: CountRange) -> Tensor:
    """Counts to network units, float32."""
    return (counts.float() - found.centre) * found.gain


def _to_counts(values: Tensor, found: CountRange, dtype: torch.dtype) -> Tensor:
    """The inverse, rounded half to even and clipped for integer counts."""
    counts = (values * found.half_span).add_(found.centre)
    if dtype == torch.float32:
        return counts
    limits = torch.iinfo(dtype)
    return counts.round_().clamp_(limits.min, limits.max).to(dtype)


def _to_device(counts: np.ndarray, device: str) -> Tensor:
    """The one copy in, from memory that a GPU reaches by itself: the host does not wait."""
    if device == "cpu":
        # torch warns of arrays that it might not write to.
        return torch.from_numpy(np.require(counts, requirements=("C", "W")))
    host = torch.empty(counts.shape, dtype=DTYPES[counts.dtype.type], pin_memory=True)
    host.numpy()[...] = counts  # one thread's work: torch's own copy would share it among all
    return host.to(device, non_blocking=True)


def _to_host(result: Tensor) -> Tensor:
    """The one copy out, into memory that a GPU reaches by itself."""
    if result.device.type == "cpu":
        return result
    host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
    host.copy_(result, non_blocking=True)
    torch.cuda.current_stream(result.device).synchronize()
    return host
