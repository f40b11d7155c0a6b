"""L_perceptual in a VGG: what it is fed, and what it says of blur."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from random_vgg import random_vgg

from difiisr_training.perceptual import PerceptualLoss

NORMALISED = Path(__file__).parents[3] / "shared" / "weights" / "vgg19norm_to_relu3_1.pth"


@pytest.fixture
def normalised():
    if not NORMALISED.is_file():
        pytest.skip(f"no weights at {NORMALISED}")
    return PerceptualLoss("vgg19_relu3_1", NORMALISED)


@pytest.fixture
def pair():
    rng = torch.Generator().manual_seed(5)
    hr = F.interpolate(torch.rand(2, 1, 8, 8, generator=rng), scale_factor=4, mode="bilinear")
    hr = 2 * hr - 1
    return F.avg_pool2d(hr, 3, stride=1, padding=1), hr


@pytest.mark.parametrize(
    ("layer", "index", "shape"),
    [("vgg16_relu3_3", 15, (2, 256, 8, 8)), ("vgg19_relu5_4", 35, (2, 512, 2, 2))],
)
def test_one_channel_is_seen_as_three_equal_ones(tmp_path, pair, layer, index, shape):
    """The paper's layer sees images normalised as in ImageNet, the reference's as they are."""
    network, (sr, hr) = random_vgg(layer[:5], tmp_path / "vgg.pth"), pair
    colours = hr.repeat(1, 3, 1, 1)
    if layer.startswith("vgg16"):
        mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        colours = ((colours + 1) / 2 - mean) / deviation
    loss = PerceptualLoss(layer, tmp_path / "vgg.pth")
    (features,) = loss.features(hr)
    assert features.shape == shape
    torch.testing.assert_close(features, network[: index + 1](colours))

    values = loss(torch.cat([sr.requires_grad_()[:1], hr[:1]]), torch.cat([hr[:1], hr[:1]]))
    assert values[0] > 0
    assert values[1] == 0
    values.sum().backward()
    assert sr.grad[0].any()
    assert not any(p.requires_grad for p in loss.parameters())


def test_true_vgg_features_lose_more_with_more_blur(normalised, pair):
    _, hr = pair
    blurred = [hr]
    for _ in range(3):
        blurred.append(F.avg_pool2d(F.pad(blurred[-1], (1,) * 4, mode="reflect"), 3, stride=1))
    values = [normalised(sr, hr).mean().item() for sr in blurred]
    assert values[0] == 0
    assert values == sorted(values)
    assert values[1] > 0


def test_three_scales_forget_the_contrast_that_one_feature_map_does_not(normalised, pair):
    """Unit-length features: the same blur at a quarter of the contrast is nearly as bad."""
    scales, (sr, hr) = PerceptualLoss("vgg19_scales", NORMALISED), pair
    ratios = {}
    for name, loss in (("scales", scales), ("one map", normalised)):
        ratios[name] = (loss(sr / 4, hr / 4) / loss(sr, hr)).mean().item()
    assert ratios["scales"] > 2 * ratios["one map"]


def test_another_network_is_refused(tmp_path):
    random_vgg("vgg16", tmp_path / "vgg16.pth")
    with pytest.raises(ValueError, match=r"size mismatch|Missing key"):
        PerceptualLoss("vgg19_relu5_4", tmp_path / "vgg16.pth")
