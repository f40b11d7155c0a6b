import numpy as np
import pytest
from thermal_bags import messages

from difiisr_ros.bags import CAMERA_INFO_TYPE, IMAGE_TYPE, STORE, stamp_of
from difiisr_ros.brush import Brush
from difiisr_ros.image_codec import image_to_array
from difiisr_ros.scene import (
    FRAME_ID,
    IMAGE_TOPIC,
    INFO_TOPIC,
    KELVIN_PER_COUNT,
    Scene,
    frame_of_stamp,
    write_scene_bag,
)


@pytest.fixture(scope="module")
def scene():
    return Scene(0)


def test_same_seed_same_frames_other_seed_others(scene):
    again, other = Scene(0), Scene(1)
    assert (scene.frame(3) == again.frame(3)).all()
    assert (scene.truth(3) == again.truth(3)).all()
    assert (scene.truth(3) != other.truth(3)).mean() > 0.2
    assert 0.5 < (scene.truth(3) == scene.truth(12)).mean() < 0.999  # things move


def test_frames_are_plausible_counts(scene):
    frame = scene.frame(0)
    assert (frame.shape, frame.dtype) == ((120, 160), np.uint16)
    truth = scene.truth(0)
    assert truth.shape == (480, 640)
    seen = truth.reshape(120, 4, 160, 4).mean(axis=(1, 3))
    assert np.abs(frame * KELVIN_PER_COUNT - seen).mean() < 0.2
    celsius = frame * KELVIN_PER_COUNT - 273.15
    assert -20 < celsius.min() < 10
    assert 20 < celsius.max() < 60
    assert 5 < np.median(celsius) < 25


SQUARE = [(-5, -5), (-5, 5), (5, 5), (5, -5)]


@pytest.mark.parametrize("ahead", [1, -1])
@pytest.mark.parametrize(
    ("shape", "arguments", "area"),
    [
        ("dot", ((0, 0), 4, 1.0), np.pi * 16),
        ("line", ((-5, 1), (5, 1), 2.5, 1.0), np.pi * 2.5**2 + 50),
        ("box", ((-5.25, -3), (5.25, 3), 1.0), 63),
        ("polygon", (SQUARE, 1.0), 100),
        ("box", ((-2, -2), (2, 2), lambda forward: 3 + forward, 0.5), 24),
    ],
)
def test_painted_area(shape, arguments, area, ahead):
    image = np.zeros((60, 60), np.float32)
    getattr(Brush(image, 29.5, 29.5, 2.0, ahead), shape)(*arguments)
    assert image.sum() / 4 == pytest.approx(area, rel=0.01)


def test_scene_bag_is_a_nine_hertz_stream_with_camera_info(tmp_path):
    write_scene_bag(tmp_path / "bag", 10, seed=4)
    frames = messages(tmp_path / "bag", IMAGE_TOPIC)
    stamps = [stamp_of(raw) for _, _, raw in frames]
    assert [at for _, at, _ in frames] == stamps
    assert np.diff(stamps) == pytest.approx(1e9 / 9, abs=1)
    assert [frame_of_stamp(stamp) for stamp in stamps] == list(range(10))
    image = STORE.deserialize_cdr(frames[7][2], IMAGE_TYPE)
    assert (image.encoding, image.header.frame_id) == ("mono16", FRAME_ID)
    assert (image_to_array(image) == Scene(4).frame(7)).all()
    infos = messages(tmp_path / "bag", INFO_TOPIC)
    info = STORE.deserialize_cdr(infos[7][2], CAMERA_INFO_TYPE)
    assert (info.width, info.height, info.k[2], info.k[5]) == (160, 120, 79.5, 59.5)
    assert stamp_of(infos[7][2]) == stamps[7]
