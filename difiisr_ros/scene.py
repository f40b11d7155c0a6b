"""The demo's thermal stream, whose truth is known: a simulated camera pans over a photograph.

The photograph (infrared, 640x512, HIT-UAV, CC BY 4.0, Suo et al. 2023) shows a car park from a
drone. Its grey levels are read as 278 to 303.5 K. The camera sees a window of 512x384 through
blurring optics and a 128x96 detector (each pixel integrates 4x4 of the truth), with white noise
(NETD) and fixed row and column patterns, and reports TLinear counts: 0.01 K each, so 29000 counts
are 290 K. The same seed gives the same frames, bit for bit.
"""

from __future__ import annotations

from importlib import resources
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from difiisr_ros import bags
from difiisr_ros.bag_writing import write_bag

SCALE = 4
WIDTH, HEIGHT = 128, 96
FRAME_RATE = 9.0
KELVIN_PER_COUNT = 0.01
FOCAL = 152.0  # pixels of the detector

IMAGE_TOPIC, INFO_TOPIC = "/thermal/image_raw", "/thermal/camera_info"
FRAME_ID = "thermal_optical_frame"
START = 1_700_000_000_000_000_000  # ns; fixed, so that the same seed gives the same bag

_COLDEST, _KELVIN_PER_LEVEL = 278.0, 0.1
_PAN, _PAN_DOWN = 20.0, 13.0  # seconds, there and back

# Flaws of the camera: blur in pixels of the truth, the others in kelvin
_OPTICS_SIGMA = 1.2
_NETD = 0.05
_COLUMN_PATTERN = 0.04
_ROW_PATTERN = 0.03
_ROW_FLICKER = 0.015


class Scene:
    """Frames of the pan, by index.

    Args:
        seed: chooses noise and pattern.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        rng = np.random.default_rng(seed)
        with (resources.files(__package__) / "photograph.jpg").open("rb") as file:
            levels = np.asarray(Image.open(file), np.float32)
        self._kelvin = np.float32(_COLDEST) + np.float32(_KELVIN_PER_LEVEL) * levels
        self._columns = rng.normal(0.0, _COLUMN_PATTERN, (1, WIDTH))
        self._rows = rng.normal(0.0, _ROW_PATTERN, (HEIGHT, 1))

    def truth(self, index: int) -> NDArray[np.float32]:
        """Frame ``index`` before the camera: (384, 512) float32, kelvin."""
        seconds, (rows, columns) = index / FRAME_RATE, self._kelvin.shape
        paths = (_PAN_DOWN, rows - SCALE * HEIGHT), (_PAN, columns - SCALE * WIDTH)
        top, left = (
            round(room / 2 * (1 - cos(2 * pi * seconds / period))) for period, room in paths
        )
        return self._kelvin[top : top + SCALE * HEIGHT, left : left + SCALE * WIDTH]

    def frame(self, index: int) -> NDArray[np.uint16]:
        """Frame ``index`` as the camera reports it: (96, 128) uint16 counts of 0.01 K."""
        rng = np.random.default_rng((self.seed, index))
        blurred = gaussian_filter(self.truth(index), _OPTICS_SIGMA, mode="nearest", truncate=3.3)
        collected = blurred.reshape(HEIGHT, SCALE, WIDTH, SCALE).mean(axis=(1, 3))
        kelvin = collected + self._columns + self._rows
        kelvin = kelvin + rng.normal(0.0, _ROW_FLICKER, (HEIGHT, 1))
        kelvin = kelvin + rng.normal(0.0, _NETD, (HEIGHT, WIDTH))
        return np.clip(np.rint(kelvin / KELVIN_PER_COUNT), 0, 65535).astype(np.uint16)


def write_scene_bag(target: Path, frames: int, seed: int = 0, force: bool = False) -> None:
    """Write ``frames`` frames of the scene at 9 Hz as mono16 to the rosbag2 folder ``target``.

    Raises:
        FileExistsError: ``target`` exists and is not to be replaced.
    """
    with write_bag(target, force=force) as writer:
        scene = Scene(seed)
        for index in range(frames):
            at = START + round(index / FRAME_RATE * 1e9)
            time = bags.STORE.types["builtin_interfaces/msg/Time"](*divmod(at, 1_000_000_000))
            header = bags.STORE.types["std_msgs/msg/Header"](stamp=time, frame_id=FRAME_ID)
            info = bags.message_bytes(camera_info(header))
            writer.write(bags.Message(bags.ros_topic(INFO_TOPIC, bags.CAMERA_INFO_TYPE), at, info))
            image = bags.image_bytes(header, scene.frame(index), "mono16")
            writer.write(bags.Message(bags.ros_topic(IMAGE_TOPIC, bags.IMAGE_TYPE), at, image))


def frame_of_stamp(stamp: int) -> int:
    """Index of the frame with that header stamp, nanoseconds."""
    return round((stamp - START) * FRAME_RATE / 1e9)


def camera_info(header: Any) -> Any:
    """CameraInfo of the scene's pinhole camera: no distortion, principal point in the middle."""
    cx, cy = (WIDTH - 1) / 2, (HEIGHT - 1) / 2
    return bags.STORE.types[bags.CAMERA_INFO_TYPE](
        header=header,
        height=HEIGHT,
        width=WIDTH,
        distortion_model="plumb_bob",
        d=np.zeros(5),
        k=np.array([FOCAL, 0, cx, 0, FOCAL, cy, 0, 0, 1.0]),
        r=np.eye(3).reshape(-1),
        p=np.array([FOCAL, 0, cx, 0, 0, FOCAL, cy, 0, 0, 0, 1.0, 0]),
        binning_x=0,
        binning_y=0,
        roi=bags.STORE.types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False),
    )
