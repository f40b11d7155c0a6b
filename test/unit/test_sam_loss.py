import logging
from functools import partial

import pytest
import torch
from torch import nn

from difiisr_training.guidance import GuidanceConfig, GuidanceLoss
from difiisr_training.perceptual import SamLoss, load_sam

pytest.importorskip("torchvision", reason="segment-anything needs torchvision")
pytest.importorskip("segment_anything", reason="the SAM package is not installed")


def tiny_sam(img_size=64):
    """A random SAM of the package's own classes, with a 4 x 4 embedding of 8 channels."""
    from segment_anything.modeling import (
        ImageEncoderViT,
        MaskDecoder,
        PromptEncoder,
        Sam,
        TwoWayTransformer,
    )

    torch.manual_seed(7)
    patch, channels = 16, 8
    grid = img_size // patch
    encoder = ImageEncoderViT(
        img_size=img_size, patch_size=patch, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2,
        out_chans=channels, norm_layer=partial(nn.LayerNorm, eps=1e-6), use_rel_pos=True,
        window_size=2, global_attn_indexes=(1,),
    )  # fmt: skip
    prompts = PromptEncoder(channels, (grid, grid), (img_size, img_size), mask_in_chans=4)
    decoder = MaskDecoder(
        transformer_dim=channels,
        transformer=TwoWayTransformer(depth=1, embedding_dim=channels, num_heads=2, mlp_dim=16),
    )
    sam = Sam(encoder, prompts, decoder)
    for p in sam.parameters():  # SAM starts from zeros in places; a trained one has none
        if p.abs().max() == 0:
            nn.init.normal_(p, std=0.1)
    return sam


@pytest.fixture
def pair():
    rng = torch.Generator().manual_seed(8)
    return tuple(torch.rand(2, 2, 1, 24, 40, generator=rng) * 2 - 1)


@pytest.mark.parametrize("output", ["features", "raw_features", "masks"])
def test_equal_images_have_no_loss_and_the_gradient_reaches_the_image_alone(output, pair):
    loss, (sr, hr) = SamLoss(tiny_sam(), output), pair
    sr.requires_grad_()
    values = loss(torch.cat([sr[:1], hr[:1]]), torch.cat([hr[:1], hr[:1]]))
    assert values[0] > 1e-8
    assert values[1] < 1e-12
    values[0].backward()
    assert sr.grad[0].any()
    assert not sr.grad[1].any()
    assert not any(p.requires_grad for p in loss.parameters())


def test_masks_are_those_of_the_package_for_the_same_points():
    sam, image = tiny_sam(), torch.rand(1, 1, 48, 64) * 2 - 1
    masks = SamLoss(sam, "masks", points_per_side=2).masks(image)
    points = torch.tensor([[16.0, 12], [48, 12], [16, 36], [48, 36]])[:, None]  # x, y
    colours = ((image[0] + 1) * 127.5).repeat(3, 1, 1)  # already as wide as img_size
    result = sam(
        [{
            "image": colours, "original_size": (48, 64),
            "point_coords": points, "point_labels": torch.ones(4, 1),
        }],
        multimask_output=False,
    )[0]  # fmt: skip
    torch.testing.assert_close(masks[0], result["low_res_logits"][:, 0].sigmoid())


def test_a_file_that_is_no_sam_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth is no SAM checkpoint"):
        load_sam(tmp_path / "other.pth")


def test_checkpoint_becomes_a_guidance_term(tmp_path, monkeypatch, caplog, pair):
    """The whole path from file to L_g, with a small network in the place of ViT-B."""
    import segment_anything

    from difiisr_training import perceptual

    sam = tiny_sam()
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    monkeypatch.setitem(segment_anything.sam_model_registry, "tiny", lambda checkpoint: tiny_sam())
    monkeypatch.setitem(perceptual._ENCODER_WIDTHS, 16, "tiny")
    config = GuidanceConfig(kind="perceptual", weight_perceptual=0.5, sam="features")
    with caplog.at_level(logging.WARNING):
        loss = GuidanceLoss(config, sam=tmp_path / "sam.pth")
    assert "SAM term alone" in caplog.text
    torch.testing.assert_close(loss(*pair), 0.5 * SamLoss(sam, "features")(*pair))
