"""The frame upscaler: counts in, four times as many counts out, in the same units.

fill -> range -> normalise -> tiles -> network -> blend -> check -> consistency -> counts
"""

from __future__ import annotations

import logging
import threading
from functools import cache, lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from difiisr_models.consistency import enforce_consistency, noise_aware_consistency
from difiisr_models.diffusion import NoiseSource, draw_noise
from difiisr_models.frame_model import CompactModel, FrameModel
from difiisr_models.hot_spots import greatest, hot_parts, within_bounds
from difiisr_models.noise import denoise
from difiisr_models.plausibility import fault_of, measure_estimate
from difiisr_models.published.sampler import super_resolve_as_published
from difiisr_models.radiometry import CountRange
from difiisr_models.recurrence import (
    Past,
    drawn_to_past,
    next_weight,
    no_past,
    planes_of,
    settled,
)
from difiisr_models.resample import PHASES, SCALE, halve, pack, unpack, upsample
from difiisr_models.settings import MIN_SIDE, FrameSettings, Runtime, with_fields
from difiisr_models.stream import Seen, Stream
from difiisr_models.tiling import Tile, Tiling, pad_to
from difiisr_models.validity import put_back

DTYPES = {
    np.uint8: torch.uint8,
    np.uint16: torch.uint16,
    np.int16: torch.int16,
    np.float32: torch.float32,
}
WARM_UP_SIDE = 64

log = logging.getLogger(__name__)

STAGE = "difiisr: "
"""Begins the name of each stage of a frame in a torch profile; see ``difiisr info --size``."""


class Upscaler:
    """A loaded model with its settings; call it with frames.

    Threads may share it: frames are computed one by one, in memory that backends keep.

    Attributes:
        name: the model's name or path, as asked for.
        scale: of the next result, 4 or 2.
        device: torch device in words.
        backend: what runs the network, one of ``settings.Backend`` but auto.
        passed_over: (backend, reason) of each that would have come before it.
        measured: milliseconds of a small frame by backend and precision, where they were compared.
        weights_sha256: hash of the weights, "" without any.
        parameter_count: trainable values of the network.
        runtime: :class:`Runtime`, as asked for.
        settings: :class:`FrameSettings`; :meth:`change` replaces both.
        stream: the stream of frames that come without one.
    """

    def __init__(
        self,
        name: str,
        model: FrameModel,
        *,
        device: torch.device | str = "cpu",
        backend: str = "torch",
        weights_sha256: str = "",
        passed_over: tuple[tuple[str, str], ...] = (),
        runtime: Runtime = Runtime(),
        settings: FrameSettings = FrameSettings(),
    ) -> None:
        """Use :func:`load_upscaler` unless the model is your own."""
        self.name, self.device, self.backend = name, str(device), backend
        self.passed_over, self.weights_sha256 = passed_over, weights_sha256
        self.measured: dict[str, float] = {}
        self.parameter_count = model.parameter_count
        _check_steps(model, settings)
        self.runtime, self.settings, self.stream = runtime, settings, Stream()
        self._model, self._lock = model, threading.Lock()
        self._key = object()  # no other upscaler has it
        self._noise_fields = lru_cache(maxsize=1)(_noise_fields)  # large: of the last size alone

    def __call__(
        self, frame: np.ndarray, stream: Stream | None = None, stamp_ns: int | None = None
    ) -> np.ndarray:
        """Super-resolve one frame; one that is exactly the last one again is not computed.

        Where the network's estimate cannot be true of the frame, the result is plain bicubic, and
        ``stream.fallbacks`` and ``stream.last_fallback`` say so.

        Args:
            frame: ``(H, W)``, or ``(H, W, C)`` of which each channel is super-resolved, once if
                all are equal; uint8, uint16, int16 or float32, at least 16x16, any unit. Float
                pixels that are not finite, or beyond 1e30 (a mark for no data), are filled for the
                network and come back as they were.
            stream: the stream that the frame belongs to; by default this upscaler's own.
            stamp_ns: when the frame was taken, nanoseconds.

        Returns:
            ``(4H, 4W)`` or ``(4H, 4W, C)`` of the same dtype and unit; half that with
            ``output_scale=2``.

        Raises:
            ValueError: another rank, dtype, or a smaller frame.
        """
        check_frame(frame)
        stream = self.stream if stream is None else stream
        with self._lock, record_function(STAGE + "frame"), torch.inference_mode():
            stream.begin_frame(frame, stamp_ns)
            results = []
            for channel, plane in enumerate(_planes(frame)):
                results.append(self._upscale(plane, stream, channel))
            if frame.ndim == 2:
                return results[0]
            return np.stack(results * (frame.shape[2] // len(results)), axis=-1)

    def skip(
        self, frame: np.ndarray, stream: Stream | None = None, stamp_ns: int | None = None
    ) -> None:
        """Let the stream see a frame whose result nobody needs; arguments as of a call."""
        check_frame(frame)
        stream = self.stream if stream is None else stream
        stream.begin_frame(frame, stamp_ns)
        for channel, plane in enumerate(_planes(frame)):
            stream.see(plane, channel, self._removes_pattern)

    def warm_up(self) -> None:
        """Run once on a frame of no meaning, 64x64 where the backend takes tiles of any size.

        What is slow at the first frame only is over then; a new frame size or number of steps may
        be slow once more.
        """
        _, height, width = self._model.tile_shape or (1, WARM_UP_SIDE, WARM_UP_SIDE)
        self(np.arange(height * width).reshape(height, width).astype(np.uint16), Stream())
        if self._model.sibling:  # it made that frame
            with self._lock, torch.inference_mode():
                frame = torch.zeros(1, 1, height, width, device=self.device)
                past = no_past(frame, frame.new_zeros(()))
                self._estimates(frame, past, [], self.settings.fidelity)

    def reset(self) -> None:
        """Forget the frames that came without a stream."""
        self.stream.reset()

    def change(self, **fields: object) -> None:
        """Set fields of :class:`FrameSettings`, or ``tile``, ``overlap`` and ``tile_batch``.

        They act from the next frame on.

        Raises:
            ValueError: an unknown field, a value out of its range, or other tiles than the only
                ones that the backend takes; nothing is changed then.
        """
        runtime, settings = with_fields(self.runtime, self.settings, fields)
        for name in fields:
            if getattr(runtime, name, None) == getattr(self.runtime, name, None):
                continue
            if name not in ("tile", "overlap", "tile_batch"):
                raise ValueError(f"{name} cannot change once a model is loaded: load it anew")
            if self._model.tile_shape and name != "overlap":
                shape = "x".join(map(str, self._model.tile_shape))
                raise ValueError(
                    f"{name} cannot change: {self.backend} takes tiles of {shape} (batch, height, "
                    "width) only"
                )
        _check_steps(self._model, settings)
        self.runtime, self.settings = runtime, settings

    @property
    def scale(self) -> int:
        """Pixels of a result along each side of an input pixel."""
        return self.settings.output_scale

    @property
    def is_recurrent(self) -> bool:
        """Whether the model is told of the frames before."""
        return self._model.is_recurrent

    @property
    def _removes_pattern(self) -> bool:
        """Plain interpolation is that and nothing else, also of the sensor's pattern."""
        return self.settings.remove_pattern and self._model.is_projected

    def _upscale(self, counts: np.ndarray, stream: Stream, channel: int) -> np.ndarray:
        """The way of a frame ``(H, W)``, from top to bottom."""
        settings, model, limit = self.settings, self._model, self._model.input_limit
        if settings.pipeline == "published":
            return super_resolve_as_published(
                model, counts, self._noise_source, settings.steps, self.device
            )
        with record_function(STAGE + "stream"):  # fill, range, noise
            seen = stream.see(counts, channel, self._removes_pattern)
            found = seen.range
        key, memory = (self._key, self.runtime, settings), stream.channel(channel)
        if (kept := memory.kept(key)) is not None:
            return _image(kept, seen)
        with record_function(STAGE + "to device"):
            frame = (_to_device(seen.counts, self.device).float() - found.centre) * found.gain
            frame = frame[None, None]
            inside = bool(frame.abs().amax() <= limit)
            is_told = settings.consistency == "auto" or model.is_recurrent
            sigma = seen.noise * found.gain if is_told and model.is_projected else 0.0
            shown = frame.clamp(-limit, limit)
        past = None
        if model.is_recurrent:  # it is told of the noise, and sees it
            with record_function(STAGE + "past"):
                known = memory.past if seen.event.has_news else None
                past = planes_of(known, shown, found, sigma, model.sibling is not None)
        checks: list[Tensor] = []
        with record_function(STAGE + "tiles"):
            read = denoise(shown, sigma) if past is None else shown
            packed, *mean = self._estimates(read, past, checks, settings.fidelity)
            if past is not None and sigma > 0:
                nearer = drawn_to_past(mean[0], past, shown)
                packed, mean = packed + nearer, [mean[0] + nearer]
            for part in [] if inside else hot_parts(frame, limit):
                packed = self._with_hot_part(packed, frame, part, checks)
        with record_function(STAGE + "consistency"):
            if model.is_projected:
                packed = self._consistent(packed, frame, sigma, past)
            if model.is_recurrent and seen.event.has_news:
                told = packed
                if settings.fidelity < 1:
                    (told,) = mean or self._estimates(read, None, checks, 1.0)
                    told = self._consistent(told, frame, sigma, past)
                weight = next_weight(no_past(shown, torch.zeros(())) if past is None else past)
                memory.past = Past(told.clone(), weight, found)
            if model.is_projected:
                packed = within_bounds(packed, frame, seen)
        with record_function(STAGE + "to counts"):
            dtype, size = DTYPES[counts.dtype.type], settings.output_scale
            result = _to_counts(packed, size, found, dtype)
            measured = torch.stack(checks).tolist() if checks else []
            faults = filter(None, (fault_of(one, model.limits) for one in measured if model.limits))
            if fault := next(faults, ""):  # known only now: a GPU was not to be waited for
                stream.fallbacks, stream.last_fallback = stream.fallbacks + 1, fault
                memory.past, key = None, (object(), *key[1:])  # the frame again is computed again
                result = _to_counts(upsample(frame), size, found, dtype)
            memory.result = key, result
            return _image(result, seen)

    def _estimates(
        self, frame: Tensor, past: Tensor | None, checks: list[Tensor], fidelity: float
    ) -> tuple[Tensor, ...]:
        """``(1, 1, h, w)`` in network units -> packed ``(1, 16, h, w)``: tiles, network, blend.

        With the planes of the past ``(1, 21, h, w)``, the posterior mean comes second; without,
        the sibling of a recurrent model makes it. ``checks`` takes measures of both; zeros come
        where an estimate cannot be true.
        """
        model = (self._model if past is not None else self._model.sibling) or self._model
        runtime, settings = self.runtime, self.settings
        height, width = frame.shape[-2:]
        tiling = Tiling(
            (height, width), runtime.tile or model.own_tile, runtime.overlap, runtime.tile_batch,
            model.multiple, model.tile_shape,
        )  # fmt: skip
        padded = pad_to(frame, tiling.height, tiling.width)
        past = None if past is None else pad_to(past, tiling.height, tiling.width)
        for places in tiling.batches():
            noise = self._noise_source(places, padded.shape[-2:])
            with record_function(STAGE + "network"):
                result = model.super_resolve(
                    _cut(padded, places), noise, settings.steps, fidelity,
                    None if past is None else _cut(past, places),
                )  # fmt: skip
            tiling.add(places, result)
        estimates = tiling.result()[..., :height, :width].split(PHASES, dim=1)
        if model.limits is None:
            return estimates
        checks += (measured := [measure_estimate(each, frame) for each in estimates])
        deviation, detail = torch.stack(measured).amax(0)
        believed = (deviation <= model.limits.deviation) & (detail <= model.limits.detail)
        # NaN would keep projections busy.
        return tuple(torch.where(believed, each, 0.0) for each in estimates)

    def _consistent(
        self, packed: Tensor, frame: Tensor, sigma: float, past: Tensor | None
    ) -> Tensor:
        """``packed``, as far as the settings say brought to what was measured."""
        if self.settings.consistency == "auto":
            known = 0.0 if past is None else settled(past)
            return noise_aware_consistency(packed, frame, sigma, known)
        return enforce_consistency(packed, frame, self.settings.consistency)

    def _with_hot_part(
        self, packed: Tensor, frame: Tensor, part: tuple[slice, slice], checks: list[Tensor]
    ) -> Tensor:
        """``packed``, with what the model makes of a window of the frame at the window's own scale.

        Only what lies near the hot pixels is taken from there, with a soft edge.
        """
        window = frame[(..., *part)]
        lo, hi = window.amin(), window.amax()
        centre, half = (lo + hi) / 2, ((hi - lo) / 2).clamp_min(1e-6)  # flat windows too
        scaled = (window - centre) / half
        model = self._model
        is_alone = model.is_recurrent and model.sibling is None
        past = no_past(scaled, torch.zeros(())) if is_alone else None
        result = self._estimates(scaled, past, checks, self.settings.fidelity)[0] * half + centre
        near = greatest((window.abs() > model.input_limit).float(), 2)
        soft = F.avg_pool2d(F.pad(near, (1,) * 4, mode="replicate"), 3, 1)
        share = pack(F.interpolate(soft, scale_factor=SCALE, mode="bilinear"))
        packed = packed.clone()
        packed[(..., *part)] = torch.lerp(packed[(..., *part)], result, share)
        return packed

    def _noise_source(self, places: list[Tile], size: tuple[int, ...]) -> NoiseSource:
        """The draws for the tiles at ``places`` of a frame of ``size``."""
        shape = (1, self._model.noise_channels, *size)
        fields = self._noise_fields(shape, self.settings.seed, self.device)
        return lambda k: _cut(fields(k), places)


def check_frame(frame: np.ndarray) -> None:
    """Raise ValueError unless ``frame`` is one that can be super-resolved."""
    if not isinstance(frame, np.ndarray) or frame.ndim not in (2, 3) or 0 in frame.shape:
        shape = getattr(frame, "shape", type(frame).__name__)
        raise ValueError(f"a frame is an array (H, W) or (H, W, channels), got {shape}")
    if frame.dtype.type not in DTYPES or not frame.dtype.isnative:
        raise ValueError(f"a frame is uint8, uint16, int16 or float32, got {frame.dtype}")
    if min(frame.shape[:2]) < MIN_SIDE:
        raise ValueError(f"a frame has at least {MIN_SIDE}x{MIN_SIDE} pixels, got {frame.shape}")


def _check_steps(model: FrameModel, settings: FrameSettings) -> None:
    """Raise ValueError unless the model was trained with as many noise levels."""
    if settings.steps > model.max_steps:
        raise ValueError(
            f"steps must be 1 to {model.max_steps}, the noise levels that this model was trained "
            f"with (in int8 one), got {settings.steps}"
        )
    if settings.steps > 1 and isinstance(model, CompactModel) and settings.pipeline == "robust":
        log.warning(
            "steps %d: a compact model is a regression at one step; with more it was measured to "
            "lose, with 15 at fidelity 0 even to bicubic (docs/algorithm.md)", settings.steps,
        )  # fmt: skip


def _planes(frame: np.ndarray) -> list[np.ndarray]:
    """The channels of ``(H, W)`` or ``(H, W, C)``, one where all are equal."""
    if frame.ndim == 2:
        return [frame]
    count = 1 if (frame == frame[..., :1]).all() else frame.shape[2]
    return [np.ascontiguousarray(frame[..., channel]) for channel in range(count)]


def _cut(frame: Tensor, places: list[Tile]) -> Tensor:
    """The windows of ``frame (1, C, h, w)``, ``(n, C, th, tw)``."""
    windows = [place.cut(frame) for place in places]
    return windows[0] if len(windows) == 1 else torch.cat(windows)  # that of a frame is large


def _noise_fields(shape: tuple[int, ...], seed: int, device: str) -> NoiseSource:
    """The draws of whole frames, each kept from frame to frame: static scenes do not flicker."""
    return cache(lambda k: draw_noise(shape, seed, k).to(device))


def _to_counts(packed: Tensor, scale: int, found: CountRange, dtype: torch.dtype) -> Tensor:
    """``(1, 16, h, w)`` in network units -> counts ``(4h, 4w)``, or scaled down to ``(2h, 2w)``.

    Integers are rounded half to even and clipped.
    """
    large = unpack(packed)
    values = (large if scale == SCALE else halve(large))[0, 0]
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


def _image(result: Tensor, seen: Seen) -> np.ndarray:
    """The caller's own array of a result that the stream keeps: the one copy out."""
    if result.device.type == "cpu":
        host = result.clone()
    else:  # into memory that a GPU reaches by itself
        host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
        host.copy_(result, non_blocking=True)
        torch.cuda.current_stream(result.device).synchronize()
    image = host.numpy()
    return image if seen.invalid is None else put_back(image, seen.measured, seen.invalid)
