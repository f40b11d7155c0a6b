"""Average precision is COCO's, mean IoU is right, and both say how sure they are."""

import numpy as np
import pytest

pytest.importorskip("pycocotools")

from difiisr_training.data.annotations import IGNORED, Boxes
from difiisr_training.evaluation.readers import Detections
from difiisr_training.evaluation.task_scores import (
    average_precision,
    compare,
    count_pixels,
    mean_iou,
)

CLASSES = ("Person", "Car")


def objects(*rows, ignored=None):
    """Rows of (x, y, w, h, class)."""
    flags = ignored or [False] * len(rows)
    return Boxes.of((row[:4], row[4], flag) for row, flag in zip(rows, flags, strict=True))


def found(*rows):
    """Rows of (x, y, w, h, class, score)."""
    array = np.array(rows, float).reshape(-1, 6)
    return Detections(array[:, :4], array[:, 4].astype(int), array[:, 5])


ONE = (10, 10, 20, 20, 0)
"""An object, and with a score behind it a detection of it."""


@pytest.mark.parametrize(
    ("truth", "hits", "ap"),
    [
        # a false alarm with a higher score, one in an ignored region, a class without object
        (objects(ONE), found((200, 200, 20, 20, 0, 0.9), (*ONE, 0.5)), 0.5),
        (objects(ONE, (100, 100, 80, 80, -1), ignored=[False, True]),
         found((120, 120, 20, 20, 0, 0.9), (*ONE, 0.5)), 1.0),
        (objects(ONE), found((*ONE, 0.9), (1, 1, 5, 5, 1, 0.9)), 1.0),
        (objects(), found((*ONE, 0.9)), None),
        (objects(ONE), found(), 0.0),
    ],
)  # fmt: skip
def test_average_precision_of_one_image(truth, hits, ap):
    result = average_precision([truth], [hits], CLASSES)
    assert result["map"] == pytest.approx(ap)
    assert result["boxes"] == int((~truth.ignored).sum())
    assert result["per_class"]["Car"] == {"ap": None, "ap50": None, "boxes": 0}


def test_a_shifted_box_counts_at_half_overlap_but_not_at_nearly_all():
    truth = [objects((0, 0, 100, 100, 0))]
    result = average_precision(truth, [found((20, 0, 100, 100, 0, 0.9))], CLASSES)  # IoU 80/120
    assert result["map50"] == pytest.approx(1.0)
    assert result["map"] == pytest.approx(0.4)  # at 0.50, 0.55, 0.60, 0.65 of the ten thresholds


def test_a_class_that_few_images_show_does_not_widen_the_interval():
    """When it is not drawn, the mean is still over both classes."""
    rare = [objects((0, 0, 20, 20, 0)) for _ in range(6)]
    rare[0] = objects((0, 0, 20, 20, 0), (50, 50, 20, 20, 1))
    hits = [found((0, 0, 20, 20, 0, 0.9)) for _ in rare]  # the rare class is never found
    result = compare({"one": average_precision(rare, hits, CLASSES, resamples=True)})["one"]
    assert result["map"] == pytest.approx(0.5)
    assert result["map_interval"] == pytest.approx([0.5, 0.5])


def test_what_is_better_on_every_image_is_surely_better_however_wide_both_intervals_are():
    """On half of the images the object is seldom the first that is found, by either model."""
    truth = [objects(ONE)] * 40
    alarm = (200, 200, 20, 20, 0, 0.9)
    good = [found((*ONE, 0.95), *[alarm] * (n % 2)) for n in range(40)]
    poor = [found((*ONE, 0.3), *[alarm] * (n % 2)) for n in range(40)]
    scores = {
        name: average_precision(truth, hits, CLASSES, resamples=True)
        for name, hits in {"bicubic": poor, "net@0": poor, "net": good, "HR": good}.items()
    }
    models = compare(scores)
    low, high = models["bicubic"]["map_interval"]
    assert low < models["bicubic"]["map"] < high
    gap = models["net"]["difference_to_bicubic"]["map"]
    assert gap["mean"] == pytest.approx(models["net"]["map"] - models["bicubic"]["map"])
    assert 0 < gap["interval"][0] < gap["mean"] < gap["interval"][1]
    assert models["net@0"]["difference_to_bicubic"]["map50"]["interval"] == [0, 0]
    assert "difference_to_best_peer" not in models["net"]  # its own other setting is none
    assert models["HR"]["difference_to_best_peer"]["model"] == "net"
    assert "resampled" not in models["net"]


def test_mean_iou_of_a_case_counted_by_hand():
    reference = np.array([[0, 0, 0, 1], [1, 1, IGNORED, IGNORED]])
    counts = count_pixels(reference, np.array([[0, 0, 1, 1], [1, 0, 2, 0]]), 3)
    result = compare({"one": mean_iou(counts[None], ("a", "b", "c"))})["one"]
    # a: 2 in both, 4 in either. b: 2 in both, 4 in either. c occurs on ignored pixels alone.
    assert result == {
        "miou": pytest.approx(0.5),
        "miou_interval": pytest.approx([0.5, 0.5]),
        "per_class": {"a": pytest.approx(2 / 4), "b": pytest.approx(2 / 4), "c": None},
        "images": 1,
        "pixels": 6,
    }

    two = np.stack([counts, count_pixels(np.array([[0, 0]]), np.array([[0, 1]]), 3)])
    scores = mean_iou(two, ("a", "b", "c"))  # the pixels of both are added up
    result = compare({"one": scores})["one"]
    assert result["per_class"] == {"a": pytest.approx(3 / 6), "b": pytest.approx(2 / 5), "c": None}
    assert result["miou_interval"][0] < result["miou"] < result["miou_interval"][1]
    nothing = mean_iou(np.zeros((1, 3, 3), int), ("a", "b", "c"))
    assert compare({"one": nothing})["one"]["miou"] is None


def test_labels_beyond_the_classes_and_other_sizes_are_refused():
    with pytest.raises(ValueError, match=r"labels 0\.\.2, there are 2 classes"):
        count_pixels(np.array([[0, 2]]), np.array([[0, 1]]), 2)
    with pytest.raises(ValueError, match=r"\(1, 2\), the result is \(2, 1\)"):
        count_pixels(np.array([[0, 1]]), np.array([[0], [1]]), 2)
    with pytest.raises(ValueError, match="2 images with objects, but 1"):
        average_precision([objects()] * 2, [found()], CLASSES)
