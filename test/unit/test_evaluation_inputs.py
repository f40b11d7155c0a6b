"""What is evaluated: sets and frames, odd ones too, and models and metrics that fail."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from thermal_bags import cut, pixels, record
from wave_frames import save_image

from difiisr_ros.commands.evaluate_models import resolve_inputs
from difiisr_training.degradations import bicubic
from difiisr_training.evaluation.evaluate import judge_models
from difiisr_training.evaluation.inputs import Selection, finite_window, image_set, make_pair
from difiisr_training.evaluation.measures import Judge
from difiisr_training.evaluation.peers import OutputFolder, Peer

ALL = Selection()


def texture(size=(64, 80), dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(20, 200, size).astype(dtype)


def write_images(folder, number, dtype=np.uint8):
    images(folder, **{f"{index:02}": texture(dtype=dtype, seed=index) for index in range(number)})
    return folder


def images(folder, **frames):
    """A folder of images as a set of that name."""
    for name, counts in frames.items():
        save_image(folder / f"{name}.png", counts)
    return image_set(folder.name, folder, Selection())


def names(chosen):
    return [name for name, _ in chosen.frames()]


def test_borders_without_a_value_are_cut_off():
    frame = np.ones((64, 80), np.float32)
    frame[:3], frame[:, -2:], frame[60:, :4] = np.nan, np.inf, np.nan
    assert frame[finite_window(frame)].shape in ((61, 74), (57, 78))
    frame[30, 40] = np.nan
    assert np.isnan(frame[finite_window(frame)]).sum() == 1


@pytest.mark.parametrize("degradation", ["thermal", "second_order"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_random_degradations_depend_on_the_frames_name_alone(degradation, dtype):
    frame = np.kron(np.random.default_rng(1).integers(20, 250, (8, 8)), np.ones((8, 8)))
    (lr, hr), (again, _), (other, _) = (
        make_pair(frame.astype(dtype), degradation, name) for name in "aab"
    )
    assert (lr.shape, hr.shape) == ((16, 16), (64, 64))
    assert lr.dtype == hr.dtype == dtype
    assert np.array_equal(lr, again)
    assert not np.array_equal(lr, other)


@pytest.mark.parametrize(
    ("selection", "wanted"),
    [
        (Selection(), list(range(12))),
        (Selection(every=5), [0, 5, 10]),
        (Selection(last=3), [9, 10, 11]),
        (Selection(every=2, last=2), [8, 10]),
        (Selection(limit=3), [0, 6, 11]),
        (Selection(limit=3, spread=False), [0, 1, 2]),
        (Selection(limit=99), list(range(12))),
    ],
)
def test_frames_are_selected(selection, wanted):
    assert selection.choose(12) == wanted


def test_images_are_named_by_their_path_and_keep_their_depth(tmp_path):
    folder = write_images(tmp_path / "a" / "sub", 2, np.uint16).parent
    (chosen,) = resolve_inputs([str(folder)], None, None, ALL)
    assert (chosen.kind, names(chosen)) == ("images", ["sub__00", "sub__01"])
    assert all(counts.dtype == np.uint16 for _, counts in chosen.frames())
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(folder / "sub" / "00.bmp")
    with pytest.raises(ValueError, match="one name"):
        names(chosen)


def test_a_held_out_set_is_found_below_the_data(tmp_path):
    write_images(tmp_path / "roadscene" / "train", 25)
    write_images(tmp_path / "mine", 2)
    held_out, mine = resolve_inputs(["roadscene/last20", "mine"], tmp_path, None, ALL)
    assert names(held_out) == [f"{i:02}" for i in range(5, 25)]
    # Whatever is selected, nothing of the training part.
    for selection, expected in (
        (Selection(every=8), ["05", "13", "21"]),
        (Selection(last=30), [f"{i:02}" for i in range(5, 25)]),
        (Selection(last=2), ["23", "24"]),
    ):
        (chosen,) = resolve_inputs(["roadscene/last20"], tmp_path, None, selection)
        assert names(chosen) == expected
    assert names(mine) == ["00", "01"]
    with pytest.raises(FileNotFoundError, match="--data"):
        resolve_inputs(["roadscene/last20"], None, None, ALL)
    with pytest.raises(FileNotFoundError, match="absent"):
        resolve_inputs(["absent"], tmp_path, None, ALL)


def test_messages_of_a_recording_are_chosen_by_their_number(tmp_path):
    record(tmp_path / "bag", frames=6)
    (sparse,) = resolve_inputs([str(tmp_path / "bag")], None, None, Selection(every=3))
    assert (sparse.kind, sparse.topic, names(sparse)) == (
        "bag", "/cam/image_raw", ["000000", "000003"]
    )  # fmt: skip
    assert np.array_equal(dict(sparse.frames())["000003"], pixels(3))


def test_what_cannot_be_read_is_left_out_counted_and_named(tmp_path, difiisr):
    folder = write_images(tmp_path / "in", 2)
    (folder / "bad.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((3, 40), np.uint8)).save(folder / "flat.png")
    bag = record(tmp_path / "bag", frames=4, images={1: b"damaged"})
    cut(bag, 0.6)  # message 3 is behind it
    for source, said in (
        (folder, "not run: frame bad of "),
        (bag, f"skipped message 1 of {bag}/bag.mcap: its bytes are no sensor_msgs"),
    ):
        words = ["evaluate", source, "--models", "bicubic", "--metrics=psnr", "--no-report"]
        assert said in difiisr(*words, "--out", tmp_path / "out", code=2).out
        found = json.loads((tmp_path / "out" / "results.json").read_text())
        assert (found["left_out"], found["sets"][0]["frames"]) == (2, 2)


def test_each_recording_of_a_folder_is_a_set(tmp_path):
    record(tmp_path / "bags" / "one")
    record(tmp_path / "bags" / "two")
    found = resolve_inputs([str(tmp_path / "bags")], None, None, ALL)
    assert [Path(chosen.name).name for chosen in found] == ["one", "two"]
    with pytest.raises(ValueError, match="give each once"):
        resolve_inputs([str(tmp_path / "bags")] * 2, None, None, ALL)


def test_outputs_are_found_by_the_name_of_the_frame(tmp_path):
    method = OutputFolder.parse(f"M={write_images(tmp_path / 'out', 2)}")
    found = method.peer("a set", {"00": (16, 20), "01": (16, 20)}).outputs
    assert [path.name for path in found.values()] == ["00.png", "01.png"]
    with pytest.raises(FileNotFoundError, match=r"2 of 3 frames of s: 07, 08; it has 00, 01"):
        method.peer("s", dict.fromkeys(["00", "07", "08"], (16, 20)))
    with pytest.raises(ValueError, match=r"01.png is 80x64, wanted 80x80"):
        method.peer("s", {"00": (16, 20), "01": (20, 20)})
    write_images(tmp_path / "out" / "a-set", 1)
    assert method.peer("a set", {"00": (16, 20)}).outputs["00"].parent.name == "a-set"
    with pytest.raises(ValueError, match="NAME=DIR"):
        OutputFolder.parse("folder")


METRICS = ("psnr", "ssim", "spectral", "consistency", "error")


BICUBIC = Peer("bicubic", bicubic)


def run(sets, out, models=None, **protocol):
    judge = Judge("reference", METRICS, None)
    return judge_models(sets, models or [BICUBIC], judge, out, **protocol)


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
    model = Peer("m", lambda counts: calls.append(0) or bicubic(counts))
    judge = Judge("reference", ("psnr",), None)
    for version, digest, runs in (("1", "a", 2), ("1", "a", 2), ("2", "a", 4), ("2", "b", 6)):
        judge.files = {"network.pth": digest}
        judge_models([source], [model], judge, tmp_path / "out", environment={"lpips": version})
        assert len(calls) == runs  # one goes before the timed one


def test_a_pan_comes_before_each_image_of_a_recurrent_model_alone(tmp_path):
    source, seen = images(tmp_path / "in", a=texture((32, 32)), b=texture((32, 32), seed=1)), []
    look = lambda counts: seen.append(counts) or bicubic(counts)  # noqa: E731
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
        return bicubic(counts)

    return Peer("safmn", upscale)


@pytest.mark.parametrize(
    ("bad", "protocol", "said"),
    [
        (texture((4, 4)), {"degradation": "second_order"},
         r"second_order fails at frame b of .*in \(4x4 pixels"),
        (texture((32, 32), np.uint16), {}, "uint16, uint8"),
        (texture((40, 48)), {"models": [BICUBIC, fails_below(16)]},
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
