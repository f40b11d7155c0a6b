"""The ``sensor_msgs/CameraInfo`` of a super-resolved image; no ROS library needed.

Works on copies of anything that has the ROS 2 message's fields (k, p, roi, ...): rclpy messages and
rosbags' dataclasses.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from difiisr_models.settings import Crop

_LARGEST_SIDE = 2**28  # four times that, and an offset of as much, are still numbers of a message


def scale_camera_info(info: Any, scale: int) -> Any:
    """Return a copy of ``info`` for an image ``scale`` times as large in each direction.

    width, height, K, P and the region of interest are scaled; header, distortion model, D, R and
    binning are copied; zeros (uncalibrated K or P, full region of interest) stay zero.
    Pixel centres: x' = s x + (s - 1)/2, so c' = s c + (s - 1)/2, f' = s f, and P[3], P[7] (focal
    length times baseline) scale with f.
    """
    scaled = copy.deepcopy(info)
    scaled.width = info.width * scale
    scaled.height = info.height * scale
    shift = (scale - 1) / 2
    enlarge = np.array([[scale, 0, shift], [0, scale, shift], [0, 0, 1]], np.float64)
    for name in ("k", "p"):
        matrix = np.asarray(getattr(scaled, name), np.float64)
        if matrix[0] != 0:  # else uncalibrated
            matrix = (enlarge @ matrix.reshape(3, -1)).reshape(-1)
        setattr(scaled, name, matrix)
    for name in ("x_offset", "y_offset", "height", "width"):
        setattr(scaled.roi, name, getattr(info.roi, name) * scale)
    return scaled


def crop_camera_info(info: Any, crop: Crop) -> Any:
    """Return a copy of ``info`` for images that ``crop`` cuts pixels off.

    The principal points of K and P and the size move with the cut; where ``info`` has a region of
    interest, that does instead, as K and P are of the full image. A binned pixel is several.
    """
    cropped = copy.deepcopy(info)
    across, down = max(info.binning_x, 1), max(info.binning_y, 1)
    left, right = crop.left * across, crop.right * across
    top, bottom = crop.top * down, crop.bottom * down
    roi = cropped.roi
    if roi.width or roi.height:
        roi.x_offset, roi.y_offset = roi.x_offset + left, roi.y_offset + top
        roi.width = (roi.width or info.width) - left - right
        roi.height = (roi.height or info.height) - top - bottom
        return cropped
    cropped.width, cropped.height = info.width - left - right, info.height - top - bottom
    for name, columns in (("k", 3), ("p", 4)):
        matrix = np.array(getattr(info, name), np.float64)
        if matrix[0] != 0:  # else uncalibrated
            matrix[[2, columns + 2]] -= left, top
        setattr(cropped, name, matrix)
    return cropped


def camera_info_of_result(
    info: Any, image: Any, scale: int, crop: Crop = Crop(), telemetry_rows: int = 0
) -> Any:
    """Return ``info`` scaled for the result of ``image`` (both messages), with the image's header.

    Args:
        info: describes images as this one, or without its rows of telemetry.
        image: as it came.
        scale: of the result.
        crop: what was cut off the image, rows of telemetry included.
        telemetry_rows: rows at the top, negative for rows at the bottom.

    Raises:
        ValueError: ``info`` describes images (its ROI, or all, over the binning) of another size,
            or a sensor that the numbers of a message cannot describe four times as large.
    """
    width = (info.roi.width or info.width) // max(info.binning_x, 1)
    height = (info.roi.height or info.height) // max(info.binning_y, 1)
    if telemetry_rows and (width, height) == (image.width, image.height - abs(telemetry_rows)):
        top, bottom = max(telemetry_rows, 0), max(-telemetry_rows, 0)
        crop = crop._replace(top=crop.top - top, bottom=crop.bottom - bottom)
    elif (width, height) != (image.width, image.height):
        raise ValueError(
            f"camera_info is not used: it describes images of {width}x{height}, "
            f"these are {image.width}x{image.height}"
        )
    roi = info.roi
    sides = (info.width, info.height, roi.x_offset, roi.y_offset, roi.width, roi.height)
    if max(sides) > _LARGEST_SIDE:
        raise ValueError(f"camera_info is not used: no sensor has {max(sides)} pixels on a side")
    scaled = scale_camera_info(crop_camera_info(info, crop) if any(crop) else info, scale)
    scaled.header = image.header
    return scaled


def info_finder(recorded: Iterable[tuple[int, int, Any]]) -> Callable[[int, int], Any]:
    """Return a function that finds a frame's camera_info by the frame's stamp and time, ns.

    Args:
        recorded: stamp, time (both ns) and camera_info, in the order of the times.

    Returns:
        gives the first of that stamp (0 is none), else the last one before that time, else the
        first of all; ``None`` where there is none.
    """
    entries = list(recorded)
    times = [time for _, time, _ in entries]
    of_stamp = {stamp: info for stamp, _, info in reversed(entries) if stamp}

    def info_of(stamp: int, time: int) -> Any:
        last = entries[max(bisect_right(times, time) - 1, 0)][2] if entries else None
        return of_stamp.get(stamp, last)

    return info_of
