"""Training samples: pure functions of their number, in the units that the network sees."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from difiisr_models.radiometry import NETWORK_LIMIT
from difiisr_models.resample import downsample, pack
from difiisr_training.data.images import ImageSource, load_images
from difiisr_training.data.training_pairs import (
    CropConfig,
    CropDataset,
    crop_side,
    open_crops,
    prepare_frame,
)
from difiisr_training.degradations.mix import DegradationConfig

CLEAN = DegradationConfig(bicubic=1, thermal=0, second_order=0)
NONE = {"bicubic": 0, "thermal": 0, "second_order": 0}
MIXED = DegradationConfig(bicubic=1, thermal=1, second_order=1)


def frame(seed=0, shape=(200, 260), dtype=np.uint16, scale=1.0, side=96):
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.uniform(1000, 9000, (20, 26)), np.ones((10, 10)))
    return prepare_frame(coarse[: shape[0], : shape[1]].astype(dtype), scale, side)


def dataset(degradation=MIXED, seed=5, length=1000, groups=None, **config):
    groups = groups or [(2.0, [frame(0), frame(1)]), (1.0, [frame(2)])]
    return CropDataset(groups, CropConfig(16, degradation=degradation, **config), seed, length)


def test_a_sample_depends_on_seed_and_number_alone():
    forward = [dataset()[i] for i in range(20)]
    other = dataset()
    for i in reversed(range(20)):
        for a, b in zip(forward[i], other[i], strict=True):
            assert (a == b) if isinstance(a, bool) else torch.equal(a, b)
    assert not torch.equal(dataset()[3][0], dataset()[4][0])
    assert not torch.equal(dataset()[3][0], dataset(seed=6)[3][0])


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_shape_dtype_and_range(dtype):
    data = dataset(groups=[(1.0, [frame(dtype=dtype)])], length=60)
    for i in range(len(data)):
        lr, hr, _ = data[i]
        assert lr.shape == (1, 16, 16)
        assert hr.shape == (1, 64, 64)
        assert lr.dtype == hr.dtype == torch.float32
        for image in (lr, hr):
            assert torch.isfinite(image).all()
            assert image.abs().max() <= NETWORK_LIMIT


def test_clean_low_resolution_is_the_downsampled_high_resolution():
    data = dataset(CLEAN)
    for i in range(20):
        lr, hr, _ = data[i]
        own = downsample(pack(hr[None]))[0]
        inner = (slice(None), slice(2, -2), slice(2, -2))  # D weighs the crop's border otherwise
        assert torch.allclose(lr[inner], own[inner], atol=1e-3)  # whole counts of 8,000


def test_without_jitter_a_frames_range_is_minus_one_to_one():
    data = dataset(CLEAN, gain_jitter=1.0, offset_jitter=0.0, length=200)
    values = torch.stack([data[i][1] for i in range(200)])
    assert values.min() == pytest.approx(-1, abs=0.05)
    assert values.max() == pytest.approx(1, abs=0.05)


def hottest_corners(**config):
    """Which corner of each sample is the hottest, of a frame whose right lower one always is."""
    y, x = np.mgrid[:200, :260]
    ramp = prepare_frame((1000 + 5 * x + 20 * y).astype(np.uint16), 1.0, 96)
    steady = {"gain_jitter": 1.0, "offset_jitter": 0.0}
    data = dataset(CLEAN, groups=[(1.0, [ramp])], length=60, **steady, **config)
    corners = np.array([data[i][0].numpy()[0][::15, ::15].ravel() for i in range(len(data))])
    return set(corners.argmax(axis=1).tolist())


def test_samples_are_turned_mirrored_and_inverted_as_configured():
    assert hottest_corners(inverted_share=0.0, rotated=False) == {2, 3}  # mirrored only
    assert hottest_corners(inverted_share=0.0) == {0, 1, 2, 3}
    assert hottest_corners(inverted_share=1.0, rotated=False) == {0, 1}


def test_jitter_and_polarity_change_contrast_level_and_sign():
    ramp = np.broadcast_to(np.linspace(0, 60000, 96).astype(np.uint16), (96, 96))
    only = dataset(CLEAN, groups=[(1.0, [prepare_frame(ramp, 1.0, 96)])])
    crops = torch.stack([only[i][1] for i in range(200)])
    first, last = crops[:, 0, 0, 0], crops[:, 0, -1, -1]
    assert set(torch.sign(first - last).tolist()) == {-1.0, 1.0}
    contrast = crops.std(dim=(1, 2, 3))
    assert contrast.max() / contrast.min() == pytest.approx(1.5**2, rel=0.1)
    assert crops.mean(dim=(1, 2, 3)).std() == pytest.approx(0.3 / 3**0.5, rel=0.2)


def test_sources_are_drawn_by_weight():
    def marked(level):
        return prepare_frame(np.full((96, 96), level, np.uint16), 1.0, 96)

    # A flat frame is 0 in network units, so tell the sources by their texture.
    busy, calm = frame(0), marked(500)
    data = CropDataset([(3.0, [busy]), (1.0, [calm])], CropConfig(16, degradation=CLEAN), 0, 2000)
    share = np.mean([float(data[i][1].std()) > 1e-3 for i in range(2000)])
    assert share == pytest.approx(0.75, abs=0.04)


def test_frames_too_small_are_left_out_and_exact_ones_are_used():
    side = crop_side(CropConfig(16))
    assert side == 96
    assert frame(shape=(95, 200)) is None
    assert frame(shape=(190, 200), scale=0.5) is None
    exact = frame(shape=(96, 96))
    assert dataset(groups=[(1.0, [exact])])[0][1].shape == (1, 64, 64)


def test_a_source_without_a_frame_that_is_large_enough_is_named():
    with pytest.raises(ValueError, match=r"sources \[1\] has 96 pixels.*lr_size"):
        dataset(groups=[(1.0, [frame()]), (1.0, [])])


def test_clean_samples_are_marked():
    marks = {
        kind: {dataset(DegradationConfig(**{**NONE, kind: 1}))[i][2] for i in range(5)}
        for kind in NONE
    }
    assert marks == {"bicubic": {True}, "thermal": {False}, "second_order": {False}}


def test_frames_too_small_for_a_crop_are_counted_in_the_log(tmp_path, caplog):
    for i, side in enumerate((96, 64, 64)):
        Image.fromarray(np.zeros((side, 128), np.uint8)).save(tmp_path / f"{i}.png")
    source = ImageSource(".", val_share=0.0)
    open_crops([source], partial(load_images, data=tmp_path), CropConfig(16), 0, 4)
    assert "2 of 3 frames" in caplog.text
    assert "96 pixels" in caplog.text
