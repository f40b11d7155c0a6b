import numpy as np
import pytest
from thermal_bags import messages

from difiisr_ros.bags import CAMERA_INFO_TYPE, IMAGE_TYPE, STORE, stamp_of
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
    assert (scene.frame(3) != other.frame(3)).mean() > 0.5
    assert (scene.truth(3) == other.truth(3)).all()
    assert (scene.truth(3) != scene.truth(30)).mean() > 0.5  # the camera pans


def test_frames_are_plausible_counts(scene):
    for index in (0, 57, 90, 1000):
        frame, truth = scene.frame(index), scene.truth(index)
        assert (frame.shape, frame.dtype, truth.shape) == ((96, 128), np.uint16, (384, 512))
        seen = truth.reshape(96, 4, 128, 4).mean(axis=(1, 3))
        assert np.abs(frame * KELVIN_PER_COUNT - seen).mean() < 0.4
        assert 275 < frame.min() * KELVIN_PER_COUNT < 285 < frame.max() * KELVIN_PER_COUNT < 306


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
    assert (info.width, info.height, info.k[2], info.k[5]) == (128, 96, 63.5, 47.5)
    assert stamp_of(infos[7][2]) == stamps[7]
