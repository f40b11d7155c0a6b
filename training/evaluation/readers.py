"""What reads a frame: detectors of objects as ONNX files, and SegFormer.

Detectors are ours, which say what they are, FastestDet for COCO, and YOLO. SegFormer (Xie et al.,
NeurIPS 2021) is that of ``transformers``.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from difiisr_models.files import sha256_file
from difiisr_training.data.images import as_picture
from difiisr_training.perceptual import with_torchvision

if TYPE_CHECKING:
    from transformers import SegformerForSemanticSegmentation

FORMAT_KEY, FORMAT, CLASSES_KEY = "detector", "centre-peaks-1", "classes"
"""Properties by which an ONNX file of ours says what it is and what it finds."""

STRIDE = 4
"""Pixels per cell of our detector's maps."""

MULTIPLE = 16
"""Sides of our detector's input must be multiples of this."""

INPUT_MULTIPLE = 32
"""Sides of SegFormer's input must be multiples of this."""

_SAME_OBJECT_IOU = 0.6
_MAX_DETECTIONS = 300
_MIN_SCORE = 0.01
_COCO_VEHICLES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
)  # fmt: skip
_FASTESTDET_CHANNELS = 1 + 4 + 80
_YOLO_COLUMNS = 4 + 1 + 1  # left, top, right, bottom; score; class

# Of ImageNet's colours, which SegFormer was first trained on.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_B1_CHANNELS = [64, 128, 320, 512]  # the rest is as transformers has it


@dataclass(frozen=True)
class Detections:
    """What was found in one image, best first."""

    xywh: np.ndarray  # (N, 4) float64: left, top, width and height in pixels
    classes: np.ndarray  # (N,) int64: places in the detector's classes
    scores: np.ndarray  # (N,) float64 in 0..1


class OnnxDetector:
    """A detector in onnxruntime on the CPU.

    An export of ``difiisr train-detector``, FastestDet for COCO, or an export of ultralytics' YOLO
    with its own suppression of overlapping boxes (``nms=True``: an output ``(1, N, 6)``).

    ``classes`` are the names of what it finds, ``input_size`` is the ``(H, W)`` that pictures are
    resized to; ``None``: any size, as it is. ValueError: the file is none of these.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        self.path = Path(path)
        self.sha256 = sha256_file(self.path)
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has no public base class of its errors
            raise ValueError(f"{path} is no ONNX file that onnxruntime runs: {error}") from error
        properties = self._session.get_modelmeta().custom_metadata_map
        shape = self._session.get_outputs()[0].shape
        self._input = self._session.get_inputs()[0]
        if properties.get(FORMAT_KEY) == FORMAT:
            self.classes = tuple(json.loads(properties[CLASSES_KEY]))
            self.input_size, self._find = None, self._find_peaks
        elif len(shape) == 4 and shape[1] == _FASTESTDET_CHANNELS:
            self.classes = _COCO_VEHICLES
            self.input_size, self._find = tuple(self._input.shape[2:]), self._find_fastestdet
        elif len(shape) == 3 and shape[2] == _YOLO_COLUMNS and "names" in properties:
            names = ast.literal_eval(properties["names"])
            self.classes = tuple(names[key] for key in sorted(names))
            self.input_size, self._find = tuple(self._input.shape[2:]), self._find_yolo
        else:
            raise ValueError(
                f"{path} is no export of difiisr train-detector, no FastestDet for COCO and no "
                f"YOLO with nms=True: its first output has the shape {shape}"
            )

    def __call__(self, counts: np.ndarray) -> Detections:
        """Find the objects in a frame ``(H, W)`` of uint8, uint16 or float32 counts."""
        return self._find(as_picture(counts))

    def _find_peaks(self, picture: np.ndarray) -> Detections:
        padded = pad_to_multiple(picture, MULTIPLE)[None, None]
        scores, sides = self._session.run(None, {self._input.name: padded})
        return decode_peaks(scores[0], sides[0], picture.shape)

    def _find_fastestdet(self, picture: np.ndarray) -> Detections:
        return decode_fastestdet(self._resized(picture), picture.shape)

    def _find_yolo(self, picture: np.ndarray) -> Detections:
        rows = self._resized(picture)
        rows = rows[rows[:, 4] > _MIN_SCORE]
        scale = np.divide(picture.shape, self.input_size or picture.shape)[[1, 0, 1, 0]]
        corners = rows[:, :4].astype(np.float64) * scale
        return _keep_best(corners, rows[:, 5].astype(np.int64), rows[:, 4], picture.shape)

    def _resized(self, picture: np.ndarray) -> np.ndarray:
        """The output for a picture at the size of the input, in three equal colours."""
        height, width = self.input_size or picture.shape
        grey = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)
        colours = np.repeat(np.asarray(grey)[None, None], 3, axis=1)
        return self._session.run(None, {self._input.name: colours})[0][0]


def pad_to_multiple(picture: np.ndarray, multiple: int) -> np.ndarray:
    """Repeat the right and lower border until both sides are multiples of ``multiple``."""
    return np.pad(picture, [(0, -side % multiple) for side in picture.shape], mode="edge")


def decode_peaks(scores: np.ndarray, sides: np.ndarray, size: tuple[int, int]) -> Detections:
    """Boxes of the peaks in our detector's maps, cut at the borders of an image of ``size`` (H, W).

    ``scores`` ``(C, h, w)`` in 0..1 are zero away from local maxima, ``sides`` ``(4, h, w)`` are
    distances in pixels from the cell's centre to left, top, right and bottom.
    """
    classes, rows, columns = np.nonzero(scores > _MIN_SCORE)
    x, y = (columns + 0.5) * STRIDE, (rows + 0.5) * STRIDE
    left, top, right, bottom = sides[:, rows, columns].astype(np.float64)
    corners = np.stack([x - left, y - top, x + right, y + bottom], axis=1)
    return _keep_best(corners, classes, scores[classes, rows, columns], size)


def decode_fastestdet(maps: np.ndarray, size: tuple[int, int]) -> Detections:
    """Boxes of FastestDet's output for a picture of ``size`` (H, W); of COCO those that move.

    ``maps`` ``(85, h, w)``: objectness, offsets of the centre in x and y (before tanh, in cells),
    width and height (before the logistic function, shares of the image), 80 class shares.
    """
    rows, columns = maps.shape[1:]
    classes = maps[5:].argmax(axis=0)
    scores = maps[0] ** 0.6 * maps[5:].max(axis=0) ** 0.4
    row, column = np.nonzero((scores > _MIN_SCORE) & (classes < len(_COCO_VEHICLES)))
    dx, dy, wide, high = maps[1:5, row, column].astype(np.float64)
    x = (column + np.tanh(dx)) / columns * size[1]
    y = (row + np.tanh(dy)) / rows * size[0]
    half_width, half_height = size[1] / (2 + 2 * np.exp(-wide)), size[0] / (2 + 2 * np.exp(-high))
    corners = np.stack([x - half_width, y - half_height, x + half_width, y + half_height], axis=1)
    return _keep_best(corners, classes[row, column], scores[row, column], size)


def _keep_best(
    corners: np.ndarray, classes: np.ndarray, scores: np.ndarray, size: tuple[int, int]
) -> Detections:
    """Of overlapping boxes of one class the best; ``corners (N, 4)``: left, top, right, bottom."""
    from pycocotools.mask import iou

    corners = corners.clip(0, np.array([size[1], size[0]] * 2))
    xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    left = np.argsort(-scores, kind="stable")
    left = left[(xywh[left, 2:] > 0).all(axis=1)]
    kept: list[int] = []
    while left.size and len(kept) < _MAX_DETECTIONS:
        best, left = left[0], left[1:]
        kept.append(best)
        overlap = np.reshape(iou(xywh[left], xywh[[best]], [False]), len(left))
        left = left[(overlap <= _SAME_OBJECT_IOU) | (classes[left] != classes[best])]
    return Detections(xywh[kept], classes[kept].astype(np.int64), scores[kept].astype(np.float64))


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
    with with_torchvision("transformers"):
        from transformers import SegformerConfig, SegformerForSemanticSegmentation
    return SegformerConfig, SegformerForSemanticSegmentation


def _labels(classes: Sequence[str]) -> dict[str, dict]:
    return {
        "id2label": dict(enumerate(classes)),
        "label2id": {name: place for place, name in enumerate(classes)},
    }
