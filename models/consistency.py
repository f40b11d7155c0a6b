"""The consistency step: what was measured stays measured, as far as the sensor's noise allows.

Of all images x' with D x' = y_0, the one nearest to the network's output x is

    x' = x + D^T (D D^T)^{-1} (y_0 - D x),

an orthogonal projection: where y_0 = D x_true it can only bring x closer to x_true, whatever the
network. D works along rows and columns apart, D X = R_h X R_w^T, and so does the inverse:
(D D^T)^{-1} Y = (R_h R_h^T)^{-1} Y (R_w R_w^T)^{-1}, exact up to the borders.

A noisy measurement is y_0 = D x_true + n. The pull towards it that keeps the least expected error
is then weaker, see :func:`noise_aware_consistency`; bounds on the result are met by
:func:`project_within`. Several measurements are used together by :func:`consistent_with_frames`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from difiisr_models.motion import warp
from difiisr_models.resample import (
    down_matrix,
    downsample,
    downsample_adjoint,
    kept,
    pack,
    tf32_products,
    unpack,
)

_LONGEST_AXIS = 1280  # of the usual cameras, low-resolution pixels: the inverse has its square
_WINDOW = 7  # pixels on a side, over which the network's error is judged
_DEVIATIONS = 2.0  # of the noise, that a result may disagree with a measured pixel by
_SETTLED = 1.0  # deviations more, where frames before agree with the result
_BY_CHANCE = 0.3  # times sigma^2: what the mean of 7x7 squares of noise is above it once in 15
_MOST_STEPS = 200
_PATIENCE, _PROGRESS = 20, 0.9  # steps in which the worst disagreement has to fall to that share
_MARGIN = 20  # pixels; so far away the inverse's values have fallen to 1e-10 of the largest


def enforce_consistency(packed: Tensor, lr: Tensor, strength: float = 1.0) -> Tensor:
    """Move ``packed`` towards the images whose antialiased /4 is ``lr``.

    Args:
        packed: ``(B, 16, h, w)`` super-resolved image, any unit.
        lr: ``(B, 1, h, w)`` measured image in the same unit.
        strength: 1 projects (downsampled output = input), 0 leaves ``packed`` as it is; between
            the two, that share of the disagreement is removed.

    Returns:
        ``(B, 16, h, w)``.

    Raises:
        ValueError: ``strength`` outside [0, 1].
    """
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"consistency must lie in 0..1, got {strength}")
    if strength == 0.0:
        return packed
    return _pulled(packed, strength * (lr - downsample(packed)))


def noise_aware_consistency(
    packed: Tensor, lr: Tensor, sigma: float, settled: Tensor | float = 0.0
) -> Tensor:
    """Move ``packed`` towards ``lr`` as far as noise of deviation ``sigma`` allows.

    With r = y_0 - D x = e + n, of which e is the error of D x (variance s^2, unknown) and n the
    noise (variance sigma^2), the estimate D x + w r of D x_true has the error (1 - w) e - w n, in
    the mean square (1 - w)^2 s^2 + w^2 sigma^2: least for

        w = s^2 / (s^2 + sigma^2),  s^2 = max(0, mean of r^2 over 7x7 pixels - sigma^2).

    No pixel of the result disagrees with the measurement by more than 2 sigma: beyond that it is
    pulled by |r| - 2 sigma at least. Without noise w = 1, the projection.

    Where the result rests on frames before (``settled``, u), it has less noise than this frame,
    and what is left of r by chance would only bring that back: s^2 is then what the mean is above
    (1 + 0.3 u) sigma^2, and the limit (2 + u) sigma.

    Args:
        packed: ``(B, 16, h, w)`` super-resolved image, any unit.
        lr: ``(B, 1, h, w)`` measured image in the same unit.
        sigma: standard deviation of its noise, same unit, 0 or more.
        settled: u, ``(B, 1, h, w)`` of 0 to 1, see ``recurrence.settled``.

    Returns:
        ``(B, 16, h, w)``.
    """
    if sigma <= 0:
        return enforce_consistency(packed, lr)
    residual = lr - downsample(packed)
    around = F.pad(residual * residual, (_WINDOW // 2,) * 4, mode="reflect")
    power = F.avg_pool2d(around, _WINDOW, 1)
    noise = sigma * sigma * (1 + _BY_CHANCE * settled)
    share = (1 - noise / power.clamp_min(1e-20)).clamp_min(0)
    limit = sigma * (_DEVIATIONS + _SETTLED * settled)
    size = torch.maximum(share * residual.abs(), residual.abs() - limit)
    return _pulled(packed, residual.sign() * size)


def consistent_with_frames(
    packed: Tensor, frames: Tensor, flows: Tensor, weights: Tensor, steps: int = 12
) -> Tensor:
    """The image near ``packed`` that agrees with the last K measurements where they lie.

    argmin_x |x - f|^2 + sum_k w_k |D W_k x - y_k|^2, by conjugate gradients on its normal equation

        (1 + sum_k W_k^T D^T w_k D W_k) (x - f) = sum_k W_k^T D^T w_k (y_k - D W_k f).

    Of use to any model, plain interpolation included: what one frame aliases away, the next one
    measures.

    Args:
        packed: f, ``(1, 16, h, w)``, any unit.
        frames: y_k ``(K, 1, h, w)``, same unit; the present one may be among them.
        flows: ``(K, 4h, 4w, 2)``, for each pixel of frame k where its content lies in the present
            one, of ``motion.dense_flow(frame k, present)``; zero for the present one.
        weights: w_k ``(K, 1, h, w)``, 0 where frame k says nothing; against the 1 of f, so the
            squared error of f over that of frame k (its noise, and its registration).
        steps: of the conjugate gradients.

    Returns:
        ``(1, 16, h, w)``.
    """
    with torch.inference_mode(False), torch.enable_grad():
        f, y, flow, w = (x.detach().clone() for x in (packed, frames, flows, weights))

        def measure(x: Tensor) -> Tensor:
            moved, _ = warp(unpack(x).expand(len(y), -1, -1, -1), flow)
            return downsample(pack(moved))

        predicted, transposed, *_ = torch.func.vjp(measure, f)
        offset, residual = torch.zeros_like(f), transposed(w * (y - predicted))[0]
        direction, power = residual, residual.square().sum()
        for _ in range(steps):
            applied = direction + transposed(w * measure(direction))[0]
            step = power / (direction * applied).sum().clamp_min(1e-30)
            offset, residual = offset + step * direction, residual - step * applied
            before, power = power, residual.square().sum()
            direction = residual + power / before.clamp_min(1e-30) * direction
        return (f + offset).detach()


def project_within(
    packed: Tensor, lr: Tensor, low: Tensor, high: Tensor, tolerance: Tensor
) -> Tensor:
    """The image within bounds, near ``packed``, whose D is ``lr`` as far as there is one.

    min_x |D x - y|^2 in the metric (D D^T)^{-1}, low <= x <= high, by projected gradient steps with
    momentum (FISTA; Beck & Teboulle 2009), begun at ``packed``; each step costs what
    :func:`enforce_consistency` costs, on the part of the frame that needs it. Where there is no
    such image, they end once the worst disagreement no longer falls.

    Args:
        packed: ``(1, 16, h, w)``.
        lr: ``(1, 1, h, w)``, same unit.
        low: least values, ``(1, 1, h, w)``: one for each 4x4 block.
        high: greatest values, likewise.
        tolerance: largest disagreement to stop at, likewise.

    Returns:
        ``(1, 16, h, w)`` within the bounds.
    """
    within = torch.clamp(packed, low, high)
    wrong = (lr - downsample(within)).abs() > tolerance
    if not bool(wrong.any()):
        return within
    rows, columns = (
        _around(wrong.any(dim=dim).flatten().nonzero(), n)
        for dim, n in ((3, lr.shape[2]), (2, lr.shape[3]))
    )
    part = (..., rows, columns)
    x, y, lo, hi, allowed = (each[part] for each in (within, lr, low, high, tolerance))
    # At the rim the part is not the frame: there D of the part is not D of the frame.
    y = y + torch.where(wrong[part], 0, downsample(x) - y) if x.shape != within.shape else y
    v, t, last = x, 1.0, math.inf
    for step in range(_MOST_STEPS):
        residual = y - downsample(v)
        worst = float((residual.abs() / allowed).amax())
        if worst <= 1:
            break
        if step % _PATIENCE == 0:
            if worst > _PROGRESS * last:
                break
            last = worst
        before, x = x, torch.clamp(_pulled(v, residual), lo, hi)
        t, t_before = (1 + math.sqrt(1 + 4 * t * t)) / 2, t
        v = torch.clamp(x + (t_before - 1) / t * (x - before), lo, hi)
    within = within.clone()
    within[part] = v
    return within


def _around(indices: Tensor, size: int) -> slice:
    """From the first to the last of ``indices``, with what influences them, inside ``size``."""
    return slice(max(0, int(indices[0]) - _MARGIN), min(size, int(indices[-1]) + 1 + _MARGIN))


def _pulled(packed: Tensor, residual: Tensor) -> Tensor:
    """The nearest image to ``packed`` whose D is larger by ``residual (B, 1, h, w)``."""
    with tf32_products(False):
        correction = _solve(_solve(residual).mT).mT
    return downsample_adjoint(correction).add_(packed)  # in place: large frames are mostly memory


def _solve(y: Tensor) -> Tensor:
    """Y (R R^T)^{-1} along the last axis, a long one in pieces with margins."""
    n, pieces, each = y.shape[-1], [], _LONGEST_AXIS - 2 * _MARGIN
    if n <= _LONGEST_AXIS:
        return y @ _inverse_gram(n, y.device, y.dtype)
    for first in range(0, n, each):
        last = min(n, first + each)
        begin, end = max(0, first - _MARGIN), min(n, last + _MARGIN)
        inverse = _inverse_gram(end - begin, y.device, y.dtype)
        pieces.append(y[..., begin:end] @ inverse[:, first - begin : last - begin])
    return torch.cat(pieces, dim=-1)


@kept
def _inverse_gram(n: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(R R^T)^{-1} of ``n`` pixels, ``(n, n)``, symmetric."""
    matrix = down_matrix(n)
    return torch.tensor(np.linalg.inv(matrix @ matrix.T), device=device, dtype=dtype)
