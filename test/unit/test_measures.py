import math
from pathlib import Path

import numpy as np
import pytest
import torch

from difiisr_training.data.images import list_images, read_counts
from difiisr_training.degradations.mix import pillow_resize
from difiisr_training.evaluation import measures
from difiisr_training.evaluation.inputs import make_pair
from difiisr_training.evaluation.measures import Flicker, Judge, Radiometry

WEIGHTS = Path(__file__).parents[3] / "shared" / "weights"


def bicubic(lr):
    return pillow_resize(lr, lr.shape[0] * 4, lr.shape[1] * 4)


def nearest(lr):
    return lr.repeat(4, 0).repeat(4, 1)


def film(frames=12, size=(24, 32)):
    """A scene that stands still, seen with noise of standard deviation 3."""
    rng = np.random.default_rng(0)
    scene = rng.uniform(1000, 3000, size)
    return [(scene + rng.normal(0, 3, size)).astype(np.float32) for _ in range(frames)]


def measure(frames, model):
    """``(flicker, flicker_counts)`` per frame."""
    flicker = Flicker()
    return np.array([flicker(model(lr), lr) for lr in frames])


def test_flicker_is_over_that_of_bicubic_and_that_of_the_noise():
    """|difference| of two samples of noise of standard deviation s: 2 s / sqrt(pi) on average."""
    for factor in (1, 2):
        found = measure(film(), lambda lr, factor=factor: factor * bicubic(lr))
        assert np.isnan(found[0]).all()
        assert found[1:, 0] == pytest.approx(factor, rel=1e-5)
    counts = measure(film(40), nearest)[1:, 1].mean()
    assert counts == pytest.approx(2 * 3 / np.sqrt(np.pi), rel=0.02)


def test_pixels_that_move_in_the_scene_are_left_out():
    frames = film()
    for index, lr in enumerate(frames):
        lr[:12] = 1000 if index % 2 else 3000  # the upper half blinks

    def blink_more(lr):
        return nearest(np.vstack([5 * lr[:12], lr[12:]]))

    plain = measure(frames, nearest)
    assert np.array_equal(measure(frames, blink_more)[1:], plain[1:])
    assert plain[-1, 1] < 10


def test_no_value_where_nothing_is_static_or_the_size_changes():
    rng = np.random.default_rng(1)
    wild = [rng.uniform(0, 5000, (24, 32)).astype(np.float32) for _ in range(6)]
    assert np.isnan(measure(wild, bicubic)[2:, 0]).all()
    frames = [*film(2), *film(2, size=(16, 16))]
    assert np.isnan(measure(frames, bicubic)[:, 0]).tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("kelvin=0.04*counts", (0.04, 0)),
        ("kelvin = 0.1 * counts + 173.15", (0.1, 173.15)),
        ("Kelvin=-2e-2*Counts-5", (-0.02, -5)),
    ],
)
def test_a_linear_radiometry_is_read(text, wanted):
    found = Radiometry.parse(text)
    assert (found.gain, found.offset) == wanted
    assert found.kelvin(np.array([100], np.uint16)) == 100 * wanted[0] + wanted[1]


@pytest.mark.parametrize("text", ["0.04", "kelvin=counts**2", "kelvin=0*counts+3"])
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match="radiometry"):
        Radiometry.parse(text)


def pair(size, dtype=np.uint8, factor=1):
    return make_pair((np.random.default_rng(0).integers(20, 200, size) * factor).astype(dtype))


def test_a_network_may_fail_at_small_frames_only(monkeypatch):
    error = RuntimeError("Kernel size can't be greater")

    def fail(*_):
        raise error

    monkeypatch.setattr(measures, "ssim", fail)
    judge = Judge("reference", ("psnr", "ssim"), None)
    lr, hr = pair((40, 400))
    found = judge(hr, lr, hr)
    assert math.isnan(found["ssim"])
    assert found["psnr"] == math.inf
    with pytest.raises(ValueError, match=r"of \(40, 400\) are compared, got \(36, 400\)"):
        judge(hr[:-4], lr, hr)
    lr, hr = pair((64, 64))
    with pytest.raises(RuntimeError, match="Kernel size"):
        judge(hr, lr, hr)
    error = torch.cuda.OutOfMemoryError("no memory")
    with pytest.raises(RuntimeError, match="no memory"):
        judge(hr[:40], lr[:10], hr[:40])


@pytest.mark.skipif(not WEIGHTS.is_dir(), reason=f"no weights at {WEIGHTS}")
def test_all_metrics_agree_which_result_is_better(shared_data):
    frame = read_counts(list_images(shared_data / "roadscene" / "train")[0])
    lr, hr = make_pair(frame[:288, :288])
    names = ["psnr", "ssim", "lpips_squeeze", "niqe", "spectral", "error"]
    judge = Judge("reference", names, WEIGHTS)
    exact, coarse = (judge(sr, lr, hr) for sr in (hr, nearest(lr)))
    assert exact["lpips_squeeze"] == exact["spectral"] == exact["error_p95"] == 0
    for name, info in judge.columns.items():
        if info.better != "zero":
            assert (exact[name] > coarse[name]) == (info.better == "higher"), name
