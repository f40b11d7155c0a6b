"""What the reference's state dicts call things: names and sizes, told from their shapes alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict

from difiisr_models.swin_unet import SwinUNetConfig
from difiisr_models.vq_autoencoder import VQConfig

Shape = tuple[int, ...]

KNOWN_BUFFERS = re.compile(r"\.(relative_position_index|attn_mask)$")
"""Reference entries that are computed here, not read."""

_UNET_ENDS = {
    "time_in": "time_embed.0",
    "time_out": "time_embed.2",
    "stem": "input_blocks.0.0",
    "mid_in": "middle_block.0",
    "mid_swin": "middle_block.1",
    "mid_out": "middle_block.2",
}
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
    "attention.qkv": "attn.qkv",
    "attention.project": "attn.proj",
    "attention.position_bias": "attn.relative_position_bias_table",
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
    "norm_in": "norm1",
    "conv_in": "conv1",
    "norm_out": "norm2",
    "conv_out": "conv2",
    "skip": "nin_shortcut",
}
_VQ_ATTENTION = {"norm": "norm", "query": "q", "key": "k", "value": "v", "project": "proj_out"}


def reference_unet_name(own: str, config: SwinUNetConfig) -> str:
    """What the reference calls the UNet parameter that is ``own`` here.

    The reference numbers its input blocks through: 0 is the stem, then each level takes
    ``blocks`` residual blocks and one downsampling. Its output blocks take ``blocks + 1`` a level,
    lowest level first. Inside a numbered block, 0 is the residual block (or the downsampling) and
    1 is the Swin stage (first of a level) or the upsampling (last of a level).
    """
    top, _, rest = own.partition(".")
    if top in ("norm_out", "conv_out"):
        return f"{'out.0' if top == 'norm_out' else 'out.2'}.{rest}"
    if top.startswith("mid_"):
        return f"{_UNET_ENDS[top]}.{_unet_layer(rest)}"
    if top in _UNET_ENDS:
        return f"{_UNET_ENDS[top]}.{rest}"

    level, part, rest = rest.split(".", maxsplit=2)
    first = int(level) * (config.blocks + 1)
    side = "output_blocks"
    if top == "down_levels":
        side, first = "input_blocks", first + 1
    if part == "down":
        return f"{side}.{first + config.blocks}.0.op.{rest}"
    if part == "up":
        return f"{side}.{first + config.blocks}.1.conv.{rest}"
    if part == "swin":
        return f"{side}.{first}.1.{_unet_layer(rest)}"
    block, rest = rest.split(".", maxsplit=1)
    return f"{side}.{first + int(block)}.0.{_unet_layer(rest)}"


def _unet_layer(own: str) -> str:
    """Layer inside a residual block or a Swin stage, with its ``.weight`` or ``.bias``."""
    block, layer, leaf = re.fullmatch(r"(blocks\.\d+\.)?(.+?)(\.weight|\.bias)?", own).groups("")
    return f"{block}{_UNET_LAYERS[layer]}{leaf}"


def reference_vq_name(own: str, config: VQConfig) -> str:
    """What the reference calls the autoencoder parameter that is ``own`` here.

    Both number the levels by resolution, 0 the highest; our decoder's are in the order they run.
    """
    top, _, rest = own.partition(".")
    if top in _VQ_ENDS:
        return f"{_VQ_ENDS[top]}.{rest}".rstrip(".")
    path, leaf = rest.rsplit(".", maxsplit=1)
    parts = path.split(".")
    if parts[0] == "middle":
        if parts[1] == "attention":
            return f"{top}.mid.attn_1.{_VQ_ATTENTION[parts[2]]}.{leaf}"
        block = "block_1" if parts[1] == "block_in" else "block_2"
        return f"{top}.mid.{block}.{_VQ_LAYERS[parts[2]]}.{leaf}"
    if parts[0] != "levels":
        return f"{top}.{'conv_in' if path == 'stem' else path}.{leaf}"
    direction, level = "down", int(parts[1])
    if top == "decoder":
        direction, level = "up", len(config.multipliers) - 1 - level
    if parts[2] == direction:
        return f"{top}.{direction}.{level}.{direction}sample.conv.{leaf}"
    return f"{top}.{direction}.{level}.block.{parts[3]}.{_VQ_LAYERS[parts[4]]}.{leaf}"


def unet_config(shapes: Mapping[str, Shape]) -> SwinUNetConfig:
    """Sizes of the UNet whose reference state dict has these shapes.

    Raises:
        ValueError: a name needed for it is absent, or its shape cannot be.
    """
    channels = _size(shapes, "time_embed.0.weight", 2, 1)
    widths, blocks, index = [], [], 1
    while f"input_blocks.{index}.0.in_layers.2.weight" in shapes:
        width = _size(shapes, f"input_blocks.{index}.0.in_layers.2.weight", 4, 0)
        widths.append(_ratio(width, channels, f"input_blocks.{index}.0.in_layers.2.weight"))
        count = 0
        while f"input_blocks.{index}.0.in_layers.2.weight" in shapes:
            index, count = index + 1, count + 1
        blocks.append(count)
        index += f"input_blocks.{index}.0.op.weight" in shapes
    if len(set(blocks)) != 1:
        raise ValueError(f"residual blocks per level must be equal and at least 1, found {blocks}")

    swin = "input_blocks.1.1"
    swin_channels = _size(shapes, f"{swin}.patch_embed.proj.weight", 4, 0)
    depth = 0
    while f"{swin}.blocks.{depth}.norm1.weight" in shapes:
        depth += 1
    table = f"{swin}.blocks.0.attn.relative_position_bias_table"
    window = (math.isqrt(_size(shapes, table, 2, 0)) + 1) // 2
    hidden = f"{swin}.blocks.0.mlp.fc1.weight"
    # Files without the buffer do not say what size they were made for; 64 is what all used.
    mask = shapes.get(f"{swin}.blocks.1.attn_mask", ((64 // max(window, 1)) ** 2, 0, 0))
    return SwinUNetConfig(
        channels=channels,
        multipliers=tuple(widths),
        blocks=blocks[0],
        swin_channels=swin_channels,
        heads=_size(shapes, table, 2, 1),
        swin_depth=depth,
        mlp_ratio=_ratio(_size(shapes, hidden, 4, 0), swin_channels, hidden),
        window=window,
        latent_size=window * math.isqrt(mask[0] if mask else 0),
    )


def vq_config(shapes: Mapping[str, Shape]) -> VQConfig:
    """Sizes of the autoencoder whose reference state dict has these shapes.

    Raises:
        ValueError: a name needed for it is absent, or its shape cannot be.
    """
    channels = _size(shapes, "encoder.conv_in.weight", 4, 0)
    widths, level = [], 0
    while (name := f"encoder.down.{level}.block.0.conv1.weight") in shapes:
        widths.append(_ratio(_size(shapes, name, 4, 0), channels, name))
        level += 1
    blocks = 0
    while f"encoder.down.0.block.{blocks}.conv1.weight" in shapes:
        blocks += 1
    return VQConfig(
        channels=channels,
        multipliers=tuple(widths),
        blocks=blocks,
        latent_channels=_size(shapes, "quantize.embedding.weight", 2, 1),
        codes=_size(shapes, "quantize.embedding.weight", 2, 0),
    )


def _size(shapes: Mapping[str, Shape], name: str, rank: int, axis: int) -> int:
    shape = shapes.get(name)
    if shape is None:
        raise ValueError(f"it has no {name}")
    if len(shape) != rank or min(shape) < 1:
        raise ValueError(f"{name} has shape {tuple(shape)}, expected {rank} dimensions")
    return shape[axis]


def _ratio(whole: int, part: int, name: str) -> int:
    if whole % part:
        raise ValueError(f"{name} has {whole} outputs, which is no multiple of {part}")
    return whole // part


def as_dict(config: SwinUNetConfig | VQConfig) -> dict[str, int | list[int]]:
    """Plain dictionary for a manifest."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}
