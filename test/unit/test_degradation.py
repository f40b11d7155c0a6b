"""Degradations do what their physics and their configuration say, measured on their output."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from difiisr_models.radiometry import CountRange
from difiisr_models.resample import downsample, pack
from difiisr_training import degradations
from difiisr_training.degradations import (
    KINDS,
    DegradationConfig,
    ThermalConfig,
    agc_range,
    degrade,
    thermal_pair,
    to_eight_bit,
)

SHOWN = CountRange(1000.0, 3000.0)
QUIET = {
    "aberration": (0.0, 0.0), "netd": (1e-9, 1e-9), "column_noise": (0.0, 0.0),
    "row_noise": (0.0, 0.0), "stuck_share": 0.0, "gain_drift": 0.0, "offset_drift": 0.0,
    "agc_share": 0.0,
}  # fmt: skip


def rng(seed=0):
    return np.random.default_rng(seed)


def scene(side=160, dtype=np.uint16):
    """Smooth shapes and noise between about 1000 and 3000 counts."""
    y, x = np.mgrid[:side, :side] / side
    smooth = np.sin(7 * x + 3 * y) + np.sign(np.sin(9 * x * y + 4 * x))
    return (2000 + 400 * smooth + rng(1).normal(0, 30, (side, side))).astype(dtype)


def wave(side, frequency):
    """A cosine along x of ``frequency`` cycles per pixel."""
    return np.broadcast_to(np.cos(2 * np.pi * frequency * np.arange(side)), (side, side))


def amplitude(image, frequency):
    """Amplitude of the wave of that frequency along x, away from the borders."""
    row = image[image.shape[0] // 2]
    phase = np.exp(-2j * np.pi * frequency * np.arange(len(row)))
    return 2 * abs((row * phase).mean())


@pytest.mark.parametrize(("cycles", "sigma"), [(4, 1.2), (28, 0.0), (28, 1.2), (40, 0.0)])
def test_a_lens_attenuates_each_frequency_by_its_mtf(cycles, sigma):
    cutoff, side = 0.35, 160
    f = cycles / side
    r = f / cutoff
    theory = 2 / math.pi * (math.acos(r) - r * math.sqrt(1 - r * r)) if r < 1 else 0.0
    theory *= math.exp(-2 * (math.pi * sigma * f) ** 2)
    blurred = degradations.blur_by_lens(wave(side, f), cutoff, sigma)
    inner = blurred[:, 40:-40]  # 80 columns hold whole periods of every wave here
    assert amplitude(inner, f) == pytest.approx(theory, abs=0.01)


@pytest.mark.parametrize(("cycles", "fill_factor"), [(2, 0.4), (8, 0.7), (8, 1.0), (14, 0.4)])
def test_detector_sampling_follows_the_aperture_function(fill_factor, cycles):
    f, width = cycles / 160, 4 * math.sqrt(fill_factor)
    sampled = degradations.sample_by_detector(wave(160, f), fill_factor)
    # Pixels are samples here, while sinc assumes a continuous scene: hence the few per cent.
    assert amplitude(sampled, 4 * f) == pytest.approx(np.sinc(width * f), abs=0.02)


def test_stripes_are_constant_along_their_line_and_stuck_pixels_are_as_many_as_asked():
    rows = degradations.stripes((500, 300), 2.0, 0.0, rng())
    columns = degradations.stripes((300, 500), 0.0, 2.0, rng())
    for lines in (rows.T, columns):
        assert (lines == lines[:1]).all()
        assert lines[0].std() == pytest.approx(2.0, rel=0.1)
    stuck = degradations.stick_pixels(
        np.full((500, 500), 50.0, np.float32), 0.01, 100.0, 200.0, rng()
    )
    changed = stuck[stuck != 50]
    assert changed.size / stuck.size == pytest.approx(0.01, rel=0.1)
    assert 100 <= changed.min() < changed.max() <= 200


def test_drift_is_slow_and_as_strong_as_asked():
    fields = np.stack([degradations.drift_field((40, 60), 0.5, rng(i)) for i in range(500)])
    assert np.sqrt((fields**2).mean()) == pytest.approx(0.5, rel=0.06)
    assert fields.mean(axis=(1, 2)).std() == pytest.approx(0.5 / math.sqrt(3), rel=0.1)
    assert np.abs(np.diff(fields, 2, axis=1)).max() < 1e-5


def test_agc_saturates_one_per_cent_at_either_end():
    frame = rng().permutation(100_00).reshape(100, 100).astype(np.uint16)
    picture = to_eight_bit(frame, agc_range(frame))
    # Half a grey level's worth of counts (20 of 10,000) rounds to black and to white as well.
    assert (picture == 0).mean() == pytest.approx(0.012, abs=0.001)
    assert (picture == 255).mean() == pytest.approx(0.012, abs=0.001)


def test_bicubic_is_pillows_and_the_models_own_operator():
    hr = scene(96, np.uint8)
    lr, target = degrade("bicubic", hr, SHOWN, DegradationConfig(), rng())
    assert (lr == np.asarray(Image.fromarray(hr).resize((24, 24), Image.BICUBIC))).all()
    assert (target == hr).all()
    own = downsample(pack(torch.from_numpy(hr.astype(np.float32))[None, None]))[0, 0].numpy()
    assert np.abs(lr - own).max() <= 1  # Pillow rounds to whole counts, twice


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_every_degradation_gives_a_pair_on_one_scale_and_only_by_its_seed(kind, dtype):
    hr = (scene() // (12 if dtype == np.uint8 else 1)).astype(dtype)
    shown = agc_range(hr)
    config = DegradationConfig()
    for seed in range(4):
        lr, target = degrade(kind, hr, shown, config, rng(seed))
        again = degrade(kind, hr, shown, config, rng(seed))
        assert (lr == again[0]).all()
        assert (target == again[1]).all()
        assert (lr.shape, target.shape) == ((40, 40), (160, 160))
        assert lr.dtype == target.dtype == np.float32
        assert np.isfinite(lr).all()
        coarse_lr = lr.reshape(5, 8, 5, 8).mean(axis=(1, 3))
        coarse = target.reshape(5, 32, 5, 32).mean(axis=(1, 3))
        assert np.abs(coarse_lr - coarse).mean() < 0.06 * shown.span
        assert np.corrcoef(coarse_lr.ravel(), coarse.ravel())[0, 1] > 0.8
    if kind != "bicubic":
        assert (degrade(kind, hr, shown, config, rng(98))[0] != lr).any()


def test_noise_is_its_netd_and_white_and_drift_alone_is_in_the_target_too():
    hr = np.full((480, 480), 2000, np.float32)
    drifting = {**QUIET, "offset_drift": 0.2, "netd": (0.01, 0.01)}
    lr, target = thermal_pair(hr, SHOWN, ThermalConfig(**drifting), rng(2))
    assert abs(target.mean() - 2000) > 10
    assert abs(lr.mean() - target.mean()) < 5
    assert np.abs(np.diff(target, 2, axis=0)).max() < 0.01
    noise = lr - target.reshape(120, 4, 120, 4).mean(axis=(1, 3))
    assert noise.std() == pytest.approx(0.01 * SHOWN.span, rel=0.03)
    assert abs(np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]) < 0.03


def test_the_gain_control_saturates_both_and_rounds_the_low_resolution_one():
    hr = scene()
    shown = CountRange(1800.0, 2200.0)
    lr, target = thermal_pair(
        hr, shown, ThermalConfig(**{**QUIET, "agc_share": 1.0, "jpeg_share": 0.0}), rng()
    )
    assert target.min() == lr.min() == 1800
    assert target.max() == lr.max() == 2200
    grey = (lr - 1800) * 255 / 400
    assert np.abs(grey - np.rint(grey)).max() < 1e-3


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_kernels_keep_the_mean_and_are_centred(seed):
    kernel = degradations.random_kernel((3, 19), (0.2, 3.0), rng(seed))
    side = kernel.shape[0]
    assert kernel.shape == (side, side)
    assert side in range(3, 20, 2)
    assert kernel.sum() == pytest.approx(1)
    assert kernel == pytest.approx(kernel[::-1, ::-1], abs=1e-9)


def test_sinc_kernel_passes_below_its_cutoff_and_stops_above():
    response = np.abs(np.fft.fft2(degradations.sinc_kernel(63, math.pi / 2), (256, 256)))
    assert response[0, 20] == pytest.approx(1, abs=0.1)  # 0.16 pi
    assert response[0, 100] < 0.1  # 0.78 pi


def test_poisson_noise_grows_with_the_root_of_the_level():
    levels = np.repeat(np.linspace(0.1, 0.9, 9), 20000).reshape(9, 20000).astype(np.float32)
    noise = (degradations.add_poisson_noise(levels, 0.5, rng()) - levels).std(axis=1)
    white = 16  # nine levels, rounded up to a power of two
    assert noise[:5] == pytest.approx(0.5 * np.sqrt(levels[:5, 0] / white), rel=0.1)
