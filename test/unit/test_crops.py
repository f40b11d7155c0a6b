"""Training samples: pure functions of their number, in the units that the network sees."""

import numpy as np
import pytest
import torch

from difiisr_models.radiometry import NETWORK_LIMIT
from difiisr_training.data.images import ImageSource
from difiisr_training.data.training_pairs import CropConfig, CropDataset
from difiisr_training.degradations import DegradationConfig

CLEAN = DegradationConfig(bicubic=1, thermal=0, second_order=0)
STILL = {"gain_jitter": 1.0, "offset_jitter": 0.0, "inverted_share": 0.0, "rotated": False}
MIXED = DegradationConfig(bicubic=1, thermal=1, second_order=1)


def frame(seed=0, shape=(200, 260), dtype=np.uint16):
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.uniform(1000, 9000, (20, 26)), np.ones((10, 10)))
    return coarse[: shape[0], : shape[1]].astype(dtype)


def dataset(*groups, degradation=CLEAN, seed=5, scales=(1.0,), weights=(2, 1), **config):
    """Samples of sources that hold these frames, called "0" and "1"."""
    groups = groups or ([frame(0), frame(1)], [frame(2)])
    sources = [
        ImageSource(str(i), weight, scales=scales)
        for i, (weight, _) in enumerate(zip(weights, groups, strict=False))
    ]

    def load(source, part):
        assert part == "train"
        return groups[int(source.folder)]

    return CropDataset(sources, load, CropConfig(16, degradation=degradation, **config), seed, 2000)


def drawn(data, count):
    """``(count, 1, h, w)``: low and high resolution of the first samples."""
    return [torch.stack(images) for images in zip(*(data[i] for i in range(count)), strict=True)]


def test_a_sample_depends_on_seed_and_number_alone():
    lr, hr = drawn(dataset(degradation=MIXED), 20)
    other = dataset(degradation=MIXED)
    for i in reversed(range(20)):
        assert torch.equal(other[i][0], lr[i])
        assert torch.equal(other[i][1], hr[i])
    assert not torch.equal(lr[3], lr[4])
    assert not torch.equal(lr[3], dataset(degradation=MIXED, seed=6)[3][0])
    assert (lr.shape, hr.shape) == ((20, 1, 16, 16), (20, 1, 64, 64))
    for image in (lr, hr, *drawn(dataset([frame(dtype=np.float32)], degradation=MIXED), 40)):
        assert image.dtype == torch.float32
        assert image.abs().max() <= NETWORK_LIMIT  # false for NaN


def hottest_corners(**config):
    """Which corner of each sample is the hottest, of a frame whose right lower one always is."""
    y, x = np.mgrid[:200, :260]
    ramp = (1000 + 5 * x + 20 * y).astype(np.uint16)
    lr, _ = drawn(dataset([ramp], gain_jitter=1.0, offset_jitter=0.0, **config), 60)
    assert lr.abs().max() <= 1.05  # without jitter a frame's range is -1 to 1
    return set(lr[..., ::15, ::15].flatten(1).argmax(dim=1).tolist())


def test_samples_are_turned_mirrored_and_inverted_as_configured():
    assert hottest_corners(inverted_share=0.0, rotated=False) == {2, 3}  # mirrored only
    assert hottest_corners(inverted_share=0.0) == {0, 1, 2, 3}
    assert hottest_corners(inverted_share=1.0, rotated=False) == {0, 1}


def test_jitter_and_polarity_change_contrast_level_and_sign():
    ramp = np.broadcast_to(np.linspace(0, 60000, 96).astype(np.uint16), (96, 96))
    _, crops = drawn(dataset([ramp]), 200)
    assert set(torch.sign(crops[:, 0, 0, 0] - crops[:, 0, -1, -1]).tolist()) == {-1.0, 1.0}
    contrast = crops.std(dim=(1, 2, 3))
    assert contrast.max() / contrast.min() == pytest.approx(1.5**2, rel=0.1)
    assert crops.mean(dim=(1, 2, 3)).std() == pytest.approx(0.3 / 3**0.5, rel=0.2)


def test_rescaled_samples_show_the_largest_square_of_a_frame():
    ramp = np.broadcast_to(np.linspace(0, 60000, 192).astype(np.uint16), (192, 192))
    (_, whole), (_, cut) = (
        drawn(dataset([ramp], rescaled=rescaled, **STILL), 1) for rescaled in (True, False)
    )
    # Of the square all but the margin of 4 of 24 low-resolution pixels on either side is left.
    assert np.ptp(whole.numpy()) == pytest.approx(2 * 16 / 24, rel=0.02)
    assert np.ptp(cut.numpy()) == pytest.approx(2 * 64 / 192, rel=0.02)


def test_targets_of_the_second_order_pipeline_are_clipped_only_where_asked():
    hot = np.full((96, 96), 1000, np.uint16)
    hot += np.arange(96, dtype=np.uint16)
    hot[46:52, 46:52] = 3000  # 0.4 % of the frame

    def hottest(tail):
        mix = DegradationConfig(bicubic=0, thermal=0, second_order=1, shown_tail=tail)
        _, hr = drawn(dataset([hot], degradation=mix, **STILL), 1)
        return hr.max()

    assert hottest(0.01) < 0 < hottest(0.0)


def test_sources_are_drawn_by_weight():
    # A flat frame is 0 in network units, so tell the sources by their texture.
    flat = np.full((96, 96), 500, np.uint16)
    _, crops = drawn(dataset([frame()], [flat], weights=(3, 1)), 2000)
    assert (crops.std(dim=(1, 2, 3)) > 1e-3).float().mean().item() == pytest.approx(0.75, abs=0.04)


def test_frames_too_small_for_a_crop_are_counted_and_a_source_of_such_alone_is_named(caplog):
    exact, small = frame(shape=(96, 96)), frame(shape=(95, 200))
    assert dataset([small, exact, small])[0][1].shape == (1, 64, 64)
    assert "2 of 3 frames" in caplog.text
    for frames, scale in (([small], 1.0), ([frame(shape=(190, 200))], 0.5)):
        with pytest.raises(ValueError, match=r"source 1 has 96 pixels.*lr_size"):
            dataset([frame(shape=(200, 200))], frames, scales=(scale,))
