"""What a recurrent network is told of the frames before: the last estimate, as far as it holds.

With x_{t-1} the estimate of the frame before, W the warp to the present frame, y_t the measured
one, u its bicubic image, sigma the deviation of its noise and D the antialiased /4, the planes are

    g (W x_{t-1} - u)  packed,   4 (y_t - D W x_{t-1}),   g,   10 sigma,   1,
    g = exp(-m / (2 (0.1^2 + (2 sigma)^2))),  m = 3x3 mean of (y_t - D W x_{t-1})^2,

in network units; without a past all but sigma are 0. The gate g closes where the past does not
explain what is measured, and where the content lay outside the frame.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from difiisr_models.compact import PAST_PLANES
from difiisr_models.motion import warp
from difiisr_models.resample import PHASES, SCALE, downsample, pack, unpack, upsample

_TRUSTED = 0.1  # network units that a good past disagrees by: the estimate is none too exact
_DEVIATIONS = 2.0  # of the noise
_RESIDUAL_SCALE, _SIGMA_SCALE = 4.0, 10.0  # bring all planes to like magnitudes


def past_planes(before: Tensor, flow: Tensor, lr: Tensor, sigma: Tensor) -> Tensor:
    """The planes of a frame that has a past.

    Args:
        before: the last estimate, packed ``(B, 16, h, w)``, in network units of this frame.
        flow: ``(B, 4h, 4w, 2)`` of :func:`motion.dense_flow`.
        lr: ``(B, 1, h, w)`` the measured frame.
        sigma: ``(B, 1, 1, 1)`` standard deviation of its noise.

    Returns:
        ``(B, 20, h, w)``.
    """
    warped, inside = warp(unpack(before), flow)
    inside = 1 - F.max_pool2d(1 - inside, SCALE)
    packed = pack(warped)
    residual = (lr - downsample(packed)) * inside
    around = F.avg_pool2d(F.pad(residual.square(), (1,) * 4, mode="replicate"), 3, 1)
    spread = _TRUSTED**2 + (_DEVIATIONS * sigma).square()
    gate = inside * torch.exp(-around / (2 * spread))
    known = (
        _RESIDUAL_SCALE * residual, gate, (_SIGMA_SCALE * sigma).expand_as(lr),
        torch.ones_like(lr),
    )  # fmt: skip
    return torch.cat((gate * (packed - upsample(lr)), *known), dim=1)


def no_past(lr: Tensor, sigma: Tensor) -> Tensor:
    """The planes of the first frame of a stream; arguments as of :func:`past_planes`."""
    planes = lr.new_zeros(len(lr), PAST_PLANES, *lr.shape[-2:])
    planes[:, PHASES + 2 : PHASES + 3] = _SIGMA_SCALE * sigma
    return planes
