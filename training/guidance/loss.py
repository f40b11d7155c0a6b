"""L_g = w_v L_visual + w_p L_perceptual (+ w_g L_pattern), put together from a configuration."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from difiisr_training.guidance.injection import GuidanceConfig
from difiisr_training.guidance.pattern_loss import pattern_loss
from difiisr_training.guidance.perceptual_loss import PerceptualLoss
from difiisr_training.guidance.sam_loss import SamLoss, load_sam
from difiisr_training.guidance.spectral_loss import spectral_loss

log = logging.getLogger(__name__)


class GuidanceLoss(nn.Module):
    """Per-sample L_g of ``(B, 1, H, W)`` images in [-1, 1]."""

    def __init__(
        self,
        weight_visual: float,
        weight_perceptual: float,
        perceptual: list[nn.Module],
        weight_pattern: float = 0.0,
    ) -> None:
        """``perceptual``: losses of (SR, HR) -> ``(B,)`` whose sum is L_perceptual (Eq. 12)."""
        super().__init__()
        self.weight_visual, self.weight_perceptual = weight_visual, weight_perceptual
        self.weight_pattern = weight_pattern
        self.perceptual = nn.ModuleList(perceptual)

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """``(B, 1, H, W)`` twice -> ``(B,)``."""
        total = sr.new_zeros(len(sr))
        if self.weight_visual:
            total = total + self.weight_visual * spectral_loss(sr, hr)
        if self.weight_pattern:
            total = total + self.weight_pattern * pattern_loss(sr, hr)
        for loss in self.perceptual:
            total = total + self.weight_perceptual * loss(sr, hr)
        return total


def build_guidance_loss(
    config: GuidanceConfig,
    vgg_weights: Path | None,
    sam_checkpoint: Path | None,
    device: torch.device,
) -> GuidanceLoss | None:
    """The L_g that a configuration asks for, or ``None`` when the guidance is off.

    A perceptual term without its file is left out, and the log says so.

    Raises:
        ValueError: the perceptual loss is asked for and neither file is given.
    """
    if config.kind == "none":
        return None
    terms: list[nn.Module] = []
    if config.kind in ("perceptual", "both"):
        if vgg_weights is None and sam_checkpoint is None:
            raise ValueError(
                f"guidance {config.kind!r} needs the weights of a VGG or the checkpoint of a SAM"
            )
        if vgg_weights is not None:
            terms.append(PerceptualLoss(config.vgg, vgg_weights))
        else:
            log.warning("no VGG weights given: L_perceptual is the SAM term alone")
        if sam_checkpoint is not None:
            terms.append(SamLoss(load_sam(sam_checkpoint), config.sam))
        else:
            log.warning("no SAM checkpoint given: L_perceptual is the VGG term alone")
    visual = config.weight_visual if config.kind in ("visual", "both") else 0.0
    loss = GuidanceLoss(visual, config.weight_perceptual, terms, config.weight_pattern)
    return loss.to(device)
