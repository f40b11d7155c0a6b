"""What the reference's state dicts call things: names and sizes, told from their shapes alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from difiisr_models.published.swin_unet import SwinUNetConfig
from difiisr_models.published.vq_autoencoder import VQConfig

Shapes = Mapping[str, tuple[int, ...]]

KNOWN_BUFFERS = re.compile(r"\.(relative_position_index|attn_mask)$")
"""Reference entries that are computed here, not read."""

_UNET_ENDS = {
    "time_in": "time_embed.0", "time_out": "time_embed.2", "stem": "input_blocks.0.0",
    "mid_in": "middle_block.0", "mid_swin": "middle_block.1", "mid_out": "middle_block.2",
    "norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
_UNET_LAYERS = {
    # residual block
    "norm_in": "in_layers.0",
    "conv_in": "in_layers.2",
    "time_affine": "emb_layers.1",
    "norm_out": "out_layers.0",
    "conv_out": "out_layers.3",
    "skip": "skip_connection",
    # Swin stage
    "enter": "patch_embed.proj",
    "leave": "patch_unembed.proj",
    "norm_attention": "norm1",
    "attention": "attn",
    "project": "proj",
    "position_bias": "relative_position_bias_table",
    "norm_mlp": "norm2",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}
_VQ_ENDS = {
    "codebook": "quantize.embedding.weight",
    "to_latent": "quant_conv",
    "from_latent": "post_quant_conv",
}
_VQ_LAYERS = {
    "block_in": "block_1",
    "attention": "attn_1",
    "block_out": "block_2",
    # residual block
    "norm_in": "norm1",
    "conv_in": "conv1",
    "norm_out": "norm2",
    "conv_out": "conv2",
    "skip": "nin_shortcut",
    # attention
    "query": "q",
    "key": "k",
    "value": "v",
    "project": "proj_out",
}


def reference_unet_name(own: str, config: SwinUNetConfig) -> str:
    """What the reference calls the UNet parameter that is ``own`` here.

    The reference numbers its input blocks through: 0 is the stem, then each level takes
    ``blocks`` residual blocks and one downsampling. Its output blocks take ``blocks + 1`` a level,
    lowest level first. Inside a numbered block, 0 is the residual block (or the downsampling) and
    1 is the Swin stage (first of a level) or the upsampling (last of a level).
    """
    top, *rest = own.split(".")
    if top in _UNET_ENDS:
        return ".".join((_UNET_ENDS[top], *(_UNET_LAYERS.get(word, word) for word in rest)))
    level, part, *rest = rest
    side, first = ("input_blocks", 1) if top == "down_levels" else ("output_blocks", 0)
    first += int(level) * (config.blocks + 1)
    if part == "blocks":
        block, *rest = rest
        place = f"{first + int(block)}.0"
    else:
        last = first + config.blocks
        place = {"swin": f"{first}.1", "down": f"{last}.0.op", "up": f"{last}.1.conv"}[part]
    return ".".join((side, place, *(_UNET_LAYERS.get(word, word) for word in rest)))


def reference_vq_name(own: str, config: VQConfig) -> str:
    """What the reference calls the autoencoder parameter that is ``own`` here.

    Both number the levels by resolution, 0 the highest; our decoder's are in the order they run.
    """
    top, *rest = own.split(".")
    if top in _VQ_ENDS:
        return ".".join((_VQ_ENDS[top], *rest))
    room, *rest = rest
    if room == "middle":
        return ".".join((top, "mid", *(_VQ_LAYERS.get(word, word) for word in rest)))
    if room != "levels":
        return ".".join((top, "conv_in" if room == "stem" else room, *rest))
    number, part, *rest = rest
    side, level = "down", int(number)
    if top == "decoder":
        side, level = "up", len(config.multipliers) - 1 - level
    part = "block" if part == "blocks" else f"{side}sample.conv"
    return ".".join((top, side, str(level), part, *(_VQ_LAYERS.get(word, word) for word in rest)))


def unet_config(shapes: Shapes) -> SwinUNetConfig:
    """Sizes of the UNet whose reference state dict has these shapes.

    KeyError, IndexError, ValueError or ZeroDivisionError if no such network has them.
    """
    channels = shapes["time_embed.0.weight"][1]
    widths, blocks, index = [], [], 1
    while (name := f"input_blocks.{index}.0.in_layers.2.weight") in shapes:
        widths.append(shapes[name][0] // channels)
        count = _count(shapes, "input_blocks.{}.0.in_layers.2.weight", index)
        blocks.append(count)
        index += count + (f"input_blocks.{index + count}.0.op.weight" in shapes)
    if len(set(blocks)) != 1:
        raise ValueError(f"residual blocks per level must be equal and at least 1, found {blocks}")
    swin = "input_blocks.1.1"
    swin_channels = shapes[f"{swin}.patch_embed.proj.weight"][0]
    offsets, heads = shapes[f"{swin}.blocks.0.attn.relative_position_bias_table"]
    window = (math.isqrt(offsets) + 1) // 2
    # Files without the buffer do not say what size they were made for; 64 is what all used.
    mask = shapes.get(f"{swin}.blocks.1.attn_mask", ((64 // window) ** 2, 0, 0))
    return SwinUNetConfig(
        channels=channels,
        multipliers=tuple(widths),
        blocks=blocks[0],
        swin_channels=swin_channels,
        heads=heads,
        swin_depth=_count(shapes, swin + ".blocks.{}.norm1.weight"),
        mlp_ratio=shapes[f"{swin}.blocks.0.mlp.fc1.weight"][0] // swin_channels,
        window=window,
        latent_size=window * math.isqrt(mask[0]),
    )


def vq_config(shapes: Shapes) -> VQConfig:
    """Sizes of the autoencoder of a reference state dict; raises as :func:`unet_config` does."""
    channels = shapes["encoder.conv_in.weight"][0]
    first = "encoder.down.{}.block.0.conv1.weight"
    levels = range(_count(shapes, first))
    codes, latent_channels = shapes["quantize.embedding.weight"]
    return VQConfig(
        channels=channels,
        multipliers=tuple(shapes[first.format(level)][0] // channels for level in levels),
        blocks=_count(shapes, "encoder.down.0.block.{}.conv1.weight"),
        latent_channels=latent_channels,
        codes=codes,
    )


def _count(shapes: Shapes, pattern: str, start: int = 0) -> int:
    """How many names there are without a gap, ``start`` being the first number in ``pattern``."""
    number = start
    while pattern.format(number) in shapes:
        number += 1
    return number - start
