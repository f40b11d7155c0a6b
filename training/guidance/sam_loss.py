"""The second half of L_perceptual (DifIISR, Eq. 12): ||S_HR - S_SR||^2 of a frozen SAM.

SAM comes from the ``segment-anything`` package (Kirillov et al., ICCV 2023) and its checkpoint from
a file; nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

_ENCODER_WIDTHS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}


class SamLoss(nn.Module):
    """Mean squared difference of what SAM sees in two images, one value per sample.

    ``output`` is ``"masks"`` (the paper's S: mask probabilities at a regular grid of prompt points)
    or ``"features"`` (the public reference: the image encoder's embedding).
    """

    def __init__(self, sam: Sam, output: str, points_per_side: int = 4) -> None:
        """Freeze ``sam`` in evaluation mode.

        Args:
            sam: a ``segment_anything.modeling.Sam`` of any size.
            output: ``"masks"`` or ``"features"``.
            points_per_side: the grid of prompt points has this many in each direction.

        Raises:
            ValueError: unknown ``output``.
        """
        super().__init__()
        if output not in ("masks", "features"):
            raise ValueError(f"output must be 'masks' or 'features', got {output!r}")
        self._sam = sam
        self._describe = self.features if output == "features" else self.masks
        self._points_per_side = points_per_side
        self.eval().requires_grad_(False)

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """``(B, 1, H, W)`` twice, in [-1, 1] -> ``(B,)``; the gradient reaches ``sr`` alone."""
        with torch.no_grad():
            wanted = self._describe(hr)
        return (self._describe(sr) - wanted).square().flatten(1).mean(dim=1)

    def features(self, image: Tensor) -> Tensor:
        """Image embedding ``(B, F, s, s)`` of ``(B, 1, H, W)`` in [-1, 1]."""
        return self._sam.image_encoder(self.preprocess(image))

    def masks(self, image: Tensor) -> Tensor:
        """Mask probabilities ``(B, points, 4s, 4s)`` of ``(B, 1, H, W)`` in [-1, 1]."""
        sam, embeddings = self._sam, self.features(image)
        points = self._prompt_points(image)
        labels = torch.ones(points.shape[:2], device=points.device)  # 1 = foreground
        sparse, dense = sam.prompt_encoder(points=(points, labels), boxes=None, masks=None)
        prompts = [p.to(embeddings) for p in (sam.prompt_encoder.get_dense_pe(), sparse, dense)]
        logits = [
            sam.mask_decoder(embedding[None], *prompts, multimask_output=False)[0]
            for embedding in embeddings
        ]
        return torch.stack(logits)[:, :, 0].sigmoid()

    def preprocess(self, image: Tensor) -> Tensor:
        """SAM's own, with gradient: longest side to ``img_size``, normalised, zeros to a square."""
        side = self._sam.image_encoder.img_size
        height, width = self._resized(image)
        grey = (image + 1) * 127.5
        resized = F.interpolate(
            grey, (height, width), mode="bilinear", align_corners=False, antialias=True
        )
        normalised = (resized - self._sam.pixel_mean) / self._sam.pixel_std
        return F.pad(normalised, (0, side - width, 0, side - height))

    def _resized(self, image: Tensor) -> tuple[int, int]:
        scale = self._sam.image_encoder.img_size / max(image.shape[-2:])
        return tuple(int(n * scale + 0.5) for n in image.shape[-2:])

    def _prompt_points(self, image: Tensor) -> Tensor:
        """Centres of a grid over the resized image: ``(points, 1, 2)``, x before y, in pixels."""
        n = self._points_per_side
        centres = (torch.arange(n, device=image.device) + 0.5) / n
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        height, width = self._resized(image)
        return torch.stack([x * width, y * height], dim=-1).reshape(n * n, 1, 2)


def load_sam(checkpoint: Path) -> Sam:
    """Build the SAM that a checkpoint belongs to (ViT-B, -L or -H, told by its width) and fill it.

    Raises:
        ModuleNotFoundError: ``segment-anything`` or torchvision is absent or does not fit torch.
        FileNotFoundError: no such file.
        ValueError: the file is no SAM checkpoint.
    """
    try:
        from segment_anything import sam_model_registry
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the SAM loss needs {error.name}: pip install segment-anything torchvision"
        ) from error
    except RuntimeError as error:  # torchvision's operators, of another build of torch
        raise ModuleNotFoundError(
            f"the SAM loss needs segment-anything, which cannot be imported ({error}): install a "
            f"torchvision that fits torch {torch.__version__}, both for CPUs or both for CUDA"
        ) from error
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        patch = state.get("image_encoder.patch_embed.proj.weight")
    except (RuntimeError, AttributeError, EOFError, UnpicklingError) as error:
        raise ValueError(
            f"{checkpoint} is no SAM checkpoint: {error or type(error).__name__}"
        ) from error
    width = len(patch) if patch is not None else None
    if width not in _ENCODER_WIDTHS:
        raise ValueError(
            f"{checkpoint} is no SAM checkpoint: its image encoder has width {width}, "
            f"known are {', '.join(map(str, _ENCODER_WIDTHS))}"
        )
    sam = sam_model_registry[_ENCODER_WIDTHS[width]](checkpoint=None)
    sam.load_state_dict(state)
    return sam
