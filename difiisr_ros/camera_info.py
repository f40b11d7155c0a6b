"""The ``sensor_msgs/CameraInfo`` of a super-resolved image; no ROS library needed.

Works on copies of anything that has the ROS 2 message's fields (k, p, roi, ...): rclpy messages and
rosbags' dataclasses.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np


def scaled_matrix(matrix: np.ndarray, scale: int) -> np.ndarray:
    """Return a row-major K (9) or P (12) for an image ``scale`` times as large, float64.

    Pixel centres: x' = s x + (s - 1)/2, so c' = s c + (s - 1)/2, f' = s f, and P[3], P[7] (focal
    length times baseline) scale with f. A matrix whose first entry is 0 is uncalibrated
    (sensor_msgs/CameraInfo) and stays as it is.
    """
    matrix = np.asarray(matrix, np.float64)
    if matrix[0] == 0:
        return matrix.copy()
    shift = (scale - 1) / 2
    enlarge = np.array([[scale, 0, shift], [0, scale, shift], [0, 0, 1]], np.float64)
    return (enlarge @ matrix.reshape(3, -1)).reshape(-1)


def scale_camera_info(info: Any, scale: int) -> Any:
    """Return a copy of ``info`` for an image ``scale`` times as large in each direction.

    width, height, K, P and the region of interest are scaled; header, distortion model, D, R and
    binning are copied; zeros (uncalibrated K, full region of interest) stay zero.
    """
    scaled = copy.deepcopy(info)
    scaled.width = info.width * scale
    scaled.height = info.height * scale
    scaled.k = scaled_matrix(info.k, scale)
    scaled.p = scaled_matrix(info.p, scale)
    for name in ("x_offset", "y_offset", "height", "width"):
        setattr(scaled.roi, name, getattr(info.roi, name) * scale)
    return scaled


def camera_info_of_result(info: Any, image: Any, scale: int) -> Any:
    """Return ``info`` scaled for the result of ``image`` (both messages), with the image's header.

    Raises:
        ValueError: ``info`` describes images (its ROI, or all, over the binning) of another size.
    """
    width = (info.roi.width or info.width) // max(info.binning_x, 1)
    height = (info.roi.height or info.height) // max(info.binning_y, 1)
    if (width, height) != (image.width, image.height):
        raise ValueError(
            f"camera_info is not used: it describes images of {width}x{height}, "
            f"these are {image.width}x{image.height}"
        )
    scaled = scale_camera_info(info, scale)
    scaled.header = image.header
    return scaled
