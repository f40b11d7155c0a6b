"""Label maps for a segmenter where only boxes are known: each box of HIT-UAV as a filled mask.

    python -m benchmarks.boxes_as_masks DATA/hit_uav --out masks

writes ``train/images`` and ``train/labels``, squares around the objects of the training part (most
of its pixels are background), and ``test/labels``, of whole frames. Labels are places in CLASSES;
regions that HIT-UAV does not judge are 255.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from difiisr_training.data.annotations import IGNORED, Boxes, images_by_name, read_annotations

CLASSES = ("background", "person", "vehicle", "bicycle")
_LABELS = {"Person": 1, "Car": 2, "OtherVehicle": 2, "Bicycle": 3}
_SIDE = 192  # pixels of a square
_SQUARES = 4  # of a frame


def mask_of(boxes: Boxes, classes: tuple[str, ...], shape: tuple[int, int]) -> np.ndarray:
    """``(H, W)`` uint8 labels of a frame; small boxes lie over large ones."""
    mask = np.zeros(shape, np.uint8)
    for k in np.argsort(-boxes.xywh[:, 2:].prod(1)):
        left, top, width, height = boxes.xywh[k]
        rows = slice(max(0, round(top)), max(0, round(top + height)))
        columns = slice(max(0, round(left)), max(0, round(left + width)))
        label = IGNORED if boxes.ignored[k] else _LABELS[classes[boxes.classes[k]]]
        mask[rows, columns] = label
    return mask


def main() -> None:
    """Write the images and label maps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        known = read_annotations(options.root / "annotations" / f"{part}.json")
        images, labels = (options.out / part / kind for kind in ("images", "labels"))
        for folder in (images, labels) if part == "train" else (labels,):
            folder.mkdir(parents=True, exist_ok=True)
        for name, path in images_by_name(options.root / part).items():
            boxes = known.images[name]
            frame = np.asarray(Image.open(path).convert("L"))
            mask = mask_of(boxes, known.classes, frame.shape)
            if part == "test":
                Image.fromarray(mask).save(labels / f"{name}.png")
                continue
            judged = boxes.xywh[~boxes.ignored]
            for index in range(_SQUARES if len(judged) else 0):
                left, top, width, height = judged[rng.integers(len(judged))]
                middle = np.array([top + height / 2, left + width / 2])
                corner = middle - _SIDE / 2 + rng.uniform(-_SIDE / 4, _SIDE / 4, 2)
                y, x = np.clip(corner, 0, np.array(frame.shape) - _SIDE).astype(int)
                square = np.s_[y : y + _SIDE, x : x + _SIDE]
                Image.fromarray(frame[square]).save(images / f"{name}-{index}.png")
                Image.fromarray(mask[square]).save(labels / f"{name}-{index}.png")


if __name__ == "__main__":
    main()
