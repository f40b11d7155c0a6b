from types import SimpleNamespace

import numpy as np
import pytest

from difiisr_models.settings import Crop
from difiisr_ros.camera_info import camera_info_of_result, scale_camera_info


def camera_info(**changes):
    fields = {
        "header": "stamp and frame_id",
        "height": 120,
        "width": 160,
        "distortion_model": "plumb_bob",
        "d": [-0.3, 0.1, 0.0, 0.0, 0.0],
        "k": np.array([200.0, 0, 79.5, 0, 210.0, 59.5, 0, 0, 1]),
        "r": np.eye(3).ravel(),
        "p": np.array([190.0, 0, 80.0, -19.0, 0, 195.0, 60.0, 2.0, 0, 0, 1, 0]),
        "binning_x": 0,
        "binning_y": 0,
        "roi": SimpleNamespace(x_offset=0, y_offset=0, height=0, width=0, do_rectify=False),
    }
    return SimpleNamespace(**fields | changes)


def test_matrices_scale_about_pixel_centres():
    info = camera_info()
    scaled = scale_camera_info(info, 4)
    # 160 px wide, centre 79.5; 640 px wide, centre 319.5
    np.testing.assert_allclose(scaled.k, [800, 0, 319.5, 0, 840, 239.5, 0, 0, 1])
    # with its baseline terms
    np.testing.assert_allclose(scaled.p, [760, 0, 321.5, -76, 0, 780, 241.5, 8, 0, 0, 1, 0])
    assert (info.width, info.k[0], info.roi.height) == (160, 200, 0)  # the original is as it was


def test_size_and_roi_scale_and_the_rest_stays():
    roi = SimpleNamespace(x_offset=8, y_offset=4, height=60, width=80, do_rectify=True)
    info = camera_info(binning_x=2, binning_y=2, roi=roi)
    scaled = scale_camera_info(info, 4)
    assert (scaled.width, scaled.height) == (640, 480)
    assert vars(scaled.roi) == {
        "x_offset": 32, "y_offset": 16, "height": 240, "width": 320, "do_rectify": True
    }  # fmt: skip
    for name in ("header", "distortion_model", "d", "binning_x", "binning_y"):
        assert getattr(scaled, name) == getattr(info, name)
    np.testing.assert_array_equal(scaled.r, info.r)


def test_zeros_that_mean_uncalibrated_or_all_of_the_image_stay():
    scaled = scale_camera_info(camera_info(k=np.zeros(9), p=np.zeros(12)), 4)
    assert not np.any([*scaled.k, *scaled.p])
    assert (scaled.width, scaled.height, scaled.roi.width) == (640, 480, 0)


@pytest.mark.parametrize(
    ("changes", "size", "fits"),
    [
        ({}, (160, 120), True),
        ({}, (640, 480), False),
        ({"binning_x": 2, "binning_y": 2}, (80, 60), True),
        ({"binning_x": 2, "binning_y": 2}, (160, 120), False),
        ({"roi": SimpleNamespace(x_offset=0, y_offset=0, width=32, height=24)}, (32, 24), True),
        ({"width": 0, "height": 0}, (160, 120), False),
    ],
)
def test_info_of_another_image_size_is_refused(changes, size, fits):
    image = SimpleNamespace(width=size[0], height=size[1], header="of the image")
    info = camera_info(**changes)
    if fits:
        assert camera_info_of_result(info, image, 4).header == "of the image"
    else:
        with pytest.raises(ValueError, match=f"these are {size[0]}x{size[1]}"):
            camera_info_of_result(info, image, 4)


def cut_and_whole(info, width, height, crop):
    image = SimpleNamespace(width=width, height=height, header="h")
    return (camera_info_of_result(info, image, 4, c) for c in (crop, Crop()))


def test_what_is_cut_off_moves_the_principal_points():
    cut, whole = cut_and_whole(camera_info(), 160, 120, Crop(2, 1, 5, 0))
    assert (cut.width, cut.height) == (4 * 155, 4 * 117)
    for name, places in (("k", (2, 5)), ("p", (2, 6))):
        moved = np.array(getattr(whole, name)) - np.array(getattr(cut, name))
        assert [moved[place] for place in places] == [20, 8]
        assert np.count_nonzero(moved) == 2


def test_what_is_cut_off_a_region_of_interest_moves_the_region():
    roi = SimpleNamespace(x_offset=8, y_offset=6, width=40, height=30)
    info = camera_info(roi=roi, binning_x=2, binning_y=2)
    cut, whole = cut_and_whole(info, 20, 15, Crop(2, 1, 3, 0))
    np.testing.assert_array_equal(cut.k, whole.k)
    assert vars(cut.roi) == {"x_offset": 4 * 14, "y_offset": 4 * 10, "width": 136, "height": 96}
    assert (cut.width, cut.height) == (whole.width, whole.height)
