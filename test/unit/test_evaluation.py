import csv
import json
import re
import shutil
import sys

import numpy as np
import pytest
from cyclopts import App
from PIL import Image
from thermal_bags import record
from wave_frames import save_image

from difiisr_models.files import json_text
from difiisr_ros.commands import evaluate_models as command
from difiisr_training.evaluation import evaluate as evaluate_module
from difiisr_training.evaluation import task_scores
from difiisr_training.evaluation.inputs import make_pair
from difiisr_training.evaluation.metrics import psnr
from difiisr_training.evaluation.peers import Peer
from difiisr_training.evaluation.results import frames_folder, read_frame, slug, write_frame


@pytest.fixture
def data(tmp_path):
    """Five 8-bit and three 16-bit images, their sides no multiples of 4."""
    rng = np.random.default_rng(0)
    for name, dtype, number, high in (("eight", np.uint8, 5, 255), ("deep", np.uint16, 3, 9000)):
        for index in range(number):
            scene = np.kron(rng.integers(high // 2, high, (11, 13)), np.ones((6, 6)))
            save_image(tmp_path / name / f"{index:02}.png", scene.astype(dtype))
    return tmp_path


class Found(dict):
    __getattr__ = dict.__getitem__


def evaluate(*arguments):
    """What ``--json`` prints, the text being printed; without a report."""
    app = App(suppress_keyboard_interrupt=False)
    app.default(command.evaluate)
    words = [*map(str, arguments), "--device", "cpu", "--no-report"]
    answer = app(words, exit_on_error=False, print_error=False, result_action="return_value")
    print(answer)
    return json.loads(json_text(answer.facts), object_hook=Found)


def rows_of(out):
    with (out / "per_frame.csv").open() as file:
        return list(csv.DictReader(file))


def test_sets_are_judged_with_reference(data, capsys):
    """Table against results, and the table against the images that lie beside it."""
    out, model = data / "out", "difiisr-rt-x4@0.5@consistency=1"
    results = evaluate(data / "eight", data / "deep", "--models", f"bicubic,{model}", "--out", out,
                       "--metrics", "psnr,consistency,error,kelvin",
                       "--radiometry", "kelvin=0.01*counts+250")  # fmt: skip
    assert re.search(r"eight, 5 frames(.|\n)*psnr +\d", capsys.readouterr().out)
    assert (results.mode, results.degradation) == ("reference", "bicubic")
    assert [(s.name, s.frames, s.kind) for s in results.sets] == [
        (str(data / "eight"), 5, "images"), (str(data / "deep"), 3, "images"),
    ]  # fmt: skip
    plain, ours = results.sets[1].models
    assert (ours.name, ours.title, len(ours.weights_sha256)) == (model, model, 64)
    assert ours.parameters > 1e5
    assert ours.seconds_per_frame > 0
    assert plain.difference_to_bicubic["psnr"]["mean"] == 0
    assert ours.mean["consistency_mean"] < plain.mean["consistency_mean"]
    low, high = ours.interval["psnr"]
    assert low < ours.mean["psnr"] < high
    gain = ours.difference_to_bicubic["psnr"]["mean"]
    assert gain == pytest.approx(ours.mean["psnr"] - plain.mean["psnr"])
    assert plain.mean["kelvin_p95"] == pytest.approx(0.01 * plain.mean["error_p95"])
    rows = rows_of(out)
    assert list(rows[0])[:4] == ["set", "frame", "model", "psnr"]
    content = json.loads((out / "results.json").read_text())
    assert content["sets"][1]["models"][0]["mean"]["psnr"] == plain.mean["psnr"]
    assert (content["version"], content["command"][0]) == (1, "difiisr")
    assert {"device", "threads", "versions"} <= content["environment"].keys()
    rows = [r for r in rows if r["set"].endswith("deep") and r["model"] == "bicubic"]
    assert plain.mean["psnr"] == pytest.approx(np.mean([float(row["psnr"]) for row in rows]))
    for row in rows:
        lr, hr, sr = (
            read_frame(frames_folder(out, row["set"], series), row["frame"])
            for series in ("lr", "hr", "bicubic")
        )
        assert np.array_equal(lr, make_pair(hr)[0])
        assert float(row["psnr"]) == pytest.approx(psnr(sr, hr, np.ptp(hr)))
        assert float(row["error_bias"]) == pytest.approx(sr.mean() - hr.mean())


def test_a_film_of_a_camera_is_judged_without_reference(tmp_path):
    rng, out = np.random.default_rng(3), tmp_path / "out"
    film = rng.integers(29000, 31000, (24, 32)) + rng.normal(0, 4, (6, 24, 32))
    bag = record(tmp_path / "bag", images=list(film.astype(np.uint16)))
    arguments = [bag, "--models", "bicubic,difiisr-rt-x4@consistency=1", "--out", out]
    results = evaluate(*arguments, "--mode", "camera", "--topic", "/cam/image_raw")
    (chosen,) = results.sets
    assert (chosen.kind, chosen.topic, chosen.frames) == ("bag", "/cam/image_raw", 6)
    assert results.degradation is None
    plain, ours = chosen.models
    assert plain.mean["flicker"] == pytest.approx(1)
    assert 0.5 < ours.mean["flicker"] < 3
    assert ours.mean["consistency_mean"] < 0.5
    assert [row["flicker"] == "" for row in rows_of(out)] == [True, *[False] * 5] * 2
    for name in ("clip_iqa", "musiq", "niqe"):
        assert results.not_run[name]
        assert name not in results.metrics
    assert not frames_folder(out, chosen.name, "hr").exists()
    assert read_frame(frames_folder(out, chosen.name, "lr"), "000005").shape == (24, 32)


def test_a_recording_in_kelvin_stays_float(tmp_path):
    rng = np.random.default_rng(4)
    scenes = np.kron(rng.uniform(280, 310, (2, 12, 16)), np.ones((8, 8))).astype(np.float32)
    record(tmp_path / "bag", images=list(scenes), encoding="32FC1")
    out = tmp_path / "out"
    results = evaluate(tmp_path / "bag", "--models", "bicubic,difiisr-rt-x4@consistency=1",
                       "--out", out, "--radiometry", "kelvin=1*counts")  # fmt: skip
    (chosen,) = results.sets
    assert results.mode == "reference"
    assert read_frame(frames_folder(out, chosen.name, "hr"), "000001").dtype == np.float32
    for model in chosen.models:
        assert model.mean["kelvin_p95"] == model.mean["error_p95"] < 15
        assert model.mean["psnr"] > 15
    assert chosen.models[1].mean["consistency_max"] < 0.5


@pytest.fixture
def counted(monkeypatch):
    """Upscaled frames per model."""
    calls = []
    original = Peer.__init__

    def init(self, name, upscale, *rest):
        def counting(counts):
            calls.append(name)
            return upscale(counts)

        original(self, name, counting, *rest)

    monkeypatch.setattr(Peer, "__init__", init)
    return calls


def test_own_low_resolution_and_masks_are_used(data):
    """One's own pairs give what they show, and a hidden region costs nothing."""
    for path in (data / "eight").iterdir():
        lr, hr = make_pair(np.asarray(Image.open(path)))
        save_image(data / "lr" / path.name, 255 - lr)
        mask = np.full(hr.shape, 255, np.uint8)
        mask[:, :32] = 0
        save_image(data / "masks" / path.name, mask)

    def judged(name, *more):
        found = evaluate(data / "eight", "--models", "bicubic", "--metrics", "psnr",
                         "--out", data / name, *more)  # fmt: skip
        return found, *(model.mean["psnr"] for model in found.sets[0].models)

    own, value = judged("own", "--lr", data / "lr")
    assert own.degradation == "own pairs"
    assert value < 12  # it is the negative
    found, plain = judged("plain")
    shutil.copytree(frames_folder(data / "plain", found.sets[0].name, "bicubic"), data / "theirs")
    for path in (data / "theirs").iterdir():
        pixels = np.array(Image.open(path))
        pixels[:, :32] = 0
        Image.fromarray(pixels).save(path)
    masks = ["--masks", f"{data / 'eight'}={data / 'masks'}"]
    _, value, theirs = judged("masked", *masks, "--outputs", f"theirs={data / 'theirs'}")
    assert value == pytest.approx(theirs)
    assert abs(value - plain) < 3
    (data / "lr" / "02.png").unlink()
    with pytest.raises(ValueError, match="--lr has no image of frame 02"):
        judged("x", "--lr", data / "lr")


def test_finished_models_do_not_run_again_until_something_changes(data, counted):
    arguments = [data / "eight", "--out", data / "out", "--metrics", "psnr"]

    def ran(models="bicubic", *more):
        before = len(counted)
        evaluate(*arguments, "--models", models, *more)
        return counted[before:]

    assert ran() == ["bicubic"] * 6  # one goes before the timed ones
    table = (data / "out" / "per_frame.csv").read_text()
    assert ran() == []
    assert (data / "out" / "per_frame.csv").read_text() == table
    assert ran("bicubic,difiisr-rt-x4") == ["difiisr-rt-x4"] * 6
    assert ran("bicubic", "--limit", "2") == ["bicubic"] * 3
    shutil.copy(data / "eight" / "00.png", data / "eight" / "04.png")
    assert ran("bicubic", "--limit", "2") == ["bicubic"] * 3
    next((data / "out" / "frames").glob("*/bicubic/00.png")).unlink()
    assert ran("bicubic", "--limit", "2") == ["bicubic"] * 3


def test_a_run_that_was_killed_goes_on_with_the_model_that_was_running(data, counted, monkeypatch):
    arguments = [data / "eight", "--out", data / "out", "--metrics", "psnr"]
    arguments += ["--models", "bicubic,difiisr-rt-x4"]
    written = []

    def stop(folder, frame, counts):
        written.append(folder)
        if sum("difiisr" in one.name for one in written) == 3:
            raise KeyboardInterrupt
        return write_frame(folder, frame, counts)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate_module, "write_frame", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(*arguments)
    counted.clear()
    results = evaluate(*arguments)
    assert counted == ["difiisr-rt-x4"] * 6
    assert [m.name for m in results.sets[0].models] == ["bicubic", "difiisr-rt-x4"]


def test_outputs_of_another_method_are_judged_as_a_model_is(data):
    out = data / "out"
    arguments = [data / "eight", "--models", "bicubic", "--metrics", "psnr,consistency"]
    evaluate(*arguments, "--out", out)
    theirs = frames_folder(out, str(data / "eight"), "bicubic")
    results = evaluate(*arguments, "--out", data / "again", "--outputs", f"Bi-DiffSR={theirs}")
    plain, copied = results.sets[0].models
    assert copied.name == "Bi-DiffSR"
    assert copied.mean == plain.mean
    assert copied.parameters is None
    assert copied.seconds_per_frame is None
    assert len(copied.weights_sha256) == 64
    perfect = frames_folder(out, str(data / "eight"), "hr")
    evaluate(*arguments, "--out", data / "again", "--outputs", f"perfect={perfect}")
    written = json.loads((data / "again" / "results.json").read_text())["sets"][0]["models"][1]
    assert written["mean"]["psnr"] is None  # infinite
    assert (written["parameters"], written["seconds_per_frame"]) == (None, None)
    assert [(r["psnr"], r["seconds"]) for r in rows_of(data / "again")[5:]] == [("inf", "")] * 5


def test_the_command_line_reports_and_exits_with_zero(data, difiisr, json_of):
    pytest.importorskip("jinja2")
    words = ["evaluate", data / "eight", "--models", "bicubic", "--limit", "2", "--metrics", "psnr"]
    words += ["--out", data / "out", "--outputs", f"A={data / 'x'}", f"B={data / 'x'}"]
    assert f"no folder {data / 'x'}" in difiisr(*words, "--device", "cpu", code=1).err
    facts = json_of(*words[:-3], "--device", "cpu")
    assert (data / "out" / "report.html").is_file()
    assert json.loads((data / "out" / "results.json").read_text()) == facts
    difiisr(*facts["command"][1:])  # it repeats itself
    difiisr("evaluate", "--mode", "other", code=2)


def test_what_to_install_is_said_where_the_extra_is_absent(data, monkeypatch, difiisr):
    monkeypatch.delitem(sys.modules, "difiisr_ros.commands.evaluate_models")
    monkeypatch.setitem(sys.modules, "difiisr_training.evaluation.metrics", None)
    monkeypatch.delitem(sys.modules, "difiisr_training.evaluation.evaluate")
    said = difiisr("evaluate", data / "eight", "--out", data / "out", code=1).err
    assert "pip install '.[" in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--metrics", "mse"], "no metric mse in reference mode"),
        (["--metrics", "flicker"], "no metric flicker in reference mode"),
        (["--metrics", "musiq"], "musiq cannot be measured: give the folder"),
        (["--metrics", "kelvin"], "--radiometry"),
        (["--models", "safmn"], "safmn_ntire23_x4.pth"),
        (["--models", "bicubic,bicubic"], "would share the folder 'bicubic'"),
        (["--outputs", "lr=x"], "'lr'"),
        (["--outputs", "truth=x"], "'truth'"),
        (["--radiometry", "celsius"], "no linear radiometry"),
        (["--detector", "eight"], "--detector needs --annotations"),
        (["--detector", "absent.onnx"], r"absent\.onnx"),
        (["--labels", "eight"], "--labels needs --segmenter"),
    ],
)
def test_the_command_says_what_is_wrong(data, changes, said, monkeypatch):
    monkeypatch.chdir(data)
    options = {"--models": "bicubic", "--metrics": "psnr", changes[0]: changes[1]}
    with pytest.raises((ValueError, OSError), match=said):
        evaluate(data / "eight", "--out", data / "out", *[w for o in options.items() for w in o])


def test_what_cannot_be_measured_is_said_and_never_a_number(data, capsys):
    results = evaluate(data / "eight", "--models", "bicubic", "--out", data / "out")
    assert results.not_run.keys() == {
        "lpips_squeeze", "lpips_alex", "lpips_vgg", "kelvin", "niqe", "clip_iqa", "musiq",
    }  # fmt: skip
    said = capsys.readouterr().out
    assert "not run: lpips_squeeze, lpips_alex, lpips_vgg, niqe, clip_iqa, musiq: give the" in said


def note_judged(monkeypatch):
    """Judges that note the file of each set."""
    asked = []

    def judge(out, sets, models, network, *_):
        assert (network.name, models) == ("network", ["bicubic"])
        assert all(frames_folder(out, name, "hr").is_dir() for name in sets)
        asked.append({name: path and path.name for name, path in sets.items()})
        return {"sets": {slug(name): {} for name in sets}}

    monkeypatch.setattr(task_scores, "judge_detection", judge)
    monkeypatch.setattr(task_scores, "judge_segmentation", judge)
    return asked


@pytest.fixture(params=["--annotations", "--labels"])
def judged(request, data):
    """Option and arguments of an evaluation of two sets by a detector or by a segmenter."""
    for name in ("network", "a.json", "b.json"):
        (data / name).touch()
    reader = {"--annotations": "--detector", "--labels": "--segmenter"}[request.param]
    return request.param, [
        data / "eight", data / "deep", "--models", "bicubic", "--metrics", "psnr",
        "--out", data / "out", reader, data / "network",
    ]  # fmt: skip


def test_each_set_is_judged_by_its_own_file(data, judged, monkeypatch):
    option, arguments = judged
    asked = note_judged(monkeypatch)
    eight, deep = (str(data / name) for name in ("eight", "deep"))
    own = [f"{deep}={data / 'b.json'}", f"{eight}={data / 'a.json'}"]
    evaluate(*arguments, option, own[0], option, own[1])
    results = evaluate(*arguments, option, own[0])
    evaluate(*arguments[1:], option, data / "b.json")
    only = {deep: "b.json"}
    assert asked == [{eight: "a.json"} | only, only, only]
    assert f"no {option} {eight}=... was given" in results.not_run.values()


def test_what_is_wrong_with_the_files_of_sets_is_said_before_anything_runs(data, judged):
    option, arguments = judged
    a, deep = data / "a.json", data / "deep"
    for given, error, said in (
        ([f"other={a}"], ValueError, "whose it is, .* called .*eight, .*deep"),
        ([a], ValueError, "say whose it is"),
        ([f"{deep}={data / 'c.json'}"], FileNotFoundError, r"c\.json"),
        ([f"{deep}={a}", f"{deep}={a}"], ValueError, "twice for .*deep"),
    ):
        with pytest.raises(error, match=said):
            evaluate(*arguments, *[word for one in given for word in (option, one)])
    assert not (data / "out").exists()
