"""Evaluation of odd input: results among it, flat and tiny frames, models and metrics that fail."""

import math
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from difiisr_training.evaluation.evaluate import judge_models
from difiisr_training.evaluation.inputs import Selection, image_set
from difiisr_training.evaluation.measures import Judge
from difiisr_training.evaluation.peers import OutputFolder, Peer, load_peer

METRICS = ("psnr", "ssim", "spectral", "consistency", "error")


def texture(size, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(20, 200, size).astype(dtype)


def images(folder, **frames):
    """A folder of images as a set of that name."""
    folder.mkdir(parents=True)
    for name, counts in frames.items():
        Image.fromarray(counts).save(folder / f"{name}.png")
    return image_set(folder.name, folder, Selection())


def bicubic():
    return load_peer("bicubic", None, "cpu")


def run(sets, out, models=None, **protocol):
    judge = Judge("reference", METRICS, None)
    return judge_models(sets, models or [bicubic()], judge, out, **protocol)


def values(found, metric):
    """Of the first model on the first set, per frame."""
    (chosen, *_) = found.sets
    return dict(zip(chosen.frame_names, chosen.models[0].values[metric], strict=True))


def test_results_within_the_input_are_refused(tmp_path):
    source = images(tmp_path / "in", a=texture((32, 32)))
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for place in ("in", "in/results", "link/out", "other/../in/out"):
        out = tmp_path / place
        with pytest.raises(ValueError, match=f"{out} would lie in the input {tmp_path / 'in'},"):
            run([source], out)
    assert [path.name for path in (tmp_path / "in").rglob("*")] == ["a.png"]
    assert run([source], tmp_path / "input").sets[0].frames == 1  # beside it


def test_in_another_environment_or_with_another_metrics_network_all_is_measured_again(tmp_path):
    source, calls = images(tmp_path / "in", a=texture((32, 32))), []
    model = Peer("m", lambda counts: calls.append(0) or bicubic().upscale(counts))
    judge = Judge("reference", ("psnr",), None)
    for version, digest, runs in (("1", "a", 2), ("1", "a", 2), ("2", "a", 4), ("2", "b", 6)):
        judge.files = {"network.pth": digest}
        judge_models([source], [model], judge, tmp_path / "out", environment={"lpips": version})
        assert len(calls) == runs  # one goes before the timed one


def test_a_pan_comes_before_each_image_of_a_recurrent_model_alone(tmp_path):
    source, seen = images(tmp_path / "in", a=texture((32, 32)), b=texture((32, 32), seed=1)), []
    look = lambda counts: seen.append(counts) or bicubic().upscale(counts)  # noqa: E731
    models = [Peer("single", look), Peer("told", look, is_recurrent=True)]
    found = run([source], tmp_path / "out", models, pan=3)
    assert len(seen) == (1 + 2) + (1 + 2 * (1 + 3))
    frames = seen[-4:]
    assert all((one != other).any() for one, other in pairwise(frames))
    assert "pan of 3 frames" in found.degradation
    with pytest.raises(ValueError, match="high resolution alone, not in"):
        judge_models([source], models, Judge("camera", None, None), tmp_path / "camera", pan=3)


@pytest.mark.parametrize(("dtype", "degradation"), [(np.uint8, "bicubic"), (np.uint16, "thermal")])
def test_flat_frames_are_left_out_of_the_means_and_counted(tmp_path, dtype, degradation):
    shutter = np.full((64, 64), 90, dtype)
    source = images(
        tmp_path / "in", a=texture((64, 64), dtype), b=shutter, c=texture((64, 64), dtype, 1)
    )
    found = run([source], tmp_path / "out", degradation=degradation)
    for metric in ("psnr", "ssim", "spectral"):
        of = values(found, metric)
        assert math.isnan(of["b"])
        assert found.sets[0].models[0].mean[metric] == pytest.approx((of["a"] + of["c"]) / 2)
    assert values(found, "error_p95")["b"] == 0
    said = found.not_run["set in"]
    assert said.startswith("1 flat frame (all pixels equal) left out of the means")
    whole = run([images(tmp_path / "whole", a=texture((64, 64)))], tmp_path / "out")
    assert whole.not_run == {}


@pytest.mark.parametrize("size", [(4, 4), (4, 40), (20, 20)])
def test_what_a_metric_is_too_large_for_has_no_value_and_stops_nothing(tmp_path, size):
    source = images(tmp_path / "in", large=texture((64, 64)), small=texture(size))
    found = run([source], tmp_path / "out")
    assert math.isnan(values(found, "ssim")["small"]) == (min(size) < 11)
    assert math.isfinite(values(found, "psnr")["small"])
    assert math.isfinite(found.sets[0].models[0].mean["ssim"])


def fails_below(least):
    def upscale(counts):
        if min(counts.shape) < least:
            raise RuntimeError("Output size is too small")
        return bicubic().upscale(counts)

    return Peer("safmn", upscale)


@pytest.mark.parametrize(
    ("bad", "protocol", "said"),
    [
        (texture((3, 40)), {}, "in: frame b has 40x3 pixels, at least 4x4"),
        (texture((4, 4)), {"degradation": "second_order"},
         r"second_order fails at frame b of .*in \(4x4 pixels"),
        (texture((32, 32), np.uint16), {}, "uint16, uint8"),
        (texture((40, 48)), {"models": [bicubic(), fails_below(16)]},
         r"safmn fails at frame b of .*in \(12x10 pixels\): Output size is too small"),
        (texture((32, 32)), {"models": [Peer("x2", lambda lr: lr.repeat(2, 0).repeat(2, 1))]},
         r"result of x2 cannot be judged at frame a .*\(32x32"),
    ],
)  # fmt: skip
def test_the_frame_that_something_fails_at_is_named(tmp_path, bad, protocol, said):
    source = images(tmp_path / "in", a=texture((64, 64)), b=bad)
    with pytest.raises(ValueError, match=said):
        run([source], tmp_path / "out", **protocol)


def test_outputs_of_another_depth_are_refused(tmp_path):
    source = images(tmp_path / "in", a=texture((32, 32), np.uint16))
    images(tmp_path / "theirs", a=texture((32, 32)))
    with pytest.raises(ValueError, match=r"frame a .*: uint8 is no image of uint16 counts"):
        run([source], tmp_path / "out", [OutputFolder("theirs", tmp_path / "theirs")])
