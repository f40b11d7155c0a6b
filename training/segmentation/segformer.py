"""SegFormer (Xie et al., NeurIPS 2021) of ``transformers``, for frames of one channel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from difiisr_training.detection.samples import as_picture

if TYPE_CHECKING:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

MULTIPLE = 32
_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)  # ImageNet's, which SegFormer starts from
_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

B1 = {
    "depths": (2, 2, 2, 2),
    "hidden_sizes": (64, 128, 320, 512),
    "num_attention_heads": (1, 2, 5, 8),
    "sr_ratios": (8, 4, 2, 1),
    "decoder_hidden_size": 256,
}
"""Sizes of SegFormer-b1 (13.7 M parameters), the segmenter of the paper."""


def build_segformer(
    classes: Sequence[str], sizes: dict | None = None
) -> SegformerForSemanticSegmentation:
    """A SegFormer with random weights; ``sizes``: of its configuration, ``None``: b1.

    Raises:
        ModuleNotFoundError: ``transformers`` is not installed, or cannot be imported.
    """
    config_type, model_type = _transformers()
    chosen = {key: list(v) if isinstance(v, tuple) else v for key, v in (sizes or B1).items()}
    return model_type(config_type(**chosen, **_labels(classes)))


def load_segformer(
    folder: Path, classes: Sequence[str] | None = None
) -> SegformerForSemanticSegmentation:
    """Read a folder that ``save_pretrained`` wrote; nothing is downloaded.

    Args:
        folder: holds ``config.json`` and ``model.safetensors``.
        classes: start with a new last layer for these; ``None``: as stored.

    Raises:
        FileNotFoundError: a file is missing.
        ModuleNotFoundError: ``transformers`` is not installed, or cannot be imported.
    """
    for name in ("config.json", "model.safetensors"):
        if not (Path(folder) / name).is_file():
            raise FileNotFoundError(f"{folder} is no SegFormer folder: no {name} in it")
    _, model_type = _transformers()
    changed = {"ignore_mismatched_sizes": True, **_labels(classes)} if classes else {}
    return model_type.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, **changed
    )


def _transformers() -> tuple[type[SegformerConfig], type[SegformerForSemanticSegmentation]]:
    try:
        from transformers import SegformerConfig, SegformerForSemanticSegmentation
    except (ModuleNotFoundError, RuntimeError) as error:
        raise ModuleNotFoundError(
            f"SegFormer cannot be imported ({error}): pip install transformers, and a torchvision "
            f"that fits torch {torch.__version__}, both for CPUs or both for CUDA"
        ) from error
    return SegformerConfig, SegformerForSemanticSegmentation


def class_names(model: SegformerForSemanticSegmentation) -> tuple[str, ...]:
    """Names of a model's classes, in the order of its labels."""
    return tuple(model.config.id2label[place] for place in sorted(model.config.id2label))


def as_input(pictures: Tensor) -> Tensor:
    """Pictures ``(B, 1, H, W)`` in 0..1 -> the normalised colours ``(B, 3, H, W)``."""
    return (pictures - _MEAN.to(pictures.device)) / _STD.to(pictures.device)


def class_logits(model: SegformerForSemanticSegmentation, pictures: Tensor) -> Tensor:
    """Logits ``(B, C, H, W)`` of pictures ``(B, 1, H, W)`` in 0..1."""
    logits = model(pixel_values=as_input(pictures)).logits
    return F.interpolate(logits, size=pictures.shape[-2:], mode="bilinear", align_corners=False)


@torch.no_grad()
def segment(
    model: SegformerForSemanticSegmentation, counts: np.ndarray, device: str = "cpu"
) -> np.ndarray:
    """Label of each pixel, ``(H, W)`` uint8, of a frame of uint8, uint16 or float32 counts."""
    picture = as_picture(counts)
    padded = np.pad(picture, [(0, -side % MULTIPLE) for side in picture.shape], mode="edge")
    logits = class_logits(model.eval(), torch.from_numpy(padded)[None, None].to(device))
    height, width = picture.shape
    return logits[0, :, :height, :width].argmax(dim=0).to(torch.uint8).cpu().numpy()


def _labels(classes: Sequence[str]) -> dict[str, dict]:
    return {
        "id2label": dict(enumerate(classes)),
        "label2id": {name: place for place, name in enumerate(classes)},
    }
