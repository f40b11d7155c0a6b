"""SegFormer learns label maps, resumes, and judges every model; mean IoU is right."""

import json
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

from difiisr_training.evaluation.resampling import draw_images
from difiisr_training.evaluation.results import write_frame
from difiisr_training.segmentation import cli
from difiisr_training.segmentation.iou import IGNORED, ConfusionMatrix
from difiisr_training.segmentation.judge import NotLabelled, judge_segmentation
from difiisr_training.segmentation.labels import (
    fit_labels,
    maps_of_frames,
    pair_with_labels,
    read_labels,
)
from difiisr_training.segmentation.segformer import (
    build_segformer,
    class_names,
    load_segformer,
    segment,
)
from difiisr_training.segmentation.training import (
    SegmenterConfig,
    draw_batch,
    train_segmenter,
    validate,
)

CLASSES = ("road", "person")
TINY = {
    "depths": (1, 1, 1, 1),
    "hidden_sizes": (8, 8, 16, 16),
    "num_attention_heads": (1, 1, 2, 2),
    "sr_ratios": (8, 4, 2, 1),
    "decoder_hidden_size": 16,
}


def tiny(seed=0):
    torch.manual_seed(seed)
    return build_segformer(CLASSES, TINY)


def settings(**changes):
    return SegmenterConfig(
        **{"classes": CLASSES, "iterations": 4, "batch": 2, "crop": 64} | changes
    )


@pytest.fixture
def pairs(tmp_path):
    """Two dark images, each with a bright half that is a person."""
    for number in range(2):
        labels = np.zeros((64, 64), np.uint8)
        labels[:, number * 32 : number * 32 + 32] = 1
        for name, pixels in (("images", 40 + 180 * labels), ("labels", labels)):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name / f"{number}.png")
    return pair_with_labels(tmp_path / "images", tmp_path / "labels")


def test_mean_iou_of_a_case_counted_by_hand():
    matrix = ConfusionMatrix(3)
    matrix.add(
        np.array([[0, 0, 0, 1], [1, 1, IGNORED, IGNORED]]),
        np.array([[0, 0, 1, 1], [1, 0, 2, 0]]),
    )
    result = matrix.agreement(("a", "b", "c"))
    # a: 2 in both, 4 in either. b: 2 in both, 4 in either. c occurs on ignored pixels alone.
    assert result.per_class == {"a": pytest.approx(2 / 4), "b": pytest.approx(2 / 4), "c": None}
    assert result.miou == pytest.approx(0.5)
    assert (result.images, result.pixels) == (1, 6)


def test_mean_iou_agrees_with_torchmetrics():
    metrics = pytest.importorskip("torchmetrics.functional.classification")
    rng = np.random.default_rng(0)
    reference, result = rng.integers(0, 4, (2, 3, 20, 30))
    matrix = ConfusionMatrix(4)
    for one, other in zip(reference, result, strict=True):
        matrix.add(one, other)
    theirs = metrics.multiclass_jaccard_index(
        torch.from_numpy(result), torch.from_numpy(reference), 4
    )
    assert matrix.agreement(tuple("abcd")).miou == pytest.approx(theirs.item(), abs=1e-6)


def test_the_interval_of_mean_iou_is_that_of_resampled_images():
    rng = np.random.default_rng(0)
    matrix = ConfusionMatrix(3)
    pairs = []
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        reference = rng.integers(0, 3, (20, 20))
        result = np.where(rng.random((20, 20)) < share, rng.integers(0, 3, (20, 20)), reference)
        matrix.add(reference, result)
        pairs.append((reference, result))
    whole = matrix.agreement(tuple("abc"))
    low, high = whole.miou_interval
    assert low < whole.miou < high
    scores = []
    for weights in draw_images(5):
        one = ConfusionMatrix(3)
        for (reference, result), times in zip(pairs, weights, strict=True):
            for _ in range(times):
                one.add(reference, result)
        scores.append(one.agreement(tuple("abc")).miou)
    assert (low, high) == pytest.approx(np.quantile(scores, [0.025, 0.975]))
    assert ConfusionMatrix(3).agreement(tuple("abc")).miou_interval is None


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.uint8(pixels)).save(path)


def test_label_maps_belong_to_the_image_of_their_folder(tmp_path):
    for number, name in enumerate(("a/1", "b/1")):
        save(tmp_path / "images" / f"{name}.jpg", np.zeros((8, 8)))
        save(tmp_path / "labels" / f"{name}.png", np.full((8, 8), number))
    pairs = pair_with_labels(tmp_path / "images", tmp_path / "labels")
    assert [(i.parent.name, read_labels(m).max()) for i, m in pairs] == [("a", 0), ("b", 1)]
    found = maps_of_frames(tmp_path / "labels", ["b__1"])
    assert found == {"b__1": tmp_path / "labels" / "b" / "1.png"}
    assert maps_of_frames(tmp_path / "labels" / "b", ["b__1"])["b__1"].name == "1.png"
    with pytest.raises(ValueError, match="a__1, b__1"):
        maps_of_frames(tmp_path / "labels", ["1"])


def test_label_maps_of_another_size_are_refused(tmp_path):
    labels = np.arange(67 * 66).reshape(67, 66) % 3
    path = tmp_path / "a.png"
    assert np.array_equal(fit_labels(labels, (64, 64), path, enlarge=False), labels[:64, :64])
    for size in ((63, 64), (64, 62), (128, 128), (68, 66)):
        with pytest.raises(ValueError, match=rf"a\.png is 66x67, .* {size[1]}x{size[0]}"):
            fit_labels(labels, size, path, enlarge=True)
    large = fit_labels(labels, (268, 264), path, enlarge=True)
    assert np.array_equal(large, labels.repeat(4, 0).repeat(4, 1))
    with pytest.raises(ValueError, match="66x67"):
        fit_labels(labels, (268, 264), path, enlarge=False)


def test_labels_beyond_the_classes_and_other_sizes_are_refused():
    matrix = ConfusionMatrix(2)
    with pytest.raises(ValueError, match=r"labels 0\.\.2, there are 2 classes"):
        matrix.add(np.array([[0, 2]]), np.array([[0, 1]]))
    with pytest.raises(ValueError, match=r"\(1, 2\), the result is \(2, 1\)"):
        matrix.add(np.array([[0, 1]]), np.array([[0], [1]]))


def test_b1_has_the_published_size():
    with torch.device("meta"):
        model = build_segformer([str(i) for i in range(150)])
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(13.74e6, rel=0.01)


def test_label_maps_of_colours_are_refused(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "colours.png")
    with pytest.raises(ValueError, match="mode RGB"):
        read_labels(tmp_path / "colours.png")


def test_crops_depend_on_seed_and_number_alone_and_borders_are_ignored(pairs):
    pictures, labels = draw_batch(pairs, 96, 5, [0, 1, 2, 3])
    assert torch.equal(pictures[2:], draw_batch(pairs, 96, 5, [2, 3])[0])
    assert pictures.shape == (4, 1, 96, 96)
    assert ((labels == IGNORED).sum(dim=(1, 2)) == 96 * 96 - 64 * 64).all()
    judged = labels != IGNORED
    assert torch.equal(pictures[:, 0][judged] > 0.5, labels[judged] == 1)


def test_two_images_are_learnt(pairs, tmp_path):
    model = tiny()
    config = settings(iterations=60, lr=3e-3)
    assert train_segmenter(config, model, pairs, tmp_path / "run") == 60
    assert validate(model, pairs, CLASSES).miou > 0.85
    assert len((tmp_path / "run" / "statistics.jsonl").read_text().splitlines()) == 60


def test_a_signal_within_a_step_is_resumed_to_the_bit(pairs, tmp_path, monkeypatch):
    whole, part, resumed = tiny(), tiny(), tiny(1)
    train_segmenter(settings(), whole, pairs, tmp_path / "whole")
    step = torch.optim.AdamW.step

    def terminated(optimiser, *arguments):
        step(optimiser, *arguments)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", terminated)
        assert train_segmenter(settings(), part, pairs, tmp_path / "part") == 1
    assert train_segmenter(settings(), resumed, pairs, tmp_path / "part") == 4
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_resumed_run_equals_an_uninterrupted_one(pairs, tmp_path, monkeypatch):
    whole, part, resumed = tiny(), tiny(), tiny(1)
    train_segmenter(settings(), whole, pairs, tmp_path / "whole")
    clock = iter([0.0, 0.0, 0.0, 9.0])
    with monkeypatch.context() as patch:
        patch.setattr("difiisr_training.segmentation.training.time.monotonic", lambda: next(clock))
        assert train_segmenter(settings(), part, pairs, tmp_path / "part", budget_s=5) == 2
    assert train_segmenter(settings(), resumed, pairs, tmp_path / "part") == 4
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    with pytest.raises(ValueError, match="other settings for lr"):
        train_segmenter(settings(lr=1.0), tiny(), pairs, tmp_path / "part")


def test_the_command_trains_and_saves_a_folder_that_is_read_back(
    pairs, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(cli, "build_segformer", lambda classes: tiny())
    images, labels = tmp_path / "images", tmp_path / "labels"
    words = f"{images} --labels {labels} --classes road,person --out {tmp_path / 'run'} "
    words += f"--iterations 2 --batch 2 --crop 64 --val-data {images} --val-labels {labels}"
    assert cli.main(words.split()) == 0
    assert "validation, 2 images" in capsys.readouterr().out
    assert class_names(load_segformer(tmp_path / "run")) == CLASSES
    with pytest.raises(ValueError, match="--resume goes on"):
        cli.main(words.split())
    other = load_segformer(tmp_path / "run", ("a", "b", "c"))
    assert class_names(other) == ("a", "b", "c")
    assert segment(other, np.zeros((50, 70), np.uint8)).shape == (50, 70)


def test_a_folder_without_weights_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_segformer(tmp_path)


@pytest.fixture
def evaluated(pairs, tmp_path):
    """A model that equals HR and one that is flat, with a segmenter that knows the images."""
    model = tiny()
    train_segmenter(settings(iterations=60, lr=3e-3), model, pairs, tmp_path / "run")
    model.save_pretrained(tmp_path / "run")
    out = tmp_path / "out"
    for image, _ in pairs:
        counts = np.asarray(Image.open(image))
        series = {"lr": counts[::4, ::4], "hr": counts, "same": counts, "flat": counts * 0}
        for name, pixels in series.items():
            write_frame(out / "frames" / "scene" / name, image.stem, pixels)
    return out, tmp_path / "run", tmp_path / "labels"


def test_the_judge_says_whether_it_knew_the_truth(evaluated):
    out, segmenter, labels = evaluated
    pseudo = judge_segmentation(out, "scene", segmenter, None)
    assert pseudo["mode"] == "agreement with HR pseudo-labels"
    assert list(pseudo["sets"]["scene"]) == ["flat", "same"]
    assert pseudo["sets"]["scene"]["same"]["miou"] == 1.0
    assert pseudo["sets"]["scene"]["flat"]["miou"] < 0.7

    truth = judge_segmentation(out, "scene", segmenter, labels)
    assert truth["mode"] == "ground truth"
    assert list(truth["sets"]["scene"]) == ["flat", "same", "HR"]
    assert truth["sets"]["scene"]["same"] == truth["sets"]["scene"]["HR"]
    assert 0.8 < truth["sets"]["scene"]["HR"]["miou"] <= 1.0
    assert truth["sets"]["scene"]["HR"]["images"] == 2
    assert truth == json.loads((out / "segmentation.json").read_text())
    low, high = truth["sets"]["scene"]["flat"]["miou_interval"]
    assert low <= truth["sets"]["scene"]["flat"]["miou"] <= high

    for path in (out / "frames" / "scene" / "hr").iterdir():
        path.unlink()
    (out / "frames" / "scene" / "hr").rmdir()
    with pytest.raises(FileNotFoundError, match="neither label maps nor high-resolution"):
        judge_segmentation(out, "scene", segmenter, None)


def test_labels_of_a_cameras_own_frames_are_enlarged_with_them(evaluated, tmp_path):
    out, segmenter, labels = evaluated
    for path in sorted(labels.iterdir()):
        save(tmp_path / "small" / path.name, read_labels(path)[::4, ::4])
    large = judge_segmentation(out, "scene", segmenter, labels, ["same"])
    with pytest.raises(ValueError, match=r"0\.png is 16x16, the results are 64x64"):
        judge_segmentation(out, "scene", segmenter, tmp_path / "small", ["same"])
    shutil.rmtree(out / "frames" / "scene" / "hr")
    small = judge_segmentation(out, "scene", segmenter, tmp_path / "small", ["same"])
    assert small["sets"] == large["sets"]


def test_sets_with_label_maps_of_their_own_join_and_others_are_named(evaluated, tmp_path):
    out, segmenter, labels = evaluated
    shutil.copytree(out / "frames" / "scene", out / "frames" / "other")
    shutil.copytree(labels, tmp_path / "copy")
    judge_segmentation(out, "scene", segmenter, labels)
    result = judge_segmentation(out, "other", segmenter, tmp_path / "copy")
    assert set(result["sets"]) == {"scene", "other"}
    assert result["labels"] == {"scene": str(labels), "other": str(tmp_path / "copy")}
    save(tmp_path / "strange" / "night.png", np.zeros((64, 64)))
    with pytest.raises(NotLabelled, match=r"of scene: .* 0, its files e\.g\. night\.png"):
        judge_segmentation(out, "scene", segmenter, tmp_path / "strange")
