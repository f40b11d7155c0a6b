"""The detector learns, resumes and is exported; the peaks that it draws are read back."""

import json
import signal

import numpy as np
import pytest
import torch

pytest.importorskip("pycocotools")

from PIL import Image

from difiisr_training.detection import cli
from difiisr_training.detection.annotations import Annotations, Boxes
from difiisr_training.detection.network import CentreDetector
from difiisr_training.detection.peaks import decode_peaks
from difiisr_training.detection.samples import (
    Augmentation,
    LabelledFrame,
    as_picture,
    augment,
    crop_boxes,
    draw_batch,
    load_frames,
)
from difiisr_training.detection.targets import detection_loss, draw_targets
from difiisr_training.detection.training import (
    DetectorConfig,
    detect,
    train_detector,
    validate,
)

PLAIN = Augmentation(size=64, scales=(1.0, 1.0), gain=1.0, offset=0.0)


def frame(number):
    """A dark 64x64 frame with a bright tall object of class 0 and a wide grey one of class 1."""
    picture = np.full((64, 64), 0.2, np.float32)
    left, top = (8, 12) if number == 0 else (36, 30)
    picture[top : top + 20, left : left + 8] = 1.0
    x, y = (36, 44) if number == 0 else (6, 8)
    picture[y : y + 8, x : x + 20] = 0.6
    boxes = Boxes(
        np.array([[left, top, 8, 20], [x, y, 20, 8]], float), np.array([0, 1]), np.zeros(2, bool)
    )
    return LabelledFrame(f"{number}.png", picture, boxes)


def tiny(**changes):
    settings = {
        "classes": ("tall", "wide"),
        "width": 8,
        "iterations": 6,
        "batch": 2,
        "lr": 5e-3,
        "ema": 0.9,
        "augmentation": PLAIN,
    }
    return DetectorConfig(**settings | changes)


def test_frames_of_one_name_keep_the_boxes_of_their_folders(tmp_path):
    for number, folder in enumerate("ab"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.full((8, 8), 50 * number, np.uint8)).save(tmp_path / folder / "1.png")
    images = {f"{folder}/1.png": frame(number).boxes for number, folder in enumerate("ab")}
    frames = load_frames(tmp_path, Annotations(("tall", "wide"), images))
    assert [one.picture.max() for one in frames] == [0, pytest.approx(50 / 255)]
    for number, one in enumerate(frames):
        np.testing.assert_array_equal(one.boxes.xywh, frame(number).boxes.xywh)
    with pytest.raises(ValueError, match="cannot be told apart"):
        load_frames(tmp_path, Annotations(("tall", "wide"), {"1.png": frame(0).boxes}))


def test_planted_targets_are_decoded_to_the_boxes_that_were_drawn():
    boxes = frame(0).boxes
    targets = draw_targets(boxes, 2, (64, 64))
    scores = np.where(targets.heat.numpy() == 1, 0.9, 0)
    found = decode_peaks(scores, targets.sides.numpy(), (64, 64))
    order = np.argsort(found.classes)
    np.testing.assert_allclose(found.xywh[order], boxes.xywh, atol=1e-4)
    np.testing.assert_allclose(found.scores, 0.9)


def test_ignored_regions_cost_nothing():
    region = Boxes(np.array([[0.0, 0, 64, 32]]), np.array([-1]), np.array([True]))
    targets = draw_targets(region, 1, (64, 64))
    assert targets.heat.max() == 0
    assert targets.care[:8].max() == 0
    assert targets.care[8:].min() == 1
    logits = torch.full((1, 1, 16, 16), -20.0)
    logits[0, 0, 2, 3] = 8.0  # an alarm inside the region
    batch = type(targets)(*(getattr(targets, k)[None] for k in targets.__annotations__))
    assert detection_loss(logits, torch.ones(1, 4, 16, 16), batch) < 1e-3
    logits[0, 0, 12, 3] = 8.0  # and one outside
    assert detection_loss(logits, torch.ones(1, 4, 16, 16), batch) > 1


def test_double_peaks_of_one_object_are_one_detection():
    scores, sides = np.zeros((1, 16, 16)), np.full((4, 16, 16), 12.0)
    scores[0, 5, 5], scores[0, 5, 7] = 0.9, 0.8
    sides[0, 5, 7], sides[2, 5, 7] = 20.0, 4.0
    found = decode_peaks(scores, sides, (64, 64))
    assert found.scores.tolist() == [0.9]


def test_boxes_follow_the_picture_through_the_augmentation():
    bright = frame(0)
    settings = Augmentation(size=96, scales=(0.8, 1.25), gain=1.0, offset=0.0)
    for seed in range(8):
        picture, boxes = augment(bright, settings, np.random.default_rng(seed))
        tall = boxes.xywh[(boxes.classes == 0) & ~boxes.ignored]
        assert len(tall) == 1
        rows, columns = np.nonzero(picture > 0.8)
        left, top, width, height = tall[0]
        assert columns.min() == pytest.approx(left, abs=1.5)
        assert columns.max() + 1 == pytest.approx(left + width, abs=1.5)
        assert rows.min() == pytest.approx(top, abs=1.5)
        assert rows.max() + 1 == pytest.approx(top + height, abs=1.5)


def test_objects_that_are_mostly_cut_off_become_ignored():
    boxes = Boxes(np.array([[-9.0, 0, 10, 10], [40, 40, 10, 10], [80, 80, 5, 5]]),
                  np.array([0, 0, 0]), np.zeros(3, bool))  # fmt: skip
    kept = crop_boxes(boxes, 64)
    assert kept.xywh.tolist() == [[0, 0, 1, 10], [40, 40, 10, 10]]
    assert kept.ignored.tolist() == [True, False]


def test_samples_depend_on_seed_and_number_alone():
    frames, settings = [frame(0), frame(1)], Augmentation(size=64, blur=0.5)
    together = draw_batch(frames, 2, settings, 3, [0, 1, 2, 3])[0]
    apart = draw_batch(frames, 2, settings, 3, [2, 3])[0]
    assert torch.equal(together[2:], apart)
    assert not torch.equal(together, draw_batch(frames, 2, settings, 4, [0, 1, 2, 3])[0])


def test_pictures_of_any_depth_lie_between_black_and_white():
    assert as_picture(np.array([[0, 255]], np.uint8)).tolist() == [[0, 1]]
    counts = np.linspace(7000, 7400, 64 * 64).reshape(64, 64)
    for dtype in (np.uint16, np.float32):
        picture = as_picture(counts.astype(dtype))
        assert picture.dtype == np.float32
        assert picture.min() < 0.1
        assert picture.max() > 0.9


def test_two_images_are_learnt(tmp_path):
    torch.set_num_threads(1)
    frames = [frame(0), frame(1)]
    config = tiny(iterations=110, validate_every=110)
    state = train_detector(config, frames, frames, tmp_path / "run")
    judged = validate(state.result(), frames, config.classes, "cpu")
    assert judged.map50 > 0.95
    lines = (tmp_path / "run" / "statistics.jsonl").read_text().splitlines()
    assert len(lines) == 110
    assert json.loads(lines[-1])["map50"] == pytest.approx(judged.map50)
    assert json.loads(lines[-1])["loss"] < 0.3 * json.loads(lines[0])["loss"]


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    frames = [frame(0), frame(1)]
    config = tiny(augmentation=Augmentation(size=64), validate_every=2)
    whole = train_detector(config, frames, frames, tmp_path / "whole")
    clock = iter([0.0, 0.0, 0.0, 0.0, 9.0])
    with monkeypatch.context() as patch:
        patch.setattr("difiisr_training.detection.training.time.monotonic", lambda: next(clock))
        part = train_detector(config, frames, frames, tmp_path / "part", budget_s=5)
    assert part.iteration == 3
    resumed = train_detector(config, frames, frames, tmp_path / "part")
    assert resumed.iteration == 6
    for name, value in whole.ema.state_dict().items():
        assert torch.equal(value, resumed.ema.state_dict()[name]), name
    assert resumed.best_map == whole.best_map


def test_ctrl_c_within_a_step_is_resumed_to_the_bit(tmp_path, monkeypatch):
    frames = [frame(0), frame(1)]
    config = tiny(augmentation=Augmentation(size=64), validate_every=2)
    whole = train_detector(config, frames, frames, tmp_path / "whole")
    step = torch.optim.AdamW.step

    def interrupted(optimiser, *arguments):
        step(optimiser, *arguments)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", interrupted)
        assert train_detector(config, frames, frames, tmp_path / "part").iteration == 1
    resumed = train_detector(config, frames, frames, tmp_path / "part")
    for name, value in whole.ema.state_dict().items():
        assert torch.equal(value, resumed.ema.state_dict()[name]), name


def test_a_run_is_not_continued_with_other_settings(tmp_path):
    train_detector(tiny(iterations=1), [frame(0)], [], tmp_path)
    with pytest.raises(ValueError, match="other settings for lr"):
        train_detector(tiny(iterations=1, lr=1e-3), [frame(0)], [], tmp_path)


def test_the_export_finds_what_the_network_finds(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from difiisr_training.detection.onnx_detector import OnnxDetector, export_detector

    torch.manual_seed(0)
    network = CentreDetector(2, 8).eval()
    torch.nn.init.constant_(network.classes[-1].bias, 0.0)
    path = export_detector(network, ("tall", "wide"), tmp_path / "detector.onnx")
    detector = OnnxDetector(path)
    assert detector.classes == ("tall", "wide")
    assert detector.input_size is None
    counts = np.random.default_rng(0).integers(0, 255, (70, 90), np.uint8)
    ours, theirs = detect(network, as_picture(counts)), detector(counts)
    assert len(ours.scores) > 3
    np.testing.assert_allclose(theirs.xywh, ours.xywh, atol=0.05)
    np.testing.assert_allclose(theirs.scores, ours.scores, atol=1e-4)


def test_the_command_trains_exports_and_resumes(tmp_path, capsys, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    images, entries = [], []
    (tmp_path / "data").mkdir()
    for number in range(2):
        made = frame(number)
        Image.fromarray(np.uint8(made.picture * 255)).save(tmp_path / "data" / made.name)
        images.append({"id": number, "file_name": made.name})
        for xywh, place in zip(made.boxes.xywh, made.boxes.classes, strict=True):
            entries.append(
                {"image_id": number, "category_id": int(place) + 1, "bbox": xywh.tolist()}
            )
    categories = [{"id": 1, "name": "tall"}, {"id": 2, "name": "wide"}]
    boxes = tmp_path / "boxes.json"
    boxes.write_text(
        json.dumps({"categories": categories, "images": images, "annotations": entries})
    )
    words = f"{tmp_path / 'data'} --annotations {boxes} --out {tmp_path / 'run'} --iterations 2 "
    words += f"--width 8 --crop 64 --val-data {tmp_path / 'data'} --val-annotations {boxes}"
    assert cli.main(words.split()) == 0
    assert "2 of 2 iterations on 2 frames" in capsys.readouterr().out
    for name in ("detector.onnx", "detector.safetensors", "config.json", "checkpoint.pt"):
        assert (tmp_path / "run" / name).is_file()
    with pytest.raises(ValueError, match="--resume goes on"):
        cli.main(words.split())
    monkeypatch.setattr(cli, "export_detector", lambda network, classes, path: path)  # slow
    assert cli.main([*words.split(), "--resume"]) == 0
