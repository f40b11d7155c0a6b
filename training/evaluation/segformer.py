"""SegFormer (Xie et al., NeurIPS 2021) of ``transformers``, for frames of one channel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from difiisr_training.data.images import as_picture
from difiisr_training.evaluation.detectors import pad_to_multiple

if TYPE_CHECKING:
    from transformers import SegformerForSemanticSegmentation

INPUT_MULTIPLE = 32
"""Sides of the input must be multiples of this."""

# Of ImageNet's colours, which SegFormer was first trained on.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_B1_CHANNELS = [64, 128, 320, 512]  # the rest is as transformers has it


def build_segformer(classes: Sequence[str]) -> SegformerForSemanticSegmentation:
    """SegFormer-b1 (13.7 M parameters), the paper's segmenter, with random weights."""
    config_type, model_type = _transformers()
    return model_type(config_type(hidden_sizes=_B1_CHANNELS, **_labels(classes)))


def load_segformer(
    folder: Path, classes: Sequence[str] | None = None
) -> SegformerForSemanticSegmentation:
    """Read a folder that ``save_pretrained`` wrote; nothing is downloaded.

    ``classes``: start with a new last layer for these; ``None``: as stored.

    Raises:
        OSError: ``config.json`` or ``model.safetensors`` is missing.
    """
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is no SegFormer folder: no config.json in it")
    changed = {"ignore_mismatched_sizes": True, **_labels(classes)} if classes else {}
    _, model_type = _transformers()
    return model_type.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, **changed
    )


def class_names(model: SegformerForSemanticSegmentation) -> tuple[str, ...]:
    """Names of a model's classes, in the order of its labels."""
    return tuple(name for _, name in sorted(model.config.id2label.items()))


def class_logits(model: SegformerForSemanticSegmentation, pictures: Tensor) -> Tensor:
    """Logits ``(B, C, H, W)`` of pictures ``(B, 1, H, W)`` in 0..1, seen as grey colours."""
    mean, std = (pictures.new_tensor(values).view(3, 1, 1) for values in (_MEAN, _STD))
    logits = model(pixel_values=(pictures - mean) / std).logits
    return F.interpolate(logits, size=pictures.shape[-2:], mode="bilinear", align_corners=False)


@torch.no_grad()
def segment(model: SegformerForSemanticSegmentation, counts: np.ndarray) -> np.ndarray:
    """Label of each pixel, ``(H, W)`` uint8, of a frame of uint8, uint16 or float32 counts."""
    height, width = counts.shape
    padded = torch.from_numpy(pad_to_multiple(as_picture(counts), INPUT_MULTIPLE))
    logits = class_logits(model.eval(), padded[None, None].to(model.device))
    return logits[0, :, :height, :width].argmax(dim=0).to(torch.uint8).cpu().numpy()


def _transformers() -> tuple[Any, Any]:
    try:
        from transformers import SegformerConfig, SegformerForSemanticSegmentation
    except (ModuleNotFoundError, RuntimeError) as error:
        raise ModuleNotFoundError(
            f"SegFormer cannot be imported ({error}): pip install transformers, and a torchvision "
            f"that fits torch {torch.__version__}, both for CPUs or both for CUDA"
        ) from error
    return SegformerConfig, SegformerForSemanticSegmentation


def _labels(classes: Sequence[str]) -> dict[str, dict]:
    return {
        "id2label": dict(enumerate(classes)),
        "label2id": {name: place for place, name in enumerate(classes)},
    }
