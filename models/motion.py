"""Where the scene of this frame was in the frame before: dense, sub-pixel, from measured frames.

A flow ``(H, W, 2)`` float32 holds, for each pixel of the present image, how far right (x) and down
(y) its content lay in the image before, in pixels: ``before[p + flow[p]]`` is ``now[p]``.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from difiisr_models.resample import SCALE

_MISSING: ModuleNotFoundError | None = None
try:
    import cv2
except ModuleNotFoundError as error:  # a clear text where a model needs it, see require_opencv
    _MISSING = error

_UPSAMPLED = 2  # times: aliasing shifts what is found on measured pixels towards whole ones
_LIMIT = 1.1  # network units that are shown as black and as white
_NOISY = 0.012  # network units of noise, from which on the finest level fits noise
_BLUR, _NOISY_BLUR = 1.0, 0.7  # standard deviation, upsampled pixels
_WINDOW = 15  # upsampled pixels, over which one motion is compared with another
_GAIN, _CLEAN_GAIN = 0.75, 0.95  # of the difference of standing still: above it nothing has moved


def require_opencv() -> None:
    """Raise ModuleNotFoundError that says what to install, unless OpenCV is there."""
    if _MISSING is not None:
        raise ModuleNotFoundError(
            "a recurrent model needs OpenCV for the motion of the scene: pip install "
            "opencv-python-headless (extra 'time'), or apt install python3-opencv"
        ) from _MISSING


def picture_for_motion(frame: np.ndarray, sigma: float) -> np.ndarray:
    """What motion is looked for in.

    Args:
        frame: ``(h, w)`` float32 in network units, without most of its noise.
        sigma: standard deviation of the noise that it had, same unit.

    Returns:
        ``(2h, 2w)`` uint8, slightly blurred.
    """
    h, w = frame.shape
    size = (_UPSAMPLED * w, _UPSAMPLED * h)
    gain = 127.5 / _LIMIT
    grey = cv2.resize(frame * np.float32(gain), size, interpolation=cv2.INTER_CUBIC)
    grey = cv2.GaussianBlur(grey, (0, 0), _BLUR if sigma < _NOISY else _NOISY_BLUR)
    return np.rint(grey + np.float32(127.5)).clip(0, 255).astype(np.uint8)


def dense_flow(now: np.ndarray, before: np.ndarray, sigma: float) -> np.ndarray:
    """The flow between two frames, at four times their resolution.

    Dense inverse search (Kroeger et al., ECCV 2016) in OpenCV. Where moving explains
    this frame little better than standing still, nothing has moved.

    Args:
        now: of :func:`picture_for_motion`, ``(2h, 2w)``.
        before: that of the frame before.
        sigma: as there.

    Returns:
        ``(4h, 4w, 2)`` float32 in pixels of the large image.
    """
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    search.setFinestScale(0 if sigma < _NOISY else 1)
    flow = search.calc(now, before, None)  # type: ignore[call-overload]  # its stubs want a flow
    moved = cv2.remap(  # type: ignore[call-overload]  # its stubs want a second map
        before, _grid(now.shape) + flow, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    moving, standing = (
        cv2.boxFilter(cv2.absdiff(x, now), cv2.CV_32F, (_WINDOW, _WINDOW)) for x in (moved, before)
    )
    flow[moving > (_GAIN if sigma else _CLEAN_GAIN) * standing] = 0
    ratio = SCALE // _UPSAMPLED
    size = tuple(ratio * n for n in reversed(now.shape))
    return cv2.resize(flow * np.float32(ratio), size, interpolation=cv2.INTER_LINEAR)


def warp(image: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """The image before, as it lies in the present one.

    Args:
        image: ``(B, 1, H, W)``.
        flow: ``(B, H, W, 2)`` pixels.

    Returns:
        ``(B, 1, H, W)`` bicubic, and where the content lay inside the image, ``(B, 1, H, W)`` of 0
        and 1.
    """
    height, width = image.shape[-2:]
    y = torch.arange(height, device=image.device, dtype=image.dtype)[:, None] + flow[..., 1]
    x = torch.arange(width, device=image.device, dtype=image.dtype) + flow[..., 0]
    inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    grid = torch.stack((x * (2 / (width - 1)) - 1, y * (2 / (height - 1)) - 1), dim=-1)
    warped = F.grid_sample(image, grid, "bicubic", padding_mode="border", align_corners=True)
    return warped, inside[:, None].to(image.dtype)


def _grid(shape: tuple[int, int]) -> np.ndarray:
    """Coordinates (x, y) of each pixel, ``(H, W, 2)`` float32."""
    y, x = np.indices(shape, dtype=np.float32)
    return np.stack((x, y), axis=-1)
