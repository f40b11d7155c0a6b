"""Noise is found, taken off, and what is measured is followed only as far as it allows."""

import numpy as np
import pytest
import torch

from difiisr_models import Stream, load_upscaler
from difiisr_models.consistency import enforce_consistency, noise_aware_consistency
from difiisr_models.noise import denoise, difference_noise, scene_noise
from difiisr_models.resample import downsample, pack

SPAN = 4000.0


def scene(shift: float = 0.0) -> np.ndarray:
    """Edges, texture and flat places, ``(288, 384)`` counts."""
    y, x = np.mgrid[:288, :384]
    x = x + shift
    houses = 0.4 * (np.sin(x / 60) > 0.3) + 0.3 * ((x + y) % 400 > 220)
    return 7000 + SPAN * (houses + 0.3 * np.exp(-((x - 200) ** 2 + (y - 90) ** 2) / 900))


def measured(hr: np.ndarray, sigma: float = 0.0, seed: int = 0) -> np.ndarray:
    lr = downsample(pack(torch.from_numpy(hr)[None, None]))[0, 0].numpy()
    return np.rint(lr + np.random.default_rng(seed).normal(0, sigma, lr.shape)).astype(np.uint16)


def psnr(sr: np.ndarray, hr: np.ndarray) -> float:
    return float(10 * np.log10(SPAN**2 / ((sr - hr) ** 2).mean()))


@pytest.mark.parametrize("share", [0.01, 0.02, 0.03])
def test_noise_is_found_in_one_frame_and_between_two(share):
    frames = [measured(scene(), share * SPAN, seed) for seed in range(2)]
    assert scene_noise(frames[0])[0] == pytest.approx(share * SPAN, rel=0.2)
    assert difference_noise(*frames) == pytest.approx(share * SPAN, rel=0.15)
    stream = Stream()
    for frame in frames:
        stream.begin_frame(frame, None)
        assert stream.see(frame).noise == pytest.approx(share * SPAN, rel=0.3)


def test_a_clean_or_saturated_frame_has_no_noise():
    clean, flat = measured(scene()), np.full((40, 48), 65535, np.uint16)
    for frame in (clean, flat):
        stream = Stream()
        stream.begin_frame(frame, None)
        assert stream.see(frame).noise == 0


def test_denoising_takes_most_of_the_noise_and_keeps_edges():
    lr = torch.from_numpy(measured(scene()).astype(np.float32))[None, None]
    noisy = lr + 80 * torch.randn(lr.shape, generator=torch.Generator().manual_seed(0))
    assert (denoise(noisy, 80.0) - lr).std() < 0.6 * 80
    torch.testing.assert_close(denoise(noisy, 0.0), noisy)


def test_the_pull_is_the_projection_without_noise_and_leaves_noise_alone_with_it():
    generator = torch.Generator().manual_seed(0)
    packed = torch.randn(1, 16, 24, 32, generator=generator)
    lr = downsample(packed) + 0.1 * torch.randn(1, 1, 24, 32, generator=generator)
    torch.testing.assert_close(
        noise_aware_consistency(packed, lr, 0.0), enforce_consistency(packed, lr)
    )
    left = lr - downsample(noise_aware_consistency(packed, lr, 0.1))
    assert left.std() > 0.08
    lr[..., 10, 10] += 3
    left = lr - downsample(noise_aware_consistency(packed, lr, 0.1))
    assert left.abs().max() <= 0.2 + 1e-4


def test_what_rests_on_frames_before_is_pulled_by_more_than_chance_alone():
    generator = torch.Generator().manual_seed(0)
    packed = torch.randn(1, 16, 48, 64, generator=generator)
    noise = 0.1 * torch.randn(1, 1, 48, 64, generator=generator)
    lr, known = downsample(packed) + noise, torch.zeros_like(noise)
    known[..., 32:] = 1
    pulled = (downsample(noise_aware_consistency(packed, lr, 0.1, known) - packed)).abs()
    assert pulled[..., 36:].mean() < 0.2 * pulled[..., :28].mean()
    lr[..., 24, 10] += 3
    lr[..., 24, 50] += 3
    left = (lr - downsample(noise_aware_consistency(packed, lr, 0.1, known))).abs()
    assert left[..., :28].max() <= 0.2 + 1e-4
    assert 0.2 < left[..., 32:].max() <= 0.3 + 1e-4


def test_auto_beats_bicubic_and_the_projection_on_a_noisy_frame_and_is_it_on_a_clean_one():
    up = {c: load_upscaler("difiisr-rt-x4", backend="torch", consistency=c) for c in ("auto", 1.0)}
    bicubic, hr = load_upscaler("bicubic"), scene()
    clean, noisy = measured(hr), measured(hr, 0.02 * SPAN)
    np.testing.assert_array_equal(up["auto"](clean, Stream()), up[1.0](clean, Stream()))
    results = {name: psnr(model(noisy, Stream()), hr) for name, model in up.items()}
    assert results["auto"] > results[1.0] + 1
    assert results["auto"] > psnr(bicubic(noisy, Stream()), hr) + 0.9
    difference = up["auto"](noisy, Stream()).astype(float) - up["auto"](clean, Stream())
    assert difference.std() <= (noisy.astype(float) - clean).std()
