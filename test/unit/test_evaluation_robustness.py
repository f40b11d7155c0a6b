"""Evaluation of odd input: results among it, flat and tiny frames, models and metrics that fail."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from difiisr_models.weights import sha256_file
from difiisr_training.evaluation import judge as judge_module
from difiisr_training.evaluation import run as run_module
from difiisr_training.evaluation.inputs import InputSet
from difiisr_training.evaluation.judge import NIQE_FILE, Judge, Scene
from difiisr_training.evaluation.outputs import OutputFolder
from difiisr_training.evaluation.pairs import make_pair
from difiisr_training.evaluation.peers import Contestant, load_contestant
from difiisr_training.evaluation.results import Results, read_results, write_results
from difiisr_training.evaluation.run import Protocol, evaluate

REFERENCE = Protocol("reference", "bicubic", None, {})
METRICS = ("psnr", "ssim", "spectral", "consistency", "error")


def texture(size, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(20, 200, size).astype(dtype)


def images(folder, **frames):
    """A folder of images as a set of that name."""
    folder.mkdir(parents=True)
    for name, counts in frames.items():
        Image.fromarray(counts).save(folder / f"{name}.png")
    return InputSet(folder.name, folder, "images")


def bicubic():
    return load_contestant("bicubic", None, "cpu")


def run(sets, out, models=None, metrics=METRICS, protocol=REFERENCE, weights=None):
    judge = Judge(protocol.mode, metrics, weights)
    return evaluate(sets, models or [bicubic()], protocol, judge, out)


def values(found, metric, model="bicubic"):
    return {row.frame: row.values[metric] for row in found.rows if row.model == model}


def niqe_file(folder, centre=0.5):
    folder.mkdir(parents=True, exist_ok=True)
    offsets = np.arange(-3, 4)
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * (7 / 6) ** 2))
    np.savez(
        folder / NIQE_FILE, mu_pris_param=np.full((1, 36), centre), cov_pris_param=np.eye(36),
        gaussian_window=window / window.sum(),
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("below", ["", "results", "results/deeper"])
def test_results_within_the_input_are_refused(tmp_path, below):
    source = images(tmp_path / "in", a=texture((32, 32)))
    out = tmp_path / "in" / below
    with pytest.raises(ValueError, match="would lie in the input") as said:
        run([source], out)
    assert f"{out} " in str(said.value)
    assert f"{tmp_path / 'in'}," in str(said.value)
    assert [path.name for path in (tmp_path / "in").rglob("*")] == ["a.png"]


def test_results_within_the_input_are_seen_through_links_and_dots(tmp_path):
    source = images(tmp_path / "in", a=texture((32, 32)))
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for out in (tmp_path / "link" / "out", tmp_path / "other" / ".." / "in" / "out"):
        with pytest.raises(ValueError, match="would lie in the input"):
            run([source], out)


def test_results_beside_the_input_are_not_refused(tmp_path):
    source = images(tmp_path / "in", a=texture((32, 32)))
    assert len(run([source], tmp_path / "input").rows) == 1


@pytest.mark.parametrize("name", ["hr", "lr", "HR", "truth"])
def test_the_names_of_the_frames_and_boxes_are_no_models(tmp_path, name):
    source = images(tmp_path / "in", a=texture((32, 32)))
    with pytest.raises(ValueError, match=f"share the folder '{name}'; give each once"):
        run([source], tmp_path / "out", [bicubic(), OutputFolder(name, tmp_path)])


def test_another_network_of_a_metric_is_measured_again(tmp_path):
    source = images(tmp_path / "in", a=texture((192, 192)))
    weights, scores = tmp_path / "weights", []
    for centre in (0.5, 0.5, 2.0):
        niqe_file(weights, centre)
        found = run([source], tmp_path / "out", metrics=("niqe",), weights=weights)
        scores.append(values(found, "niqe")["a"])
    assert scores[0] == scores[1] != scores[2]


def test_a_judge_knows_the_files_that_it_loaded(tmp_path):
    niqe_file(tmp_path)
    judge = Judge("camera", None, tmp_path)
    assert judge.files == {NIQE_FILE: sha256_file(tmp_path / NIQE_FILE)}
    assert "musiq" in judge.not_run
    assert Judge("reference", ("psnr",), tmp_path).files == {}


def test_another_version_of_a_metrics_library_is_measured_again(tmp_path, monkeypatch):
    source, calls, model = images(tmp_path / "in", a=texture((32, 32))), [], bicubic()

    def upscale(counts):
        calls.append(counts)
        return model.upscale(counts)

    for version, runs in (("1", 2), ("1", 2), ("2", 4)):  # one goes before the timed one
        monkeypatch.setattr(run_module, "version", {n: version for n in ("lpips",)}.__getitem__)
        monkeypatch.setattr(run_module, "PackageNotFoundError", KeyError)
        run([source], tmp_path / "out", [Contestant("m", upscale, "", 0)])
        assert len(calls) == runs
    key = json.loads((tmp_path / "out" / "finished" / "in" / "m.json").read_text())["key"]
    assert key["environment"]["libraries"] == {"lpips": "2"}


def test_results_name_the_networks_of_the_metrics(tmp_path):
    fields = {"command": [], "environment": {}, "mode": "camera", "degradation": None}
    fields |= {"metrics": {}, "not_run": {}, "sets": []}
    write_results(Results(**fields, metric_files={NIQE_FILE: "ab"}), tmp_path)
    assert read_results(tmp_path).metric_files == {NIQE_FILE: "ab"}
    assert Results(**fields).metric_files == {}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("degradation", ["bicubic", "thermal"])
def test_flat_frames_are_left_out_of_the_means_and_counted(tmp_path, dtype, degradation):
    shutter = np.full((64, 64), 90, dtype)
    source = images(
        tmp_path / "in", a=texture((64, 64), dtype), b=shutter, c=texture((64, 64), dtype, 1)
    )
    protocol = Protocol("reference", degradation, None, {})
    found = run([source], tmp_path / "out", protocol=protocol)
    for metric in ("psnr", "ssim", "spectral"):
        of = values(found, metric)
        assert math.isnan(of["b"])
        assert found.sets[0].models[0].mean[metric] == pytest.approx((of["a"] + of["c"]) / 2)
    assert values(found, "error_p95")["b"] == 0
    said = found.without_value["set in"]
    assert said.startswith("1 flat frame (all pixels equal) left out of the means")
    whole = run([images(tmp_path / "whole", a=texture((64, 64)))], tmp_path / "out")
    assert whole.without_value == {}


def test_nothing_rates_a_flat_frame_of_a_camera(tmp_path, monkeypatch):
    monkeypatch.setattr(judge_module, "Niqe", lambda path: lambda image, data_range: 1.0)
    judge = Judge("camera", ("niqe",), niqe_file(tmp_path))
    flat, scene = (np.full((16, 16), 900, np.uint16), texture((16, 16), np.uint16))
    assert math.isnan(judge(flat.repeat(4, 0).repeat(4, 1), Scene(flat, None))["niqe"])
    assert judge(scene.repeat(4, 0).repeat(4, 1), Scene(scene, None))["niqe"] == 1.0


def test_a_model_that_equals_the_reference_has_an_infinite_mean(tmp_path):
    source = images(tmp_path / "in", a=texture((64, 64)), b=np.full((64, 64), 9, np.uint8))
    perfect = OutputFolder("perfect", tmp_path / "in")
    found = run([source], tmp_path / "out", [bicubic(), perfect])
    plain, copied = found.sets[0].models
    assert copied.mean["psnr"] == math.inf
    assert math.isfinite(plain.mean["psnr"])
    assert copied.mean["ssim"] == pytest.approx(1)


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (4, 40), (20, 20)])
def test_what_a_metric_is_too_large_for_has_no_value_and_stops_nothing(tmp_path, size):
    source = images(tmp_path / "in", large=texture((64, 64)), small=texture(size))
    found = run([source], tmp_path / "out")
    assert math.isnan(values(found, "ssim")["small"]) == (min(size) < 11)
    assert math.isfinite(values(found, "psnr")["small"])
    assert math.isfinite(found.sets[0].models[0].mean["ssim"])


def judge_with(monkeypatch, metric):
    monkeypatch.setattr(judge_module, "ssim", metric)
    return Judge("reference", ("psnr", "ssim"), None)


def failing(error):
    def metric(*_):
        raise error

    return metric


def scene_of(size):
    lr, hr = make_pair(texture(size))
    return hr, Scene(lr, hr)


def test_a_network_may_fail_at_small_frames_only(monkeypatch):
    judge = judge_with(monkeypatch, failing(RuntimeError("Kernel size can't be greater")))
    assert math.isnan(judge(*scene_of((40, 400)))["ssim"])
    assert judge(*scene_of((40, 400)))["psnr"] == math.inf
    with pytest.raises(RuntimeError, match="Kernel size"):
        judge(*scene_of((64, 64)))
    judge = judge_with(monkeypatch, failing(torch.cuda.OutOfMemoryError("no memory")))
    with pytest.raises(RuntimeError, match="no memory"):
        judge(*scene_of((40, 40)))


def test_lpips_has_no_value_for_a_frame_smaller_than_its_network():
    weights = Path(__file__).parents[3] / "shared" / "weights"
    if not weights.is_dir():
        pytest.skip(f"no weights at {weights}")
    judge = Judge("reference", ("lpips_squeeze",), weights)
    assert math.isnan(judge(*scene_of((8, 8)))["lpips_squeeze"])
    assert judge(*scene_of((32, 32)))["lpips_squeeze"] == 0


def test_results_of_a_wrong_size_are_refused_and_never_without_value():
    hr, scene = scene_of((40, 48))
    judge = Judge("reference", ("ssim",), None)
    with pytest.raises(ValueError, match=r"of \(40, 48\) are compared, got \(36, 48\)"):
        judge(hr[:-4], scene)


def test_frames_of_less_than_four_pixels_are_named(tmp_path):
    source = images(tmp_path / "in", good=texture((32, 32)), thin=texture((3, 40)))
    with pytest.raises(ValueError, match=r"in: frame thin has 40x3 pixels, at least 4x4"):
        run([source], tmp_path / "out")


def test_a_frame_that_a_degradation_fails_at_is_named(tmp_path):
    source = images(tmp_path / "in", good=texture((64, 64)), tiny=texture((4, 4)))
    with pytest.raises(ValueError, match=r"second_order fails at frame tiny of .*in \(4x4 pixels"):
        run([source], tmp_path / "out", protocol=Protocol("reference", "second_order", None, {}))


def fails_below(least):
    def upscale(counts):
        if min(counts.shape) < least:
            raise RuntimeError("Output size is too small")
        return bicubic().upscale(counts)

    return Contestant("safmn", upscale, "", 0)


@pytest.mark.parametrize("tiny", ["a", "z"])  # the first frame also runs before the timed ones
def test_the_model_and_the_frame_that_it_fails_at_are_named(tmp_path, tiny):
    source = images(tmp_path / "in", m=texture((64, 80)), **{tiny: texture((40, 48))})
    said = rf"safmn fails at frame {tiny} of .*in \(12x10 pixels\): Output size is too small"
    with pytest.raises(ValueError, match=said):
        run([source], tmp_path / "out", [bicubic(), fails_below(16)])


def test_a_model_of_another_scale_is_named(tmp_path):
    source = images(tmp_path / "in", a=texture((64, 64)))
    twice = Contestant("x2", lambda counts: counts.repeat(2, 0).repeat(2, 1), "", 0)
    with pytest.raises(ValueError, match=r"result of x2 cannot be judged at frame a .*\(32x32"):
        run([source], tmp_path / "out", [twice])
