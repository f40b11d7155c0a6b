"""SegFormer learns label maps, resumes and is read back."""

import signal
import sys

import numpy as np
import pytest
import torch
from wave_frames import save_image

try:  # a torchvision of another torch cannot be imported; transformers does without any
    import torchvision  # noqa: F401
except (ImportError, RuntimeError):
    sys.modules["torchvision"] = None
pytest.importorskip("transformers")

from transformers import SegformerConfig, SegformerForSemanticSegmentation

from difiisr_ros.commands.train_readers import ReaderRun, train_segmenter
from difiisr_training.data.annotations import IGNORED, pair_with_labels, read_labels
from difiisr_training.data.images import read_counts
from difiisr_training.evaluation import readers
from difiisr_training.recipes.reader_training import (
    SegmenterConfig,
    draw_crops,
    fit_segmenter,
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
    names = dict(enumerate(CLASSES))
    return SegformerForSemanticSegmentation(SegformerConfig(**TINY, id2label=names))


def settings(**changes):
    return SegmenterConfig(**{"iterations": 3, "batch": 2, "crop": 64} | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two dark images, each with a bright half that is a person: ``images`` and ``labels``."""
    root = tmp_path_factory.mktemp("data")
    for number in range(2):
        labels = np.zeros((64, 64), np.uint8)
        labels[:, number * 32 : number * 32 + 32] = 1
        for name, pixels in (("images", 40 + 180 * labels), ("labels", labels)):
            save_image(root / name / f"{number}.png", pixels.astype(np.uint8))
    return root


@pytest.fixture(scope="module")
def pairs(folder):
    return pair_with_labels(folder / "images", folder / "labels")


def test_b1_has_the_published_size():
    with torch.device("meta"):
        model = readers.build_segformer([str(i) for i in range(150)])
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(13.74e6, rel=0.01)


def test_crops_depend_on_seed_and_number_alone_and_borders_are_ignored(pairs):
    pictures, labels = draw_crops(pairs, 96, 5, [0, 1, 2, 3])
    assert torch.equal(pictures[2:], draw_crops(pairs, 96, 5, [2, 3])[0])
    assert pictures.shape == (4, 1, 96, 96)
    assert ((labels == IGNORED).sum(dim=(1, 2)) == 96 * 96 - 64 * 64).all()
    judged = labels != IGNORED
    assert torch.equal(pictures[:, 0][judged] > 0.5, labels[judged] == 1)


def test_two_images_are_learnt(pairs, tmp_path):
    torch.set_num_threads(1)
    average, state = fit_segmenter(settings(iterations=40, lr=5e-3), tiny(), pairs, tmp_path)
    assert state.iteration == 40
    for image, labels in pairs:
        found = readers.segment(average, read_counts(image))
        assert (found == read_labels(labels)).mean() > 0.93
    assert len((tmp_path / "statistics.jsonl").read_text().splitlines()) == 40


def test_a_signal_within_a_step_is_resumed_to_the_bit(pairs, tmp_path, monkeypatch):
    whole, _ = fit_segmenter(settings(), tiny(), pairs, tmp_path / "whole")
    step = torch.optim.AdamW.step

    def terminated(optimiser, *arguments):
        step(optimiser, *arguments)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", terminated)
        state = fit_segmenter(settings(), tiny(), pairs, tmp_path / "part")[1]
        assert (state.iteration, state.interrupted) == (1, signal.SIGTERM)
    average, state = fit_segmenter(settings(), tiny(1), pairs, tmp_path / "part")
    assert state.iteration == 3
    ours, theirs = average.state_dict(), whole.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


def test_the_command_trains_and_saves_a_folder_that_is_read_back(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "build_segformer", lambda classes: tiny())
    images, labels = folder / "images", folder / "labels"
    run = ReaderRun(out=tmp_path, device="cpu")
    options = {"labels": labels, "classes": "road, person", "run": run}
    options |= {"config": settings(iterations=1)}
    assert "1 of 1 iterations on 2 images" in str(train_segmenter(images, **options))
    assert readers.class_names(readers.load_segformer(tmp_path)) == CLASSES
    with pytest.raises(ValueError, match="--resume goes on"):
        train_segmenter(images, **options)
    other = readers.load_segformer(tmp_path, ("a", "b", "c"))
    assert readers.class_names(other) == ("a", "b", "c")
    assert readers.segment(other, np.zeros((50, 70), np.uint8)).shape == (50, 70)


def test_a_folder_without_weights_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        readers.load_segformer(tmp_path)
