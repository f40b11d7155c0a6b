"""Where the scene of this frame was in the frame before: dense, sub-pixel, from measured frames.

A flow ``(H, W, 2)`` float32 holds, for each pixel of the present image, how far right (x) and down
(y) its content lay in the image before, in pixels: ``before[p + flow[p]]`` is ``now[p]``.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from difiisr_models.resample import SCALE, kept

_MISSING: ModuleNotFoundError | None = None
try:
    import cv2
except ModuleNotFoundError as error:  # a clear text where a model needs it, see require_opencv
    _MISSING = error

_UPSAMPLED = 2  # times: aliasing shifts what is found on measured pixels towards whole ones
_LIMIT = 1.1  # network units that are shown as black and as white
_BLUR, _NOISY_BLUR = 1.0, 0.7  # standard deviation, upsampled pixels; the second from
_NOISY = 0.012  # network units of noise on
_WINDOW = 15  # upsampled pixels, over which one motion is compared with another
_GAIN, _CLEAN_GAIN = 0.75, 0.95  # of what the camera's motion leaves: above it, that holds
_SOME = 4  # of so many pixels along each axis, one is enough for a median
_BETTER = 1.02  # times as much is left by standing still, where the camera moves
_CORNERS, _FLAT = 1_500, 0.6  # places looked at for corners; share of them that are none
_FITTED, _ITERATIONS = 20_000, 8  # pixels that the camera's motion is fitted to, and how often


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
        frame: ``(h, w)`` float32 in network units.
        sigma: standard deviation of its noise, same unit.

    Returns:
        ``(2h, 2w)`` uint8, slightly blurred.
    """
    h, w = frame.shape
    size = (_UPSAMPLED * w, _UPSAMPLED * h)
    gain = 127.5 / _LIMIT
    grey = cv2.resize(frame * np.float32(gain), size, interpolation=cv2.INTER_CUBIC)
    grey = cv2.GaussianBlur(grey, (0, 0), _BLUR if sigma < _NOISY else _NOISY_BLUR)
    return (grey + np.float32(128)).clip(0, 255).astype(np.uint8)


def dense_flow(now: np.ndarray, before: np.ndarray, sigma: float) -> np.ndarray:
    """The flow between two frames, at four times their resolution.

    The camera moves, and objects do by themselves: dense inverse search (Kroeger et al., ECCV 2016)
    in OpenCV finds both, and in noise much that is neither. It holds where it explains this frame
    clearly better than the motion of the camera; if that explains it no better than standing
    still, the camera stands.

    Args:
        now: of :func:`picture_for_motion`, ``(2h, 2w)``.
        before: that of the frame before.
        sigma: as there.

    Returns:
        ``(4h, 4w, 2)`` float32 in pixels of the large image.
    """
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    search.setFinestScale(1)  # that of the camera
    search.setVariationalRefinementIterations(0)  # half of its time, for 0.03 dB
    flow = search.calc(now, before, None)  # type: ignore[call-overload]  # its stubs want a flow
    camera, grid, linear = camera_flow(now, before, flow), _grid(now.shape), cv2.INTER_LINEAR
    moved, panned = (_difference(now, _sampled(before, grid + x, linear)) for x in (flow, camera))
    standing = _difference(now, before)
    if np.median(standing[::_SOME, ::_SOME]) <= _BETTER * np.median(panned[::_SOME, ::_SOME]):
        camera, panned = np.zeros_like(flow), standing
    flow = np.where((moved < (_GAIN if sigma else _CLEAN_GAIN) * panned)[..., None], flow, camera)
    ratio = SCALE // _UPSAMPLED
    size = tuple(ratio * n for n in reversed(now.shape))
    return cv2.resize(flow * np.float32(ratio), size, interpolation=cv2.INTER_LINEAR)


def standing_share(now: np.ndarray, flow: np.ndarray) -> float:
    """How much of what can be seen stands: the share of the edges where the flow is zero.

    Args:
        now: of :func:`picture_for_motion`, ``(2h, 2w)``.
        flow: of :func:`dense_flow`.

    Returns:
        0 to 1; 0 for a picture without edges.
    """
    edges = np.hypot(*(cv2.Sobel(now, cv2.CV_32F, *axis) for axis in ((1, 0), (0, 1))))
    stands = ~flow[::_UPSAMPLED, ::_UPSAMPLED].any(axis=-1)
    return float((edges * stands).sum() / max(edges.sum(), 1.0))


def camera_flow(now: np.ndarray, before: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """The motion of the camera: one affine map of the whole image.

    It begins as that of most corners (RANSAC), and is then fitted to all pixels (Evangelidis &
    Psarakis, PAMI 2008).

    Args:
        now: as of :func:`dense_flow`.
        before: as there.
        flow: dense, between them, ``(2h, 2w, 2)``.

    Returns:
        ``(2h, 2w, 2)`` float32.
    """
    height, width = now.shape
    grid, every = _grid(now.shape), slice(None, None, max(1, round((now.size / _CORNERS) ** 0.5)))
    corners = cv2.cornerMinEigenVal(now, 9)[every, every]
    sharp = corners >= np.quantile(corners, _FLAT)
    points, moved = (x[every, every][sharp] for x in (grid, grid + flow))
    found, _ = cv2.estimateAffine2D(points, moved, ransacReprojThreshold=0.7, maxIters=200)
    matrix = np.eye(2, 3) if found is None else found
    coarse = max(1, round((now.size / _FITTED) ** 0.5))
    size, centre = (width // coarse, height // coarse), np.full(2, (coarse - 1) / 2)
    small = [
        cv2.resize(x[: size[1] * coarse, : size[0] * coarse], size, interpolation=cv2.INTER_AREA)
        for x in (now, before)
    ]
    turn, shift = matrix[:, :2], matrix[:, 2]
    shift = (turn @ centre + shift - centre) / coarse
    matrix = np.column_stack((turn, shift)).astype(np.float32)
    until = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, _ITERATIONS, 1e-4)
    with suppress(cv2.error):  # a picture without structure
        _, matrix = cv2.findTransformECC(  # type: ignore[call-overload]  # its stubs want a mask
            *small, matrix, cv2.MOTION_AFFINE, until, None, 1
        )
    turn, shift = matrix[:, :2], matrix[:, 2] * coarse + centre - matrix[:, :2] @ centre
    return (grid @ turn.T + shift - grid).astype(np.float32)


def warp(image: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """The image before, as it lies in the present one.

    Args:
        image: ``(B, 1, H, W)``.
        flow: ``(B, H, W, 2)`` pixels.

    Returns:
        ``(B, 1, H, W)`` bicubic, in inference on a CPU to a 32nd of a pixel (OpenCV, in a third of
        the time), and where the content lay inside the image, ``(B, 1, H, W)`` of 0 and 1.
    """
    if torch.is_inference_mode_enabled() and not image.is_cuda:
        pairs = zip(image[:, 0].numpy(), flow.numpy(), strict=True)
        each = [_warp_in_opencv(*pair) for pair in pairs]
        warped, inside = (torch.from_numpy(np.stack(x))[:, None] for x in zip(*each, strict=True))
        return warped, inside
    height, width = image.shape[-2:]
    grid = flow * flow.new_tensor([2 / (width - 1), 2 / (height - 1)])
    x, y = grid.unbind(-1)
    x += torch.linspace(-1, 1, width, device=flow.device)
    y += torch.linspace(-1, 1, height, device=flow.device)[:, None]
    inside = (x.abs() <= width / (width - 1)) & (y.abs() <= height / (height - 1))
    warped = F.grid_sample(image, grid, "bicubic", padding_mode="border", align_corners=True)
    return warped, inside[:, None].to(image.dtype)


def _warp_in_opencv(image: np.ndarray, flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """:func:`warp` of one image ``(H, W)``."""
    height, width = image.shape
    places = _grid(image.shape) + flow
    inside = cv2.inRange(places, (-0.5, -0.5), (width - 0.5, height - 0.5))
    return _sampled(image, places, cv2.INTER_CUBIC), (inside > 0).astype(image.dtype)


def _sampled(picture: np.ndarray, places: np.ndarray, how: int) -> np.ndarray:
    """The picture at places (x, y), ``(H, W, 2)`` float32; ``how`` OpenCV interpolates."""
    return cv2.remap(  # type: ignore[call-overload]  # its stubs want a second map
        picture, places, None, how, borderMode=cv2.BORDER_REPLICATE
    )


def _difference(now: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mean difference of two pictures around each pixel."""
    return cv2.boxFilter(cv2.absdiff(other, now), cv2.CV_32F, (_WINDOW, _WINDOW))


@kept
def _grid(shape: tuple[int, int]) -> np.ndarray:
    """Coordinates (x, y) of each pixel, ``(H, W, 2)`` float32."""
    y, x = np.indices(shape, dtype=np.float32)
    return np.stack((x, y), axis=-1)
