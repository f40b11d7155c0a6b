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

_LAYERS = {
    # residual block of the UNet
    "in_layers.0": "norm_in",
    "in_layers.2": "conv_in",
    "emb_layers.1": "time_affine",
    "out_layers.0": "norm_out",
    "out_layers.3": "conv_out",
    "skip_connection": "skip",
    # Swin stage
    "patch_embed.proj": "enter",
    "patch_unembed.proj": "leave",
    "mlp.fc1": "mlp_in",
    "mlp.fc2": "mlp_out",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.project",
    "attn.relative_position_bias_table": "attention.position_bias",
}
_SWIN_NORMS = {"norm1": "norm_attention", "norm2": "norm_mlp"}
_UNET_ENDS = {
    "time_embed.0": "time_in",
    "time_embed.2": "time_out",
    "input_blocks.0.0": "stem",
    "out.0": "norm_out",
    "out.2": "conv_out",
}
_VQ_ENDS = {
    "quantize.embedding.weight": "codebook",
    "quant_conv": "to_latent",
    "post_quant_conv": "from_latent",
}
_VQ_LAYERS = {
    "norm1": "norm_in",
    "conv1": "conv_in",
    "norm2": "norm_out",
    "conv2": "conv_out",
    "nin_shortcut": "skip",
}
_VQ_ATTENTION = {"q": "query", "k": "key", "v": "value", "proj_out": "project"}


def _layer_name(rest: str) -> str | None:
    """Layer inside a residual block or a Swin stage, with its ``.weight`` or ``.bias``."""
    if match := re.fullmatch(r"(blocks\.\d+)\.(norm[12])\.(weight|bias)", rest):
        return f"{match[1]}.{_SWIN_NORMS[match[2]]}.{match[3]}"
    match = re.fullmatch(r"(blocks\.\d+\.)?(.+?)(\.weight|\.bias)?", rest)
    if match is None or match[2] not in _LAYERS:
        return None
    return f"{match[1] or ''}{_LAYERS[match[2]]}{match[3] or ''}"


def own_unet_name(name: str, config: SwinUNetConfig) -> str | None:
    """Our name of the UNet parameter that the reference calls ``name``; None: there is none.

    The reference numbers its input blocks through: 0 is the stem, then each level takes
    ``blocks`` residual blocks and one downsampling. Its output blocks take ``blocks + 1`` a level,
    lowest level first. Inside a numbered block, 0 is the residual block, then come the Swin stage
    (first of a level) and the upsampling (last of a level).
    """
    prefix, _, leaf = name.rpartition(".")
    if prefix in _UNET_ENDS:
        return f"{_UNET_ENDS[prefix]}.{leaf}"

    if match := re.fullmatch(r"middle_block\.([012])\.(.+)", name):
        layer = _layer_name(match[2])
        return layer and f"{('mid_in', 'mid_swin', 'mid_out')[int(match[1])]}.{layer}"

    if match := re.fullmatch(r"input_blocks\.(\d+)\.([01])\.(.+)", name):
        level, block = divmod(int(match[1]) - 1, config.blocks + 1)
        part, rest = match[2], match[3]
        if block == config.blocks:
            downsamples = part == "0" and rest in ("op.weight", "op.bias")
            return f"down_levels.{level}.down.{leaf}" if downsamples else None
        return _in_level(f"down_levels.{level}", block, part, rest)

    if match := re.fullmatch(r"output_blocks\.(\d+)\.([01])\.(.+)", name):
        level, block = divmod(int(match[1]), config.blocks + 1)
        part, rest = match[2], match[3]
        if part == "1" and rest in ("conv.weight", "conv.bias"):
            return f"up_levels.{level}.up.{leaf}" if block == config.blocks else None
        return _in_level(f"up_levels.{level}", block, part, rest)

    return None


def _in_level(level: str, block: int, part: str, rest: str) -> str | None:
    layer = _layer_name(rest)
    if layer is None or (part == "1" and block != 0):
        return None
    return f"{level}.swin.{layer}" if part == "1" else f"{level}.blocks.{block}.{layer}"


def own_vq_name(name: str, config: VQConfig) -> str | None:
    """Our name of the autoencoder parameter that the reference calls ``name``; None: none.

    Both number the levels by resolution, 0 the highest; our decoder's are in the order they run.
    """
    prefix, _, leaf = name.rpartition(".")
    if name in _VQ_ENDS:
        return _VQ_ENDS[name]
    if prefix in _VQ_ENDS:
        return f"{_VQ_ENDS[prefix]}.{leaf}"

    match = re.fullmatch(r"(encoder|decoder)\.(.+)", prefix)
    if match is None:
        return None
    side, rest = match[1], match[2]
    if rest in ("conv_in", "norm_out", "conv_out"):
        return f"{side}.{'stem' if rest == 'conv_in' else rest}.{leaf}"
    if match := re.fullmatch(r"mid\.block_([12])\.(\w+)", rest):
        block, layer = ("block_in", "block_out")[int(match[1]) - 1], _VQ_LAYERS.get(match[2])
        return layer and f"{side}.middle.{block}.{layer}.{leaf}"
    if match := re.fullmatch(r"mid\.attn_1\.(\w+)", rest):
        layer = "norm" if match[1] == "norm" else _VQ_ATTENTION.get(match[1])
        return layer and f"{side}.middle.attention.{layer}.{leaf}"

    match = re.fullmatch(r"(down|up)\.(\d+)\.(.+)", rest)
    if match is None or match[1] != ("down" if side == "encoder" else "up"):
        return None
    direction, level, rest = match[1], int(match[2]), match[3]
    if direction == "up":
        level = len(config.multipliers) - 1 - level
    if rest == f"{direction}sample.conv":
        return f"{side}.levels.{level}.{direction}.{leaf}"
    if match := re.fullmatch(r"block\.(\d+)\.(\w+)", rest):
        layer = _VQ_LAYERS.get(match[2])
        return layer and f"{side}.levels.{level}.blocks.{match[1]}.{layer}.{leaf}"
    return None


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
