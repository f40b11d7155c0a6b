"""Detectors as ONNX files: ours, which describe themselves, and FastestDet's for COCO."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from difiisr_models.weights import sha256_file
from difiisr_training.detection.network import MULTIPLE, CentreDetector, PeakScores
from difiisr_training.detection.peaks import Detections, decode_peaks, keep_best
from difiisr_training.detection.samples import as_picture
from difiisr_training.detection.training import pad_to_multiple

_FORMAT, _FORMAT_KEY, _CLASSES_KEY = "centre-peaks-1", "detector", "classes"
_OPSET = 18
_TOLERANCE = 1e-3
_COCO_VEHICLES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
)  # fmt: skip
_COCO_COUNT = 80
_FASTESTDET_CHANNELS = 1 + 4 + _COCO_COUNT
_MIN_SCORE = 0.01


class OnnxDetector:
    """A detector that runs in onnxruntime on the CPU.

    Attributes:
        path: its file.
        sha256: of the file.
        classes: names of what it finds.
        input_size: ``(H, W)`` that pictures are resized to; ``None``: any size, as it is.
    """

    def __init__(self, path: Path) -> None:
        """Load a file.

        Raises:
            FileNotFoundError: no such file.
            ModuleNotFoundError: onnxruntime is not installed.
            ValueError: neither of the two kinds.
        """
        import onnxruntime

        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no detector {path}")
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has no public base class of its errors
            raise ValueError(f"{path} is no ONNX file that onnxruntime runs: {error}") from error
        properties = self._session.get_modelmeta().custom_metadata_map
        shape = self._session.get_outputs()[0].shape
        self._input = self._session.get_inputs()[0]
        self.sha256 = sha256_file(self.path)
        if properties.get(_FORMAT_KEY) == _FORMAT:
            self.classes = tuple(json.loads(properties[_CLASSES_KEY]))
            self.input_size, self._find = None, self._find_peaks
        elif len(shape) == 4 and shape[1] == _FASTESTDET_CHANNELS:
            self.classes = _COCO_VEHICLES
            self.input_size, self._find = tuple(self._input.shape[2:]), self._find_fastestdet
        else:
            raise ValueError(
                f"{path} is neither an export of difiisr train-detector nor FastestDet for COCO: "
                f"its first output has the shape {shape}"
            )

    def __call__(self, counts: np.ndarray) -> Detections:
        """Find the objects in a frame ``(H, W)`` of uint8, uint16 or float32 counts."""
        return self._find(as_picture(counts))

    def _find_peaks(self, picture: np.ndarray) -> Detections:
        padded = pad_to_multiple(picture)[None, None]
        scores, sides = self._session.run(None, {self._input.name: padded})
        return decode_peaks(scores[0], sides[0], picture.shape)

    def _find_fastestdet(self, picture: np.ndarray) -> Detections:
        """Only the classes that move are kept; the others of COCO are dropped."""
        height, width = self.input_size
        grey = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)
        colours = np.repeat(np.asarray(grey)[None, None], 3, axis=1)
        (maps,) = self._session.run(None, {self._input.name: colours})
        return decode_fastestdet(maps[0], picture.shape)


def decode_fastestdet(maps: np.ndarray, size: tuple[int, int]) -> Detections:
    """Boxes of FastestDet's output.

    Args:
        maps: ``(85, h, w)``: objectness, offsets of the centre in x and y (before tanh, in cells),
            width and height (before the logistic function, shares of the image), 80 class shares.
        size: ``(H, W)`` of the picture in pixels.
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
    return keep_best(corners, classes[row, column], scores[row, column], size)


def export_detector(network: CentreDetector, classes: tuple[str, ...], path: Path) -> Path:
    """Write a detector as ONNX for pictures of any size, and check it with onnxruntime.

    Args:
        network: what was trained.
        classes: names, in the order of its outputs.
        path: the file to write.

    Raises:
        RuntimeError: the file does not compute what the network does.
    """
    import onnxruntime

    module = PeakScores(network).cpu().eval()
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(1, 1, 5 * MULTIPLE, 7 * MULTIPLE, generator=generator)
    rows, columns = torch.export.Dim("rows", min=2), torch.export.Dim("columns", min=2)
    program = torch.onnx.export(
        module,
        (picture,),
        dynamo=True,
        opset_version=_OPSET,
        input_names=["picture"],
        output_names=["scores", "sides"],
        dynamic_shapes={"images": {2: MULTIPLE * rows, 3: MULTIPLE * columns}},
        verbose=False,
    )
    program.model.metadata_props.update({_FORMAT_KEY: _FORMAT, _CLASSES_KEY: json.dumps(classes)})
    program.save(str(path), external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    larger = torch.rand(1, 1, 6 * MULTIPLE, 4 * MULTIPLE, generator=generator)
    for probe in (picture, larger):
        with torch.no_grad():
            logits, sides = network(probe)
        scores, exported_sides = session.run(None, {"picture": probe.numpy()})
        wrong = max(
            np.abs(exported_sides / sides.numpy() - 1).max(),
            np.abs(scores - np.where(scores > 0, torch.sigmoid(logits).numpy(), 0)).max(),
        )
        if not wrong < _TOLERANCE:
            raise RuntimeError(f"{path} differs from the network by {wrong:.2g}")
    return path
