"""Annotations are read as they are meant, and average precision is COCO's."""

import json

import numpy as np
import pytest

pytest.importorskip("pycocotools")

from difiisr_training.detection.annotations import (
    Annotations,
    Boxes,
    annotations_sha256,
    read_annotations,
)
from difiisr_training.detection.average_precision import (
    _evaluate,
    _resampled,
    average_precision,
)
from difiisr_training.detection.peaks import Detections

CLASSES = ("Person", "Car")


def objects(*rows, ignored=None):
    """Rows of (x, y, w, h, class)."""
    array = np.array(rows, float).reshape(-1, 5)
    flags = np.zeros(len(array), bool) if ignored is None else np.array(ignored)
    return Boxes(array[:, :4], array[:, 4].astype(int), flags)


def found(*rows):
    """Rows of (x, y, w, h, class, score)."""
    array = np.array(rows, float).reshape(-1, 6)
    return Detections(array[:, :4], array[:, 4].astype(int), array[:, 5])


def test_perfect_boxes_give_one():
    truth = [objects((10, 10, 20, 30, 0), (50, 60, 40, 20, 1)), objects((5, 5, 9, 9, 0))]
    hits = [found((10, 10, 20, 30, 0, 0.9), (50, 60, 40, 20, 1, 0.8)), found((5, 5, 9, 9, 0, 0.7))]
    result = average_precision(truth, hits, CLASSES)
    assert result.map == pytest.approx(1.0)
    assert result.map50 == pytest.approx(1.0)
    assert (result.images, result.boxes) == (2, 3)
    assert result.per_class["Person"].boxes == 2


def test_one_of_two_found_gives_precision_up_to_half_the_recall():
    truth = [objects((10, 10, 20, 20, 0), (100, 100, 20, 20, 0))]
    result = average_precision(truth, [found((10, 10, 20, 20, 0, 0.9))], CLASSES)
    # 51 of COCO's 101 recall levels lie at or below 0.5.
    assert result.map == pytest.approx(51 / 101)


def test_a_shifted_box_counts_at_half_overlap_but_not_at_nearly_all():
    truth = [objects((0, 0, 100, 100, 0))]
    result = average_precision(truth, [found((20, 0, 100, 100, 0, 0.9))], CLASSES)  # IoU 80/120
    assert result.map50 == pytest.approx(1.0)
    assert result.map == pytest.approx(0.4)  # at 0.50, 0.55, 0.60 and 0.65 of the ten thresholds


def test_a_false_alarm_with_a_higher_score_halves_the_precision():
    truth = [objects((10, 10, 20, 20, 0))]
    hits = [found((200, 200, 20, 20, 0, 0.9), (10, 10, 20, 20, 0, 0.5))]
    assert average_precision(truth, hits, CLASSES).map == pytest.approx(0.5)


def test_detections_in_ignored_regions_are_no_mistakes():
    any_class = objects((10, 10, 20, 20, 0), (100, 100, 80, 80, -1), ignored=[False, True])
    alarm = (120, 120, 20, 20, 0, 0.9)
    hits = [found(alarm, (10, 10, 20, 20, 0, 0.5))]
    result = average_precision([any_class], hits, CLASSES)
    assert result.map == pytest.approx(1.0)
    assert result.boxes == 1


def test_a_class_without_objects_has_no_precision_and_is_not_in_the_mean():
    result = average_precision(
        [objects((10, 10, 20, 20, 0))],
        [found((10, 10, 20, 20, 0, 0.9), (1, 1, 5, 5, 1, 0.9))],
        CLASSES,
    )
    assert result.per_class["Car"].ap is None
    assert result.map == pytest.approx(1.0)


def test_without_any_object_there_is_no_precision():
    result = average_precision([Boxes.none()], [found((1, 1, 5, 5, 0, 0.9))], CLASSES)
    assert result.map is None
    assert result.map50 is None


def noisy_set(images, seed=0):
    """Objects of two classes, most of them found a little beside, and false alarms."""
    rng = np.random.default_rng(seed)
    truth, hits = [], []
    for _ in range(images):
        boxes = [(*rng.uniform(0, 200, 2), *rng.uniform(20, 60, 2), rng.integers(2)) for _ in "abc"]
        shifted = [(*(np.array(b[:4]) + rng.normal(0, 3, 4)), b[4], rng.random()) for b in boxes]
        alarms = [(*rng.uniform(0, 200, 2), 30, 30, rng.integers(2), rng.random()) for _ in "ab"]
        truth.append(objects(*boxes, ignored=[False, False, True]))
        hits.append(found(*shifted, *alarms))
    return truth, hits


def test_resamples_have_the_precision_of_images_that_are_repeated():
    truth, hits = noisy_set(8)
    draws = np.random.default_rng(1).multinomial(8, np.full(8, 1 / 8), 20)
    resampled = _resampled(_evaluate(truth, hits, 2), 2, draws)
    for weights, (ap, ap50) in zip(draws, resampled, strict=True):
        order = np.repeat(np.arange(8), weights)
        whole = average_precision([truth[i] for i in order], [hits[i] for i in order], CLASSES)
        assert (ap, ap50) == (pytest.approx(whole.map), pytest.approx(whole.map50))


def test_intervals_hold_the_precision_and_shrink_with_more_images():
    widths = []
    for images in (10, 80):
        result = average_precision(*noisy_set(images), CLASSES, intervals=True)
        assert result.map_interval[0] < result.map < result.map_interval[1]
        assert result.map50_interval[0] < result.map50 < result.map50_interval[1]
        again = average_precision(*noisy_set(images), CLASSES, intervals=True)
        assert again.map_interval == result.map_interval
        widths.append(np.diff(result.map_interval)[0])
    assert widths[1] < 0.6 * widths[0]
    truth, hits = noisy_set(3)
    assert average_precision(truth, hits, CLASSES).map_interval is None
    without = average_precision([Boxes.none()], hits[:1], CLASSES, intervals=True)
    assert without.map_interval is None


def test_a_class_that_few_images_show_does_not_widen_the_interval():
    """When it is not drawn, the mean is still over both classes."""
    rare = [objects((0, 0, 20, 20, 0)) for _ in range(12)]
    rare[0] = objects((0, 0, 20, 20, 0), (50, 50, 20, 20, 1))
    hits = [found((0, 0, 20, 20, 0, 0.9)) for _ in rare]  # the rare class is never found
    result = average_precision(rare, hits, CLASSES, intervals=True)
    assert result.map == pytest.approx(0.5)
    assert result.map_interval == pytest.approx([0.5, 0.5])


def named(*images):
    """Annotations of which image i holds i + 1 boxes."""
    return Annotations(
        ("Person",),
        {name: objects(*[(1, 1, 9, 9, 0)] * n) for n, name in enumerate(images, 1)},
    )


def counts(truth, *frames):
    return {name: len(boxes.xywh) for name, boxes in truth.of_frames(frames).items()}


def test_boxes_belong_to_the_frame_of_their_folder():
    assert counts(named("a/1.jpg", "b/1.jpg"), "a__1", "b__1", "c__2") == {"a__1": 1, "b__1": 2}
    assert counts(named("images/1.jpg", "images/2.jpg"), "1") == {"1": 1}
    assert counts(named("1.jpg", "2.jpg"), "night__2") == {"night__2": 2}
    assert counts(named("1.jpg", "a/1.jpg"), "1", "b__3") == {"1": 1}


@pytest.mark.parametrize(
    ("images", "frames"),
    [(("a/1.jpg", "b/1.jpg"), ("1",)), (("1.jpg",), ("a__1", "b__1"))],
)
def test_names_that_fit_several_are_refused(images, frames):
    with pytest.raises(ValueError, match="cannot be told apart"):
        counts(named(*images), *frames)
    with pytest.raises(ValueError, match=r"1\.jpg and 1\.png have one name"):
        counts(named("1.jpg", "1.png"), "1")


def hit_uav(**changes):
    content = {
        "categories": [
            {"id": 0, "name": "Person"},
            {"id": 1, "name": "Car"},
            {"id": 4, "name": "DontCare"},
        ],
        "images": [{"id": 7, "filename": "a.jpg"}, {"id": 9, "filename": "b.jpg"}],
        "annotation": [
            {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4]},
            {"image_id": 7, "category_id": 4, "bbox": [5, 6, 7, 8]},
        ],
    }
    return content | changes


def test_hit_uav_files_are_read(tmp_path):
    path = tmp_path / "test.json"
    path.write_text(json.dumps(hit_uav()))
    truth = read_annotations(path)
    assert truth.classes == CLASSES
    assert truth.images["a.jpg"].xywh.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert truth.images["a.jpg"].classes.tolist() == [1, -1]
    assert truth.images["a.jpg"].ignored.tolist() == [False, True]
    assert len(truth.images["b.jpg"].classes) == 0


def test_plain_coco_files_are_read(tmp_path):
    path = tmp_path / "coco.json"
    content = {
        "categories": [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}],
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "iscrowd": 1}],
    }
    path.write_text(json.dumps(content))
    truth = read_annotations(path)
    assert truth.classes == ("person", "car")
    assert truth.images["a.png"].classes.tolist() == [1]
    assert truth.images["a.png"].ignored.tolist() == [True]


VOC = """<annotation><filename>other.png</filename>
<object><name>People</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>4</xmax><ymax>6</ymax></bndbox>
</object><object><name>Car</name><difficult>1</difficult>
<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>12.5</xmax><ymax>14</ymax></bndbox></object></annotation>"""


def test_folders_of_pascal_voc_files_are_read(tmp_path):
    (tmp_path / "00000.xml").write_text(VOC)
    (tmp_path / "00001.xml").write_text("<annotation/>")
    truth = read_annotations(tmp_path)
    assert truth.classes == ("Car", "People")
    boxes = truth.images["00000"]
    assert boxes.xywh.tolist() == [[1, 2, 3, 4], [5, 6, 7.5, 8]]
    assert boxes.classes.tolist() == [1, 0]
    assert boxes.ignored.tolist() == [False, True]
    assert len(truth.images["00001"].classes) == 0
    before = annotations_sha256(tmp_path)
    (tmp_path / "00001.xml").write_text(VOC)
    assert annotations_sha256(tmp_path) != before


@pytest.mark.parametrize("text", ["<annotation>", VOC.replace("<xmin>1</xmin>", "")])
def test_what_is_no_pascal_voc_file_is_named(tmp_path, text):
    with pytest.raises(ValueError, match="no Pascal VOC file"):
        read_annotations(tmp_path)
    (tmp_path / "bad.xml").write_text(text)
    with pytest.raises(ValueError, match=r"bad\.xml is no Pascal VOC file"):
        read_annotations(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", json.dumps(hit_uav(annotation=[{"image_id": 1, "category_id": 0}]))],
)
def test_what_is_no_annotation_file_is_named(tmp_path, text):
    path = tmp_path / "wrong.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"wrong\.json is no COCO annotation file"):
        read_annotations(path)


def test_the_shared_boxes_are_understood(shared_data):
    truth = read_annotations(shared_data / "hit_uav" / "annotations" / "test.json")
    assert truth.classes == ("Person", "Car", "Bicycle", "OtherVehicle")
    assert len(truth.images) == 130
    assert sum(int((~boxes.ignored).sum()) for boxes in truth.images.values()) == 1009
