"""How well a super-resolved frame foretells the next one: a measure that needs no HR.

    error = mean (D W SR_t - LR_t+1)^2 + 1/8 mean (W SR_t - SR_t+1)^2

over what moved by a sensor pixel or more, with W the motion of the scene. Noise and fixed pattern
of LR_t+1 are not those that SR_t was made of, so that they add the same to the error of every
model, on average (as in Noise2Noise; Lehtinen et al., ICML 2018); what SR_t keeps of its own adds
to its own. D sees no detail of the finest scales; made-up detail does not move with the scene,
which the second term sees. It favours what is blurred, the first does not: hence the 1/8, a choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from difiisr_models import Stream
from difiisr_models.motion import dense_flow, picture_for_motion, require_opencv, warp
from difiisr_models.noise import denoise
from difiisr_models.radiometry import robust_range
from difiisr_models.resample import SCALE, downsample, pack

LEAST_SHARE = 0.05
"""Of the pixels of a pair, that must have moved for it to count."""


def next_frame_errors(
    frames: Sequence[np.ndarray], upscalers: Sequence[Callable[[np.ndarray], np.ndarray]]
) -> np.ndarray:
    """Mean squared error of each model on each pair of neighbours, ``(models, pairs)``.

    In units of half the first frame's range; a pair of which too little moved is left out.

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
            if judged.float().mean() >= LEAST_SHARE:  # var: but for a drift of the camera's level
                measured = [(downsample(pack(image)) - lr)[judged].var() for image, _ in found]
                made_up = [(a - b)[inside > 0].var() for (a, _), b in zip(found, now, strict=True)]
                errors.append([float(a + b / 8) for a, b in zip(measured, made_up, strict=True)])
        made = now
    return np.array(errors).reshape(-1, len(upscalers)).T


def surely_better(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether the paired errors ``after`` are smaller by more than two standard errors."""
    gain = before - after
    return len(gain) > 1 and bool(gain.mean() > 2 * gain.std(ddof=1) / np.sqrt(len(gain)))
