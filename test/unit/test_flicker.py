import numpy as np
import pytest

from difiisr_training.data.images import pillow_resize
from difiisr_training.evaluation.flicker import FlickerMeter


def bicubic(lr):
    return pillow_resize(lr, lr.shape[0] * 4, lr.shape[1] * 4)


def film(frames=12, sigma=3.0, size=(24, 32)):
    """A scene that stands still, seen with noise."""
    rng = np.random.default_rng(0)
    scene = rng.uniform(1000, 3000, size)
    return [(scene + rng.normal(0, sigma, size)).astype(np.float32) for _ in range(frames)]


def measure(frames, model):
    meter = FlickerMeter()
    return [meter.update(lr, model(lr)) for lr in frames]


def test_bicubic_flickers_like_itself_and_twice_its_contrast_twice_as_much():
    for model, wanted in ((bicubic, 1), (lambda lr: 2 * bicubic(lr), 2)):
        found = measure(film(), model)
        assert np.isnan(found[0]["flicker"])
        assert all(one["flicker"] == pytest.approx(wanted, rel=1e-5) for one in found[1:])


def test_a_model_that_repeats_pixels_passes_the_noise_on():
    """|difference| of two samples of noise of standard deviation s: 2 s / sqrt(pi) on average."""
    found = measure(film(40), lambda lr: lr.repeat(4, 0).repeat(4, 1))
    counts = np.mean([one["flicker_counts"] for one in found[1:]])
    assert counts == pytest.approx(2 * 3 / np.sqrt(np.pi), rel=0.02)


def test_an_answer_that_never_changes_does_not_flicker():
    found = measure(film(), lambda lr: np.full((96, 128), 7.0))
    assert [one["flicker"] for one in found[1:]] == [0] * 11


def test_pixels_that_move_in_the_scene_are_left_out():
    frames = film()
    for index, lr in enumerate(frames):
        lr[:12] = 1000 if index % 2 else 3000  # the upper half blinks

    def blink_more(lr):
        sr = lr.repeat(4, 0).repeat(4, 1)
        sr[:48] *= 5
        return sr

    plain = measure(frames, lambda lr: lr.repeat(4, 0).repeat(4, 1))
    assert measure(frames, blink_more)[1:] == plain[1:]
    assert plain[-1]["flicker_counts"] < 10


def test_no_value_where_nothing_is_static_or_the_size_changes():
    rng = np.random.default_rng(1)
    wild = [rng.uniform(0, 5000, (24, 32)).astype(np.float32) for _ in range(6)]
    assert all(np.isnan(one["flicker"]) for one in measure(wild, bicubic)[2:])
    frames = [*film(2), *film(2, size=(16, 16))]
    assert [np.isnan(one["flicker"]) for one in measure(frames, bicubic)] == [1, 0, 1, 0]
