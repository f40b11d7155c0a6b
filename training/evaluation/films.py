"""How good a model is on a stream: where the truth is known, and where nobody knows it.

Arrays are ``(H, W)`` counts; a film is a list of frames of one size, in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from difiisr_models import Stream
from difiisr_models.motion import dense_flow, picture_for_motion, require_opencv, warp
from difiisr_models.noise import denoise
from difiisr_models.radiometry import robust_range
from difiisr_models.resample import SCALE, downsample, pack
from difiisr_training.evaluation.inputs import full_range, make_pair, to_dtype
from difiisr_training.evaluation.measures import Flicker
from difiisr_training.evaluation.metrics import psnr

Upscale = Callable[[np.ndarray], np.ndarray]

PAN_SPEEDS, PAN_TURN = (0.5, 1.0, 2.5, 4.0, 6.0, 8.0), 1.1
"""Pixels a frame, of pans in turn; radians between the directions of one pan and the next."""

_EXPLAINED = 0.01  # of the span: where the truth moves as the flow says
_WAKE = 3  # frames that an object has left a place for, at most
_LEAST_SHARE = 0.05  # of the pixels of a pair of frames, that must have moved for it to count


class FilmScore(NamedTuple):
    """Of one model on one film; what there is nothing to measure for is NaN.

    ``warping``: root mean square of SR_t - W SR_{t-1} over that of the truth, W the motion that is
    found in the frames without noise, where it explains the truth to 1 % of the span. ``wake``:
    PSNR where an object was in one of the last 3 frames and is not now.
    """

    psnr: list[float]  # of each frame, dB
    flicker: float  # mean of measures.Flicker
    warping: float
    wake: float  # dB


def low_resolution(film: Sequence[np.ndarray], noise: float, seed: int = 0) -> list[np.ndarray]:
    """What a camera with a quarter of the resolution sees.

    ``noise``: its standard deviation, percent of the span of the first frame.
    """
    rng, frames = np.random.default_rng(seed), []
    sigma = noise / 100 * robust_range(film[0]).span
    for lr, _ in (make_pair(frame) for frame in film):
        noisy = lr + rng.normal(0, sigma, lr.shape) if sigma else lr
        frames.append(to_dtype(np.asarray(noisy, np.float32), lr.dtype))
    return frames


def pan_over(
    still: np.ndarray, speed: float, angle: float, length: int, side: int = 256
) -> list[np.ndarray]:
    """A film of ``length`` frames of ``side`` pixels: whole pixels of a still, back at its edges.

    ``speed``: mean, pixels a frame; ``angle``: of the motion, radians; ``side``: less for small
    stills.
    """
    side = min(side, *(n - 8 for n in still.shape)) // 4 * 4
    path = np.arange(1, length + 1)[:, None] * speed * np.array((np.sin(angle), np.cos(angle)))
    room = np.array(still.shape) - side
    place = np.rint(path).astype(int) % (2 * room)
    place = np.minimum(place, 2 * room - place)
    return [still[top : top + side, left : left + side] for top, left in place]


def pan_to(still: np.ndarray, length: int, step: tuple[int, int] = (1, 3)) -> list[np.ndarray]:
    """The frames of a pan before it shows the still; its edges are repeated beyond them.

    ``step``: pixels down and right from one frame to the next.
    """
    (h, w), (down, right) = still.shape, step
    around = np.pad(still, ((0, down * length), (0, right * length)), "edge")
    return [
        around[down * n : down * n + h, right * n : right * n + w] for n in range(length, 0, -1)
    ]


def with_hot_object(
    film: Sequence[np.ndarray], speed: float = 6.0
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A hot disk crosses the film from left to right; where its wake is in each frame, bool."""
    shown, (h, w), radius = robust_range(film[0]), film[0].shape, film[0].shape[0] / 12
    y, x = np.indices((h, w))
    inside = [np.hypot(y - h / 2, x - speed * t) < radius for t in range(len(film))]
    hot = to_dtype(np.array(shown.hi + 0.2 * shown.span, np.float32), film[0].dtype)
    frames = [np.where(mask, hot, frame) for mask, frame in zip(inside, film, strict=True)]
    wakes = []
    for t, now in enumerate(inside):
        before = inside[max(0, t - _WAKE) : t]
        wakes.append(np.any([*before, np.zeros_like(now)], axis=0) & ~now)
    return frames, wakes


def judge_film(
    upscale: Upscale,
    film: Sequence[np.ndarray],
    seen: Sequence[np.ndarray],
    wakes: Sequence[np.ndarray] | None = None,
    first: int = 3,
) -> FilmScore:
    """Run a model over a film.

    Args:
        upscale: the model; its first call begins a stream.
        film: high resolution.
        seen: low resolution that it is given, see :func:`low_resolution`.
        wakes: of an object, see :func:`with_hot_object`.
        first: frame from which on all but ``psnr`` counts.
    """
    _, span = full_range(film[0])
    shown, flicker = robust_range(film[0]), Flicker()
    results = [upscale(lr) for lr in seen]
    values = [psnr(sr, hr, span) for sr, hr in zip(results, film, strict=True)]
    flickers = [flicker(sr, lr)[0] for sr, lr in zip(results, seen, strict=True)]
    pictures = [picture_for_motion(shown.normalise(x), 0.0) for x in low_resolution(film, 0)]
    moved, true, wake = [], [], []
    for t in range(max(1, first), len(film)):
        flow = dense_flow(pictures[t], pictures[t - 1], 0.0)
        truth = film[t] - _warped(film[t - 1], flow)
        steady = np.abs(truth) < _EXPLAINED * shown.span
        moved.append(np.square(results[t] - _warped(results[t - 1], flow))[steady].mean())
        true.append(np.square(truth)[steady].mean())
        if wakes is not None and wakes[t].any():
            wake.append(psnr(results[t][wakes[t]], film[t][wakes[t]], span))
    settled = flickers[first:]
    return FilmScore(
        values,
        float(np.nanmean(settled)) if np.isfinite(settled).any() else math.nan,
        float(np.sqrt(np.mean(moved) / max(np.mean(true), 1e-12))) if moved else math.nan,
        float(np.mean(wake)) if wake else math.nan,
    )


def _warped(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    batch = torch.from_numpy(image.astype(np.float32))[None, None]
    return warp(batch, torch.from_numpy(flow)[None])[0][0, 0].numpy()


def next_frame_errors(frames: Sequence[np.ndarray], upscalers: Sequence[Upscale]) -> np.ndarray:
    """How well a super-resolved frame foretells the next one, ``(models, pairs)``; without truth.

        error = mean (D W SR_t - LR_t+1)^2 + 1/8 mean (W SR_t - SR_t+1)^2

    over what moved by a sensor pixel or more, with W the motion of the scene. Noise and fixed
    pattern of LR_t+1 are not those that SR_t was made of, so that they add the same to the error of
    every model, on average (as in Noise2Noise; Lehtinen et al., ICML 2018); what SR_t keeps of its
    own adds to its own. D sees no detail of the finest scales; made-up detail does not move with
    the scene, which the second term sees. It favours what is blurred, the first does not: hence the
    1/8, a choice. In units of half the first frame's range; a pair of which too little moved is
    left out.

    Args:
        frames: ``(h, w)`` counts, consecutive, of one size.
        upscalers: each makes ``(4h, 4w)`` counts of a frame, called in their order.
    """
    require_opencv()
    shown, stream = robust_range(frames[0]), Stream()
    errors, made = [], list[torch.Tensor]()
    picture: np.ndarray | None = None
    for frame in frames:
        now = [torch.from_numpy(shown.normalise(make(frame)))[None, None] for make in upscalers]
        stream.begin_frame(frame, None)
        sigma = stream.see(frame, 0, False).noise * shown.gain
        lr = torch.from_numpy(shown.normalise(frame))[None, None]
        before, picture = picture, picture_for_motion(denoise(lr, sigma)[0, 0].numpy(), sigma)
        if before is not None:
            flow = torch.from_numpy(dense_flow(picture, before, sigma))[None]
            moved = (flow.square().sum(-1) >= SCALE**2).float()[:, None]
            found = [warp(image, flow) for image in made]
            inside = moved * found[0][1]
            judged = downsample(pack(inside)) > 0.99
            if judged.float().mean() >= _LEAST_SHARE:  # var: but for a drift of the camera's level
                measured = [(downsample(pack(image)) - lr)[judged].var() for image, _ in found]
                made_up = [(a - b)[inside > 0].var() for (a, _), b in zip(found, now, strict=True)]
                errors.append([float(a + b / 8) for a, b in zip(measured, made_up, strict=True)])
        made = now
    return np.array(errors).reshape(-1, len(upscalers)).T


def surely_better(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether the paired errors ``after`` are smaller by more than two standard errors."""
    gain = before - after
    return len(gain) > 1 and bool(gain.mean() > 2 * gain.std(ddof=1) / np.sqrt(len(gain)))
