"""Boxes and label maps are read as they are meant, and belong to the frames they are of."""

import json

import numpy as np
import pytest
from PIL import Image
from wave_frames import save_image

from difiisr_training.data.annotations import (
    annotations_sha256,
    pair_names,
    pair_with_labels,
    read_annotations,
    read_labels,
)

VOC = """<annotation><filename>other.png</filename>
<object><name>People</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>4</xmax><ymax>6</ymax></bndbox>
</object><object><name>Car</name><difficult>1</difficult>
<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>12.5</xmax><ymax>14</ymax></bndbox></object></annotation>"""


def boxes_of_frames(tmp_path, images, frames):
    """Number of boxes of each frame, by a COCO file of which image i holds i + 1 boxes."""
    content = {
        "categories": [{"id": 0, "name": "Person"}],
        "images": [{"id": place, "file_name": name} for place, name in enumerate(images)],
        "annotations": [
            {"image_id": place, "category_id": 0, "bbox": [1, 1, 9, 9]}
            for place in range(len(images))
            for _ in range(place + 1)
        ],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    found = pair_names(frames, read_annotations(tmp_path / "boxes.json").images)
    return {name: len(one.xywh) for name, one in found.items()}


@pytest.mark.parametrize(
    ("images", "frames", "boxes"),
    [
        (("a/1.jpg", "b/1.jpg"), ("a__1", "b__1", "c__2"), {"a__1": 1, "b__1": 2}),
        (("images/1.jpg", "images/2.jpg"), ("1",), {"1": 1}),
        (("/data/images/1.jpg",), ("1",), {"1": 1}),
        (("1.jpg", "2.jpg"), ("night__2",), {"night__2": 2}),
        (("1.jpg", "a/1.jpg"), ("1", "b__3"), {"1": 1}),
    ],
)
def test_boxes_belong_to_the_frame_of_their_folder(images, frames, boxes, tmp_path):
    assert boxes_of_frames(tmp_path, images, frames) == boxes


@pytest.mark.parametrize(
    ("images", "frames", "reason"),
    [
        (("a/1.jpg", "b/1.jpg"), ("1",), "cannot be told apart"),
        (("1.jpg",), ("a__1", "b__1"), "cannot be told apart"),
        (("1.jpg", "1.png"), ("1",), r"1\.jpg and 1\.png have one name"),
    ],
)
def test_names_that_fit_several_are_refused(images, frames, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        boxes_of_frames(tmp_path, images, frames)


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


def test_coco_files_and_those_of_hit_uav_are_read(tmp_path):
    path = tmp_path / "test.json"
    path.write_text(json.dumps(hit_uav()))
    truth = read_annotations(path)
    assert truth.classes == ("Person", "Car")
    assert truth.images["a"].xywh.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert truth.images["a"].classes.tolist() == [1, -1]
    assert truth.images["a"].ignored.tolist() == [False, True]
    assert truth.images["b"].xywh.shape == (0, 4)
    content = {
        "categories": [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}],
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "iscrowd": 1}],
    }
    path.write_text(json.dumps(content))
    truth = read_annotations(path)
    assert truth.classes == ("person", "car")
    assert truth.images["a"].classes.tolist() == [1]
    assert truth.images["a"].ignored.tolist() == [True]


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


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("wrong.xml", "<annotation>", "Pascal VOC"),
        ("wrong.xml", VOC.replace("<xmin>1</xmin>", ""), "Pascal VOC"),
        ("wrong.json", "{", "COCO annotation"),
        ("wrong.json", "[]", "COCO annotation"),
        ("wrong.json", json.dumps(hit_uav(annotation=[{"category_id": 0}])), "COCO annotation"),
    ],
)
def test_what_is_no_annotation_file_is_named(tmp_path, name, text, kind):
    with pytest.raises(ValueError, match="no Pascal VOC file"):
        read_annotations(tmp_path)
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"{name} is no {kind} file"):
        read_annotations(tmp_path if name.endswith("xml") else path)


def test_label_maps_belong_to_the_image_of_their_folder(tmp_path):
    for number, name in enumerate(("a/1", "b/1")):
        save_image(tmp_path / "images" / f"{name}.jpg", np.zeros((8, 8), np.uint8))
        save_image(tmp_path / "labels" / f"{name}.png", np.full((8, 8), number, np.uint8))
    pairs = pair_with_labels(tmp_path / "images", tmp_path / "labels")
    assert [(i.parent.name, read_labels(m).max()) for i, m in pairs] == [("a", 0), ("b", 1)]
    Image.new("RGB", (8, 8)).save(tmp_path / "colours.png")
    with pytest.raises(ValueError, match="mode RGB"):
        read_labels(tmp_path / "colours.png")
