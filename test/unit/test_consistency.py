"""The consistency step keeps what was measured, and cannot hurt."""

import pytest
import torch

from difiisr_models.consistency import consistent_with_frames, enforce_consistency
from difiisr_models.resample import downsample, pack, upsample


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_downsampled_output_equals_the_input_even_for_white_noise():
    lr, packed = draw(0, 2, 1, 40, 33), draw(1, 2, 16, 40, 33)
    error = downsample(enforce_consistency(packed, lr)) - lr
    assert error.abs().max() < 1e-5  # of a span of about 8, up to the borders


def test_an_axis_of_any_length_is_no_matter_of_memory():
    length = 48 * 1240 + 11  # in pieces, of which the last is shorter than their margins
    lr, packed = draw(0, 1, 1, 16, length), draw(1, 1, 16, 16, length)
    assert (downsample(enforce_consistency(packed, lr)) - lr).abs().max() < 1e-5


def test_no_consistent_image_is_nearer():
    """What it adds is orthogonal to every change that the measurement cannot see."""
    packed, other, lr = draw(3, 1, 16, 20, 24), draw(4, 1, 16, 20, 24), draw(0, 1, 1, 20, 24)
    moved = enforce_consistency(packed, lr) - packed
    unseen = other - enforce_consistency(torch.zeros_like(other), downsample(other))
    assert downsample(unseen).abs().max() < 1e-5
    assert (moved * unseen).sum().abs() < 1e-5 * moved.norm() * unseen.norm()


def test_strength_removes_that_share_of_the_disagreement():
    lr, packed = draw(0, 1, 1, 24, 24), draw(1, 1, 16, 24, 24)
    before = downsample(packed) - lr
    after = downsample(enforce_consistency(packed, lr, 0.25)) - lr
    torch.testing.assert_close(after, 0.75 * before, atol=1e-5, rtol=0)
    assert torch.equal(enforce_consistency(packed, lr, 0.0), packed)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_strength_outside_its_range_is_refused(strength):
    with pytest.raises(ValueError, match="consistency"):
        enforce_consistency(draw(1, 1, 16, 24, 24), draw(0, 1, 1, 24, 24), strength)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_is_as_exact_as_a_cpu():
    """Not to the 11 bits that a GPU convolves float32 with by default."""
    packed, lr = draw(1, 1, 16, 64, 80), draw(2, 1, 1, 64, 80)
    on_gpu = enforce_consistency(packed.cuda(), lr.cuda()).cpu()
    on_cpu = enforce_consistency(packed, lr)
    torch.testing.assert_close(on_gpu, on_cpu, atol=2e-5, rtol=0)
    before = (downsample(on_cpu) - lr).abs().max()
    assert (downsample(on_gpu) - lr).abs().max() <= before + 2e-5


def test_what_earlier_frames_measured_is_known():
    """Shifted views of one scene know more of it than one view, and more than interpolation."""
    scene = torch.nn.functional.interpolate(draw(5, 1, 1, 64, 70), scale_factor=2, mode="bicubic")
    views = torch.cat([scene[..., k : k + 128] for k in range(4)])  # each a pixel further right
    frames, truth = downsample(pack(views)), pack(views[:1])
    flows = torch.zeros(4, 128, 128, 2)
    flows[..., 0] = torch.arange(4.0)[:, None, None]
    weights = torch.full((4, 1, 32, 32), 300.0)
    weights[1:, ..., -3:] = 0  # not in the present frame
    plain = upsample(frames[:1])
    alone = enforce_consistency(plain, frames[:1])
    with torch.inference_mode():  # as the upscaler calls it
        together = consistent_with_frames(plain, frames, flows, weights)
    errors = [(x - truth)[..., 4:-4, 4:-4].square().mean() for x in (plain, alone, together)]
    assert errors[2] < 0.85 * errors[1] < 0.85 * errors[0]
