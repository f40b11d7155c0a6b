"""The detector learns, resumes and is exported; the peaks that it draws are read back."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("pycocotools")

from PIL import Image
from safetensors.torch import load_file

from difiisr_ros.commands.train_readers import ReaderRun, train_detector
from difiisr_training.checkpoints import read_journal
from difiisr_training.data.annotations import Annotations, Boxes
from difiisr_training.data.images import as_picture, read_counts
from difiisr_training.evaluation.readers import OnnxDetector
from difiisr_training.recipes import centre_network, reader_training

PLAIN = {"scales": (1.0, 1.0), "gain": 1.0, "offset": 0.0}


def frame(number):
    """A dark 64x64 frame with a bright tall object of class 0 and a wide grey one of class 1."""
    picture = np.full((64, 64), 0.2, np.float32)
    left, top = (8, 12) if number == 0 else (36, 30)
    picture[top : top + 20, left : left + 8] = 1.0
    x, y = (36, 44) if number == 0 else (6, 8)
    picture[y : y + 8, x : x + 20] = 0.6
    boxes = Boxes.of([([left, top, 8, 20], 0, False), ([x, y, 20, 8], 1, False)])
    return picture, boxes


FRAMES = [frame(0), frame(1)]
CLASSES = ("tall", "wide")


def tiny(**changes):
    settings = {"width": 8, "crop": 64, "iterations": 4, "batch": 2, "lr": 5e-3, "ema": 0.9}
    return reader_training.DetectorConfig(**settings | changes)


def test_a_folder_without_an_annotated_image_is_refused(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"no annotated image; .* e\.g\. 2"):
        reader_training.load_frames(tmp_path, Annotations(("tall", "wide"), {"2": frame(0)[1]}))


def test_ignored_regions_cost_nothing():
    targets = centre_network.draw_targets(Boxes.of([([0, 0, 64, 32], -1, True)]), 1, (64, 64))
    logits = torch.full((1, 1, 16, 16), -20.0)
    logits[0, 0, 2, 3] = 8.0  # an alarm inside the region
    batch = [each[None] for each in targets]
    assert centre_network.detection_loss(logits, torch.ones(1, 4, 16, 16), batch) < 1e-3
    logits[0, 0, 12, 3] = 8.0  # and one outside
    assert centre_network.detection_loss(logits, torch.ones(1, 4, 16, 16), batch) > 1


def test_boxes_follow_the_picture_through_the_augmentation():
    settings = tiny(crop=96, scales=(0.8, 1.25), gain=1.0, offset=0.0)
    for seed in range(8):
        picture, boxes = reader_training.augment(*frame(0), settings, np.random.default_rng(seed))
        tall = boxes.xywh[(boxes.classes == 0) & ~boxes.ignored]
        assert len(tall) == 1
        rows, columns = np.nonzero(picture > 0.8)
        left, top, width, height = tall[0]
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert seen == pytest.approx([left, top, left + width, top + height], abs=1.5)


def test_pictures_of_any_depth_lie_between_black_and_white():
    assert as_picture(np.array([[0, 255]], np.uint8)).tolist() == [[0, 1]]
    counts = np.linspace(7000, 7400, 64 * 64).reshape(64, 64)
    for dtype in (np.uint16, np.float32):
        picture = as_picture(counts.astype(dtype))
        assert picture.dtype == np.float32
        assert picture.min() < 0.1
        assert picture.max() > 0.9


def test_two_images_are_learnt_and_the_best_weights_are_kept(tmp_path):
    torch.set_num_threads(1)
    config = tiny(iterations=80, validate_every=40, lr=1e-2, **PLAIN)
    network, _ = reader_training.fit_detector(
        config, CLASSES, FRAMES, FRAMES, tmp_path, device="cpu"
    )
    judged = reader_training.detector_scores(network, FRAMES, CLASSES)
    assert judged["map50"] > 0.95
    assert max(x["map"] for x in read_journal(tmp_path, "validation.jsonl")) == judged["map"]
    lines = read_journal(tmp_path, "statistics.jsonl")
    assert [line["iteration"] for line in lines] == list(range(1, 81))
    assert lines[-1]["loss"] < 0.3 * lines[0]["loss"]


def test_a_run_goes_on_with_its_own_settings_and_classes_alone(tmp_path):
    def fit(classes=CLASSES, budget_s=math.inf, **changes):
        config = tiny(**{"validate_every": 2, "iterations": 3} | changes)
        frames = FRAMES, FRAMES[:1]
        return reader_training.fit_detector(config, classes, *frames, tmp_path, budget_s=budget_s)[
            1
        ].iteration

    assert (fit(budget_s=0), fit()) == (1, 3)
    with pytest.raises(ValueError, match="other settings for optimiser, settings"):
        fit(lr=1e-3)
    with pytest.raises(ValueError, match="other settings for classes"):
        fit(classes=("high", "wide"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of images and a COCO file of their boxes."""
    folder, images, entries = tmp_path_factory.mktemp("data"), [], []
    for number, (picture, objects) in enumerate(FRAMES):
        Image.fromarray(np.uint8(picture * 255)).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png"})
        for xywh, place in zip(objects.xywh.tolist(), objects.classes, strict=True):
            entries.append({"image_id": number, "category_id": int(place) + 1, "bbox": xywh})
    categories = [{"id": 1, "name": "tall"}, {"id": 2, "name": "wide"}]
    boxes = folder.parent / "boxes.json"
    boxes.write_text(
        json.dumps({"categories": categories, "images": images, "annotations": entries})
    )
    return folder, boxes


def test_the_command_trains_exports_and_resumes(data, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    images, boxes = data
    run = ReaderRun(out=tmp_path, device="cpu")
    options = {"annotations": boxes, "run": run, "config": tiny(iterations=2)}
    options |= {"val_data": images, "val_annotations": boxes}
    assert "2 of 2 iterations on 2 frames" in str(train_detector(images, **options))
    assert json.loads((tmp_path / "config.json").read_text())["crop"] == 64
    with pytest.raises(ValueError, match="--resume goes on"):
        train_detector(images, **options)

    network = centre_network.CentreDetector(2, 8)
    network.load_state_dict(load_file(tmp_path / "detector.safetensors"))
    detector = OnnxDetector(tmp_path / "detector.onnx")
    assert (detector.classes, detector.input_size) == (("tall", "wide"), None)
    noise = np.random.default_rng(0).integers(0, 255, (70, 90), np.uint8)
    for counts in (read_counts(images / "0.png"), noise):
        ours, theirs = centre_network.detect(network, as_picture(counts)), detector(counts)
        assert len(ours.scores) > 3
        np.testing.assert_allclose(theirs.scores, ours.scores, atol=1e-4)
        np.testing.assert_allclose(theirs.xywh, ours.xywh, atol=0.05)

    module = "difiisr_training.recipes.centre_network.export_detector"
    monkeypatch.setattr(module, lambda network, classes, path: path)  # slow
    train_detector(images, **options | {"run": replace(run, resume=True)})


def test_the_command_refuses_what_does_not_go_together(data, tmp_path, difiisr):
    (images, boxes), run = data, ReaderRun(out=tmp_path)
    with pytest.raises(ValueError, match="--val-annotations go together"):
        train_detector(images, annotations=boxes, run=run, val_data=images)
    other = tmp_path / "other.json"
    other.write_text(boxes.read_text().replace("tall", "high"))
    with pytest.raises(ValueError, match="has the classes high, wide"):
        train_detector(images, annotations=boxes, run=run, val_data=images, val_annotations=other)
    words = ["train-detector", "images", "--annotations", "boxes.json", "--out", "run"]
    assert "multiple of 16" in difiisr(*words, "--crop", "72", code=2).err
