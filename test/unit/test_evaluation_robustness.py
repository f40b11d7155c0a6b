"""Evaluation of odd input: results among it, flat and tiny frames, models and metrics that fail."""

import math

import numpy as np
import pytest
from PIL import Image

from difiisr_training.evaluation.evaluate import OutputFolder, judge_models
from difiisr_training.evaluation.inputs import Selection, image_set
from difiisr_training.evaluation.measures import NIQE_FILE, Judge
from difiisr_training.evaluation.peers import Peer, load_peer

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


def run(sets, out, models=None, metrics=METRICS, weights=None, **protocol):
    judge = Judge("reference", metrics, weights)
    return judge_models(sets, models or [bicubic()], judge, out, **protocol)


def values(found, metric):
    """Of the first model on the first set, per frame."""
    (chosen, *_) = found.sets
    return dict(zip(chosen.frame_names, chosen.models[0].values[metric], strict=True))


def niqe_file(folder, centre=0.5):
    folder.mkdir(parents=True, exist_ok=True)
    offsets = np.arange(-3, 4)
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * (7 / 6) ** 2))
    np.savez(
        folder / NIQE_FILE, mu_pris_param=np.full((1, 36), centre), cov_pris_param=np.eye(36),
        gaussian_window=window / window.sum(),
    )  # fmt: skip
    return folder


def test_results_within_the_input_are_refused(tmp_path):
    source = images(tmp_path / "in", a=texture((32, 32)))
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for place in ("in", "in/results", "link/out", "other/../in/out"):
        out = tmp_path / place
        with pytest.raises(ValueError, match=f"{out} would lie in the input {tmp_path / 'in'},"):
            run([source], out)
    assert [path.name for path in (tmp_path / "in").rglob("*")] == ["a.png"]
    assert run([source], tmp_path / "input").sets[0].frames == 1  # beside it


def test_another_network_of_a_metric_is_measured_again(tmp_path):
    source = images(tmp_path / "in", a=texture((192, 192)))
    weights, scores = tmp_path / "weights", []
    for centre in (0.5, 0.5, 2.0):
        niqe_file(weights, centre)
        found = run([source], tmp_path / "out", metrics=("niqe",), weights=weights)
        scores.append(values(found, "niqe")["a"])
    assert scores[0] == scores[1] != scores[2]


def test_in_another_environment_everything_is_measured_again(tmp_path):
    source, calls = images(tmp_path / "in", a=texture((32, 32))), []
    model = Peer("m", lambda counts: calls.append(0) or bicubic().upscale(counts))
    for version, runs in (("1", 2), ("1", 2), ("2", 4)):  # one goes before the timed one
        run([source], tmp_path / "out", [model], environment={"lpips": version})
        assert len(calls) == runs


def test_outputs_of_another_depth_are_refused(tmp_path):
    source = images(tmp_path / "in", a=texture((32, 32), np.uint16))
    images(tmp_path / "theirs", a=texture((32, 32)))
    with pytest.raises(ValueError, match=r"frame a .*: uint8 is no image of uint16 counts"):
        run([source], tmp_path / "out", [OutputFolder("theirs", tmp_path / "theirs")])


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


def test_frames_that_cannot_be_evaluated_are_named(tmp_path):
    thin = images(tmp_path / "thin", good=texture((32, 32)), thin=texture((3, 40)))
    with pytest.raises(ValueError, match=r"thin: frame thin has 40x3 pixels, at least 4x4"):
        run([thin], tmp_path / "out")
    tiny = images(tmp_path / "tiny", good=texture((64, 64)), tiny=texture((4, 4)))
    with pytest.raises(
        ValueError, match=r"second_order fails at frame tiny of .*tiny \(4x4 pixels"
    ):
        run([tiny], tmp_path / "out", degradation="second_order")
    mixed = images(tmp_path / "mixed", a=texture((32, 32)), b=texture((32, 32), np.uint16))
    with pytest.raises(ValueError, match="uint16, uint8"):
        run([mixed], tmp_path / "out")


def fails_below(least):
    def upscale(counts):
        if min(counts.shape) < least:
            raise RuntimeError("Output size is too small")
        return bicubic().upscale(counts)

    return Peer("safmn", upscale)


@pytest.mark.parametrize("tiny", ["a", "z"])  # the first frame also runs before the timed ones
def test_the_model_and_the_frame_that_it_fails_at_are_named(tmp_path, tiny):
    source = images(tmp_path / "in", m=texture((64, 80)), **{tiny: texture((40, 48))})
    said = rf"safmn fails at frame {tiny} of .*in \(12x10 pixels\): Output size is too small"
    with pytest.raises(ValueError, match=said):
        run([source], tmp_path / "out", [bicubic(), fails_below(16)])


def test_a_model_of_another_scale_is_named(tmp_path):
    source = images(tmp_path / "in", a=texture((64, 64)))
    twice = Peer("x2", lambda counts: counts.repeat(2, 0).repeat(2, 1), "", 0)
    with pytest.raises(ValueError, match=r"result of x2 cannot be judged at frame a .*\(32x32"):
        run([source], tmp_path / "out", [twice])
