"""Records the demo scene as a rosbag2: 16-bit frames with their camera_info."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from difiisr_ros.bag_reader import CAMERA_INFO_TYPE, IMAGE_TYPE
from difiisr_ros.bag_writer import STORE, image_bytes, write_bag
from difiisr_ros.demo.scene import FOCAL, FRAME_RATE, HEIGHT, WIDTH, Scene

IMAGE_TOPIC = "/thermal/image_raw"
INFO_TOPIC = "/thermal/camera_info"
FRAME_ID = "thermal_optical_frame"
START = 1_700_000_000_000_000_000  # ns; fixed, so that the same seed gives the same bag


def write_scene_bag(target: Path, frames: int, seed: int = 0, force: bool = False) -> None:
    """Write ``frames`` frames of the scene at 9 Hz as mono16 to the rosbag2 folder ``target``.

    Raises:
        FileExistsError: ``target`` exists and is not to be replaced.
    """
    scene = Scene(seed)
    with write_bag(target, force=force) as writer:
        info_topic = writer.add_connection(INFO_TOPIC, CAMERA_INFO_TYPE, typestore=STORE)
        image_topic = writer.add_connection(IMAGE_TOPIC, IMAGE_TYPE, typestore=STORE)
        for index in range(frames):
            at = stamp_of_frame(index)
            time = STORE.types["builtin_interfaces/msg/Time"](*divmod(at, 1_000_000_000))
            header = STORE.types["std_msgs/msg/Header"](stamp=time, frame_id=FRAME_ID)
            info = STORE.serialize_cdr(_camera_info(header), CAMERA_INFO_TYPE)
            writer.write(info_topic, at, info)
            writer.write(image_topic, at, image_bytes(header, scene.frame(index), "mono16"))


def stamp_of_frame(index: int) -> int:
    """Header stamp of a scene frame, nanoseconds."""
    return START + round(index / FRAME_RATE * 1e9)


def frame_of_stamp(stamp: int) -> int:
    """Inverse of :func:`stamp_of_frame`."""
    return round((stamp - START) * FRAME_RATE / 1e9)


def _camera_info(header: object) -> object:
    """Pinhole camera of the scene: no distortion, principal point in the middle."""
    cx, cy = (WIDTH - 1) / 2, (HEIGHT - 1) / 2
    return STORE.types[CAMERA_INFO_TYPE](
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
        roi=STORE.types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False),
    )
