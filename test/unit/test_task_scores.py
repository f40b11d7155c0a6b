"""Detector and segmenter judge the frames of an evaluation; the scores are right, and how sure."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from wave_frames import save_image

from difiisr_training.data.annotations import IGNORED, Boxes
from difiisr_training.data.images import read_counts
from difiisr_training.evaluation import readers
from difiisr_training.evaluation.readers import Detections, OnnxDetector
from difiisr_training.evaluation.results import write_frame
from difiisr_training.evaluation.task_scores import (
    average_precision,
    compare,
    count_pixels,
    judge_detection,
    judge_segmentation,
    match_classes,
    mean_iou,
)

pytest.importorskip("pycocotools")
pytest.importorskip("onnxruntime")

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


class BrightDetector:
    """Finds the bounding box of what is brighter than 200."""

    classes, sha256, input_size = ("person",), "0" * 64, None

    def __init__(self, path):
        self.path = path

    def __call__(self, counts):
        rows, columns = np.nonzero(counts > 200)
        if not rows.size:
            return Detections(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0))
        x, y = columns.min(), rows.min()
        box = [[x, y, columns.max() + 1 - x, rows.max() + 1 - y]]
        return Detections(np.array(box, float), np.zeros(1, np.int64), np.ones(1))


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """One frame with a bright object: HR shows it, "sharp" too, "blind" does not."""
    monkeypatch.setattr(readers, "OnnxDetector", BrightDetector)
    out = tmp_path / "out"
    bright = np.zeros((64, 64), np.uint8)
    bright[8:28, 12:24] = 255
    for series, counts in {"hr": bright, "sharp": bright, "blind": bright // 4}.items():
        write_frame(out / "frames" / "scene" / series, "a", counts)
        write_frame(out / "frames" / "scene" / series, "unlabelled", counts)
    write_frame(out / "frames" / "scene" / "lr", "a", bright[::4, ::4])
    boxes = tmp_path / "boxes.json"
    content = {
        "categories": [{"id": 0, "name": "Person"}],
        "images": [{"id": 0, "filename": "a.jpg"}],
        "annotation": [{"image_id": 0, "category_id": 0, "bbox": [12, 8, 12, 20]}],
    }
    boxes.write_text(json.dumps(content))
    return out, boxes


def judged(evaluated, name="scene", models=("blind", "sharp")):
    out, boxes = evaluated
    return judge_detection(out, {name: boxes}, models, out / "d.onnx")


def test_every_model_and_hr_are_judged_on_the_annotated_frames(evaluated):
    out, boxes = evaluated
    result = judged(evaluated)
    models = result["sets"]["scene"]
    assert list(models) == ["blind", "sharp", "HR"]
    assert models["sharp"]["map"] == models["HR"]["map"] == pytest.approx(1.0)
    assert models["blind"]["map"] == 0
    assert models["HR"]["images"] == models["HR"]["boxes"] == 1
    assert models["HR"]["per_class"]["Person"]["ap50"] == pytest.approx(1.0)
    assert models["sharp"]["map_interval"] == pytest.approx([1.0, 1.0])
    assert models["blind"]["map50_interval"] == [0.0, 0.0]
    overlay = result["overlays"]["scene"]["a"]
    assert overlay["truth"] == [{"box": [12, 8, 12, 20], "class": "Person"}]
    assert overlay["sharp"] == [{"box": [12, 8, 12, 20], "class": "Person", "score": 1.0}]
    assert overlay["blind"] == []
    assert result["annotations"]["scene"]["path"] == str(boxes)
    shutil.copytree(out / "frames" / "scene", out / "frames" / "other")
    both = judge_detection(out, {"scene": boxes, "other": boxes}, ["sharp"], out / "d.onnx")
    assert list(both["sets"]) == ["scene", "other"]


def test_boxes_of_a_cameras_own_frames_are_enlarged_with_them(evaluated):
    out, _ = evaluated
    shutil.rmtree(out / "frames" / "scene" / "hr")
    large = np.zeros((256, 256), np.uint8)
    large[32:112, 48:96] = 255
    for series in ("sharp", "blind"):
        write_frame(out / "frames" / "scene" / series, "a", large)
    assert judged(evaluated)["sets"]["scene"]["sharp"]["map"] == pytest.approx(1.0)


def test_a_set_without_annotations_is_refused(evaluated):
    _, boxes = evaluated
    boxes.write_text(boxes.read_text().replace("a.jpg", "b.jpg"))
    with pytest.raises(ValueError, match=r"no boxes for the frames of scene.* e\.g\. b$"):
        judged(evaluated)


def test_coco_classes_find_their_places_in_hit_uav():
    hit_uav = ("Person", "Car", "Bicycle", "OtherVehicle")
    assert match_classes(("person", "bicycle", "car", "bus"), hit_uav).tolist() == [0, 2, 1, 3]
    assert match_classes(("person", "dog"), ("People", "Truck")).tolist() == [0, -1]
    with pytest.raises(ValueError, match="no class in common"):
        match_classes(("dog",), hit_uav)


def test_what_is_no_detector_is_named(tmp_path):
    (tmp_path / "wrong.onnx").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is no ONNX file"):
        OnnxDetector(tmp_path / "wrong.onnx")


def test_fastestdet_finds_the_car_of_a_thermal_street(shared_data, shared_weights):
    detector = OnnxDetector(shared_weights("fastestdet_coco.onnx"))
    assert detector.input_size == (352, 352)
    found = detector(read_counts(shared_data / "roadscene" / "train" / "FLIR_04285.png"))
    assert detector.classes[found.classes[0]] == "car"
    assert found.scores[0] > 0.7
    assert (found.xywh[0] > [320, 220, 190, 50]).all()
    assert (found.xywh[0] < [400, 280, 290, 110]).all()


@pytest.fixture
def segmented(tmp_path, monkeypatch):
    """Two frames, a model that equals HR and a flat one; whatever is bright is a person.

    Returns folders: of the evaluation, of the segmenter and of the label maps.
    """

    class BrightSegmenter:
        def to(self, _):
            return self

    monkeypatch.setattr(readers, "load_segformer", lambda _: BrightSegmenter())
    monkeypatch.setattr(readers, "class_names", lambda _: ("road", "person"))
    monkeypatch.setattr(readers, "segment", lambda _, counts: np.uint8(counts > 128))
    (tmp_path / "segmenter").mkdir()
    (tmp_path / "segmenter" / "model.safetensors").write_bytes(b"weights")
    for number in range(2):
        labels = np.zeros((64, 64), np.uint8)
        labels[:, number * 32 : number * 32 + 32] = 1
        uncut = np.pad(labels, [(0, 3), (0, 2)])  # the frames were cut to multiples of four
        save_image(tmp_path / "labels" / f"{number}.png", uncut)
        counts = 40 + 180 * labels
        series = {"lr": counts[::4, ::4], "hr": counts, "same": counts, "flat": counts * 0}
        for name, pixels in series.items():
            write_frame(tmp_path / "out" / "frames" / "scene" / name, str(number), pixels)
    return tmp_path / "out", tmp_path / "segmenter", tmp_path / "labels"


def test_the_segmenter_says_whether_it_knew_the_truth(segmented):
    out, segmenter, labels = segmented

    def judge(labels, models=("flat", "same")):
        return judge_segmentation(out, {"scene": labels}, models, segmenter)

    pseudo = judge(None)
    assert pseudo["mode"] == "agreement with HR pseudo-labels"
    assert list(pseudo["sets"]["scene"]) == ["flat", "same"]
    assert pseudo["sets"]["scene"]["same"]["miou"] == 1.0
    assert pseudo["sets"]["scene"]["flat"]["miou"] == pytest.approx(0.25)

    truth = judge(labels)
    assert truth["mode"] == "ground truth"
    assert truth["segmenter"]["classes"] == ["road", "person"]
    models = truth["sets"]["scene"]
    assert list(models) == ["flat", "same", "HR"]
    assert models["same"]["miou_interval"] == models["HR"]["miou_interval"] == [1, 1]
    assert models["same"]["difference_to_best_peer"]["model"] == "flat"
    gap = models["HR"]["difference_to_best_peer"]
    assert gap == {"model": "same", "miou": {"mean": 0, "interval": [0, 0]}}
    assert (models["HR"]["miou"], models["HR"]["images"]) == (1.0, 2)
    low, high = models["flat"]["miou_interval"]
    assert low <= models["flat"]["miou"] <= high

    save_image(out / "strange" / "night.png", np.zeros((64, 64), np.uint8))
    with pytest.raises(ValueError, match=r"of scene: .* 0, its files e\.g\. night\.png"):
        judge(out / "strange")
    for path in sorted(labels.iterdir()):
        save_image(out / "small" / path.name, np.asarray(Image.open(path))[:64:4, :64:4])
    with pytest.raises(ValueError, match=r"0\.png is 16x16, the results are 64x64"):
        judge(out / "small")
    large = judge(labels, ["same"])["sets"]["scene"]["same"]
    shutil.rmtree(out / "frames" / "scene" / "hr")  # labels of a camera's own frames
    small = judge(out / "small", ["same"])["sets"]["scene"]["same"]
    assert (small["miou"], small["pixels"]) == (large["miou"], large["pixels"])
    with pytest.raises(FileNotFoundError, match="neither label maps nor high-resolution"):
        judge(None)
