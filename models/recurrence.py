"""What a recurrent network is told of the frames before: the last estimate, as far as it holds.

With x_{t-1} the estimate of the frame before, W the warp to the present frame, y_t the measured
one, u its bicubic image, sigma the deviation of its noise and D the antialiased /4, the planes are

    g (W x_{t-1} - u)  packed,   4 (y_t - D W x_{t-1}),   g,   10 sigma,   1,   g W c_{t-1},
    g = exp(-m / (2 (0.1^2 + (2 sigma)^2))),  m = 3x3 mean of (y_t - D W x_{t-1})^2,
    c_t = min(0.9, 1 / (2 - g W c_{t-1})),

in network units; without a past all but sigma are 0. The gate g closes where the past does not
explain what is measured, and where the content lay outside the frame. After n frames that were
believed, c is n / (n + 1): what the past weighs in their mean with this one. A frame that the past
explains hardly anywhere, as after a cut, has none.

In noise a pixel is settled as far as the past leaves there what noise leaves, and the network's
estimate x is drawn on towards the past, half of the way at most:

    settled = g e(3, 2),  x + k (W x_{t-1} - x),  k = g min(e(3, 2), e(15, 1)) / 2,
    e(n, c) = sigma^2 / (sigma^2 + 10 max(0, m_n - c sigma^2)),  m_n: n x n mean of the same square.

Over 15x15 pixels it shows where the motion is wrong, over 3x3 a small target that was not there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from difiisr_models.compact import PAST_PLANES
from difiisr_models.motion import dense_flow, picture_for_motion, standing_share, warp
from difiisr_models.radiometry import CountRange
from difiisr_models.resample import PHASES, SCALE, downsample, pack, unpack, upsample

GATE = PHASES + 1
"""Which of the planes is the gate: how far the past is trusted, 0..1."""

_TRUSTED = 0.1  # network units that a good past disagrees by: the estimate is none too exact
_DEVIATIONS = 2.0  # of the noise
_RESIDUAL_SCALE, _SIGMA_SCALE = 4.0, 10.0  # bring all planes to like magnitudes

_STANDS = 0.3  # of the edges: a camera that moves leaves next to none of them in place
_ALONE = 0.03  # network units of noise, from which on a first frame is none for the sibling
_HALF, _WRONG = 0.5, 10.0  # of the way to the past; what its error counts against noise
_TARGET, _MOTION = (3, 2.0), (15, 1.0)  # n and c of e(n, c) that shows it
_LEAST_GATE = 0.2  # mean over the frame, below which there is no past
_LARGEST_WEIGHT = 0.9  # of the past: that of nine frames, as many as training unrolls


@dataclass(frozen=True)
class Past:
    """What a stream remembers for a recurrent model: 68 bytes for each pixel of the camera.

    Attributes:
        estimate: of the last frame, after the consistency step: packed ``(1, 16, h, w)``.
        weight: what it deserves beside the next frame, ``(1, 1, h, w)``, see :func:`next_weight`.
        range: whose network units it is in.
    """

    estimate: Tensor
    weight: Tensor
    range: CountRange


def planes_of(
    past: Past | None,
    lr: Tensor,
    shown: CountRange,
    sigma: float,
    has_sibling: bool = False,
) -> Tensor | None:
    """What the network is told for a frame of a stream; None where its sibling does better.

    The past holds nothing at the first frame and after a cut, nor where the camera stands and
    nothing is noisy. A recurrent network is weaker there than one for single frames.

    Motion is found between the frame and the last estimate, scaled down: it has less noise than
    what was measured then.

    Args:
        past: of the stream, None at its first frame.
        lr: ``(1, 1, h, w)`` the measured frame.
        shown: whose network units it is in.
        sigma: standard deviation of the noise, same unit.
        has_sibling: there is a network for single frames.

    Returns:
        ``(1, 21, h, w)``, or None.
    """
    told = torch.full((1, 1, 1, 1), sigma, device=lr.device)
    alone = None if has_sibling and sigma < _ALONE else no_past(lr, told)
    if past is None:
        return alone
    factor = past.range.half_span * shown.gain
    offset = (past.range.centre - shown.centre) * shown.gain
    before = past.estimate * factor + offset
    frames = (x[0, 0].cpu().numpy() for x in (lr, downsample(before)))
    now, last = (picture_for_motion(frame, sigma) for frame in frames)
    flow = dense_flow(now, last, sigma)
    if has_sibling and sigma == 0 and standing_share(now, flow) > _STANDS:
        return None
    moved = torch.from_numpy(flow)[None].to(lr.device)
    planes = past_planes(before, past.weight, moved, lr, told)
    is_cut = planes[:, GATE].mean() < _LEAST_GATE
    return alone if is_cut else planes


def past_planes(before: Tensor, weight: Tensor, flow: Tensor, lr: Tensor, sigma: Tensor) -> Tensor:
    """The planes of a frame that has a past.

    Args:
        before: the last estimate, packed ``(B, 16, h, w)``, in network units of this frame.
        weight: of :func:`next_weight` then, ``(B, 1, h, w)``.
        flow: ``(B, 4h, 4w, 2)`` of :func:`motion.dense_flow`.
        lr: ``(B, 1, h, w)`` the measured frame.
        sigma: ``(B, 1, 1, 1)`` standard deviation of its noise.

    Returns:
        ``(B, 21, h, w)``.
    """
    warped, inside = warp(unpack(before), flow)
    inside = 1 - F.max_pool2d(1 - inside, SCALE)
    packed = pack(warped)
    residual = (lr - downsample(packed)) * inside
    around = F.avg_pool2d(F.pad(residual.square(), (1,) * 4, mode="replicate"), 3, 1)
    spread = _TRUSTED**2 + (_DEVIATIONS * sigma).square()
    gate = inside * torch.exp(-around / (2 * spread))
    first, second = (slice(SCALE // 2 + k, None, SCALE) for k in (-1, 0))  # in its middle
    coarse = (flow[:, first, first] + flow[:, second, second]) / (2 * SCALE)
    carried = gate * warp(weight, coarse)[0].clamp(0, _LARGEST_WEIGHT)
    known = (
        _RESIDUAL_SCALE * residual, gate, (_SIGMA_SCALE * sigma).expand_as(lr),
        torch.ones_like(lr), carried,
    )  # fmt: skip
    return torch.cat((gate * (packed - upsample(lr)), *known), dim=1)


def settled(planes: Tensor) -> Tensor:
    """How far the past can stand for a pixel in noise, ``(B, 1, h, w)`` of 0 to 1; 0 without noise.

    ``planes``: what the network was told, ``(B, 21, h, w)``.
    """
    return planes[:, GATE, None] * _explained(planes, *_TARGET)


def drawn_to_past(mean: Tensor, planes: Tensor, lr: Tensor) -> Tensor:
    """What brings the network's estimate nearer to the past, in noise: k (W x_{t-1} - x).

    Args:
        mean: x, ``(B, 16, h, w)``.
        planes: what the network was told, ``(B, 21, h, w)``.
        lr: ``(B, 1, h, w)`` the measured frame.

    Returns:
        What is to be added, ``(B, 16, h, w)``; zero without noise or without a past.
    """
    share = _HALF * torch.minimum(_explained(planes, *_TARGET), _explained(planes, *_MOTION))
    return share * (planes[:, :PHASES] + planes[:, GATE, None] * (upsample(lr) - mean))


def _explained(planes: Tensor, window: int, by_chance: float) -> Tensor:
    """e(window, by_chance), ``(B, 1, h, w)``: 1 where what the past leaves is noise alone."""
    _, residual, _, sigma, _, _ = planes.split((PHASES, 1, 1, 1, 1, 1), dim=1)
    variance = (sigma / _SIGMA_SCALE).square()
    square = F.pad((residual / _RESIDUAL_SCALE).square(), (window // 2,) * 4, mode="reflect")
    power = F.avg_pool2d(F.avg_pool2d(square, (window, 1), 1), (1, window), 1)
    wrong = (power - by_chance * variance).clamp_min(0)
    return variance / (variance + _WRONG * wrong).clamp_min(1e-12)


def next_weight(planes: Tensor) -> Tensor:
    """c_t, what the estimate of a frame that was told ``planes`` deserves beside the next one."""
    return (1 / (2 - planes[:, -1:])).clamp_max(_LARGEST_WEIGHT)


def no_past(lr: Tensor, sigma: Tensor) -> Tensor:
    """The planes of the first frame of a stream; arguments as of :func:`past_planes`."""
    planes = lr.new_zeros(len(lr), PAST_PLANES, *lr.shape[-2:])
    planes[:, PHASES + 2 : PHASES + 3] = _SIGMA_SCALE * sigma
    return planes
