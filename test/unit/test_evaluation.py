import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from thermal_bags import header, image_bytes, record

from difiisr_training.evaluation import run as run_module
from difiisr_training.evaluation.cli import main
from difiisr_training.evaluation.judge import Judge, Scene
from difiisr_training.evaluation.metrics import psnr
from difiisr_training.evaluation.pairs import make_pair
from difiisr_training.evaluation.peers import Contestant
from difiisr_training.evaluation.results import (
    FrameRow,
    frames_folder,
    read_frame,
    read_per_frame,
    read_results,
    slug,
    write_frame,
    write_per_frame,
)

WEIGHTS = Path(__file__).parents[3] / "shared" / "weights"


@pytest.fixture
def data(tmp_path):
    """Five 8-bit and three 16-bit images, their sides no multiples of 4."""
    rng = np.random.default_rng(0)
    for name, dtype, number, high in (("eight", np.uint8, 5, 255), ("deep", np.uint16, 3, 9000)):
        (tmp_path / name).mkdir()
        for index in range(number):
            scene = np.kron(rng.integers(high // 2, high, (11, 13)), np.ones((6, 6)))
            Image.fromarray(scene.astype(dtype)).save(tmp_path / name / f"{index:02}.png")
    return tmp_path


def film_bag(path, frames=6, size=(24, 32)):
    rng = np.random.default_rng(3)
    scene = rng.integers(29000, 31000, size)
    images = {
        i: image_bytes(header(i), (scene + rng.normal(0, 4, size)).astype(np.uint16), "mono16")
        for i in range(frames)
    }
    return record(path, frames=frames, images=images)


def evaluate(*arguments):
    return main([*map(str, arguments), "--device", "cpu", "--no-report"])


def test_sets_are_judged_with_reference(data, capsys):
    out = data / "out"
    code = evaluate(data / "eight", data / "deep", "--models", "bicubic,difiisr-rt-x4@0.5",
                    "--out", out, "--metrics", "psnr,ssim,spectral,consistency,error")  # fmt: skip
    assert code == 0
    assert "| 5 | bicubic |" in capsys.readouterr().out
    results = read_results(out)
    assert (results.mode, results.degradation) == ("reference", "bicubic")
    assert [(s.name, s.frames, s.kind) for s in results.sets] == [
        (str(data / "eight"), 5, "images"), (str(data / "deep"), 3, "images"),
    ]  # fmt: skip
    plain, ours = results.sets[0].models
    assert (ours.name, ours.title) == ("difiisr-rt-x4@0.5", "difiisr-rt-x4@0.5")
    assert ours.parameters > 1e5
    assert len(ours.weights_sha256) == 64
    assert ours.seconds_per_frame > 0
    assert plain.difference_to_bicubic["psnr"].mean == 0
    assert ours.mean["consistency_mean"] < plain.mean["consistency_mean"]
    low, high = ours.interval["psnr"]
    assert low < ours.mean["psnr"] < high
    gain = ours.difference_to_bicubic["psnr"]
    assert gain.mean == pytest.approx(ours.mean["psnr"] - plain.mean["psnr"])
    assert results.sets[0].temperature_bins is None
    assert {"psnr", "error_p95"} <= results.metrics.keys()


def test_means_can_be_computed_again_from_the_frames(data):
    """results.json against the table, and the table against the images that lie beside it."""
    out = data / "out"
    evaluate(data / "deep", "--models", "bicubic", "--out", out, "--metrics", "psnr,error")
    with (out / "per_frame.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["set", "frame", "model", "psnr", "error_bias", "error_p95", "seconds"]
    content = json.loads((out / "results.json").read_text())
    entry = content["sets"][0]["models"][0]
    assert entry["mean"]["psnr"] == pytest.approx(np.mean([float(r["psnr"]) for r in rows]))
    frames = out / "frames" / slug(str(data / "deep"))
    for row in rows:
        sr, hr = (
            np.asarray(Image.open(frames / series / f"{row['frame']}.png")).astype(np.float64)
            for series in ("bicubic", "hr")
        )
        span = hr.max() - hr.min()
        assert float(row["psnr"]) == pytest.approx(psnr(sr, hr, span))
        assert float(row["error_bias"]) == pytest.approx((sr - hr).mean())
        lr = np.asarray(Image.open(frames / "lr" / f"{row['frame']}.png"))
        assert np.array_equal(lr, make_pair(hr.astype(np.uint16))[0])
    assert content["version"] == 1
    assert content["command"][:2] == ["difiisr", "evaluate"]
    assert {"device", "threads", "versions"} <= content["environment"].keys()


def test_errors_in_kelvin_with_a_radiometry(data):
    out = data / "out"
    evaluate(data / "deep", "--models", "bicubic", "--out", out, "--metrics", "kelvin,error",
             "--radiometry", "kelvin=0.01*counts+250")  # fmt: skip
    (chosen,) = read_results(out).sets
    (model,) = chosen.models
    assert model.mean["kelvin_p95"] == pytest.approx(0.01 * model.mean["error_p95"])
    pixels = sum(one.pixels for one in chosen.temperature_bins)
    assert pixels == 3 * 64 * 76
    bias = sum(one.pixels * one.models["bicubic"].bias for one in chosen.temperature_bins)
    assert bias / pixels == pytest.approx(model.mean["kelvin_bias"], abs=1e-9)


def test_a_film_of_a_camera_is_judged_without_reference(tmp_path):
    film_bag(tmp_path / "bag")
    out = tmp_path / "out"
    arguments = [tmp_path / "bag", "--models", "bicubic,difiisr-rt-x4", "--out", out]
    assert evaluate(*arguments, "--mode", "camera", "--topic", "/cam/image_raw") == 0
    results = read_results(out)
    (chosen,) = results.sets
    assert (chosen.kind, chosen.topic, chosen.frames) == ("bag", "/cam/image_raw", 6)
    assert results.degradation is None
    plain, ours = chosen.models
    assert plain.mean["flicker"] == pytest.approx(1)
    assert 0.5 < ours.mean["flicker"] < 3
    assert ours.mean["consistency_mean"] < 0.5
    rows = read_per_frame(out)
    assert [np.isnan(row.values["flicker"]) for row in rows] == [True, *[False] * 5] * 2
    for name in ("clip_iqa", "musiq", "niqe"):
        assert results.not_run[name]
        assert name not in results.metrics
    assert not frames_folder(out, chosen.name, "hr").exists()
    assert read_frame(frames_folder(out, chosen.name, "lr"), "000005").shape == (24, 32)


def test_a_recording_of_high_resolution_frames_can_be_the_reference(tmp_path):
    film_bag(tmp_path / "bag", frames=3, size=(96, 128))
    out = tmp_path / "out"
    evaluate(tmp_path / "bag", "--models", "bicubic", "--out", out, "--metrics", "psnr",
             "--degradation", "thermal")  # fmt: skip
    results = read_results(out)
    assert results.degradation == "thermal"
    assert results.sets[0].models[0].mean["psnr"] > 10


def test_a_recording_in_kelvin_stays_float(tmp_path):
    rng = np.random.default_rng(4)
    scenes = [np.kron(rng.uniform(280, 310, (12, 16)), np.ones((8, 8))) for _ in range(2)]
    images = {
        i: image_bytes(header(i), s.astype(np.float32), "32FC1") for i, s in enumerate(scenes)
    }
    record(tmp_path / "bag", frames=2, images=images)
    out = tmp_path / "out"
    evaluate(tmp_path / "bag", "--models", "bicubic,difiisr-rt-x4", "--out", out,
             "--radiometry", "kelvin=1*counts")  # fmt: skip
    (chosen,) = read_results(out).sets
    assert read_frame(frames_folder(out, chosen.name, "hr"), "000001").dtype == np.float32
    for model in chosen.models:
        assert model.mean["kelvin_p95"] == model.mean["error_p95"] < 15
        assert model.mean["psnr"] > 15
    assert chosen.models[1].mean["consistency_max"] < 0.5
    assert chosen.temperature_bins[0].low >= 270


def test_the_same_again_gives_the_same_numbers(data):
    tables = []
    for name in ("one", "two"):
        evaluate(data / "eight", "--models", "difiisr-rt-x4@0", "--out", data / name,
                 "--metrics", "psnr,spectral,consistency")  # fmt: skip
        tables.append([(r.frame, dict(r.values)) for r in read_per_frame(data / name)])
    assert tables[0] == tables[1]


@pytest.fixture
def counted(monkeypatch):
    """Upscaled frames per model."""
    calls = []
    original = Contestant.__init__

    def init(self, name, upscale, *rest):
        def counting(counts):
            calls.append(name)
            return upscale(counts)

        original(self, name, counting, *rest)

    monkeypatch.setattr(Contestant, "__init__", init)
    return calls


def test_finished_models_do_not_run_again_until_something_changes(data, counted):
    arguments = [data / "eight", "--out", data / "out", "--metrics", "psnr"]
    evaluate(*arguments, "--models", "bicubic")
    assert counted == ["bicubic"] * 6  # one goes before the timed ones
    table = (data / "out" / "per_frame.csv").read_text()
    evaluate(*arguments, "--models", "bicubic")
    assert counted == ["bicubic"] * 6
    assert (data / "out" / "per_frame.csv").read_text() == table
    evaluate(*arguments, "--models", "bicubic,difiisr-rt-x4")
    assert counted[6:] == ["difiisr-rt-x4"] * 6
    evaluate(*arguments, "--models", "bicubic", "--limit", "2")
    assert counted[12:] == ["bicubic"] * 3
    shutil.copy(data / "eight" / "00.png", data / "eight" / "04.png")
    evaluate(*arguments, "--models", "bicubic", "--limit", "2")
    assert counted[15:] == ["bicubic"] * 3
    next((data / "out" / "frames").glob("*/bicubic/00.png")).unlink()
    evaluate(*arguments, "--models", "bicubic", "--limit", "2")
    assert counted[18:] == ["bicubic"] * 3


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
        patch.setattr(run_module, "write_frame", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(*arguments)
    counted.clear()
    evaluate(*arguments)
    assert counted == ["difiisr-rt-x4"] * 6
    assert [m.name for m in read_results(data / "out").sets[0].models] == [
        "bicubic", "difiisr-rt-x4",
    ]  # fmt: skip


def test_a_detector_judges_the_frames_of_every_set(data, monkeypatch):
    from difiisr_training.detection import judge

    asked = []

    def note(out, folder, detector, annotations, series):
        assert (out / "frames" / folder / "hr").is_dir()
        asked.append((folder, detector.name, annotations.name, series))
        return {"sets": {folder: {}}}

    monkeypatch.setattr(judge, "judge_detection", note)
    detector, boxes = data / "d.onnx", data / "a.json"
    arguments = [data / "eight", data / "deep", "--models", "bicubic", "--metrics", "psnr"]
    arguments += ["--out", data / "out", "--detector", detector]
    with pytest.raises(FileNotFoundError, match=r"d\.onnx"):
        evaluate(*arguments, "--annotations", boxes)
    detector.touch()
    boxes.touch()
    given = [("--annotations", f"{data / name}={boxes}") for name in ("eight", "deep")]
    evaluate(*arguments, *given[0], *given[1])
    folders = [slug(str(data / name)) for name in ("eight", "deep")]
    assert asked == [(one, "d.onnx", "a.json", ["bicubic", "hr"]) for one in folders]
    assert read_results(data / "out").detection == {"sets": {folders[1]: {}}}
    with pytest.raises(ValueError, match="--annotations"):
        evaluate(*arguments)


def test_sets_without_annotations_are_named_as_not_run(data, monkeypatch):
    from difiisr_training.detection import judge

    def refuse_deep(out, folder, *_):
        if "deep" in folder:
            raise judge.NotAnnotated("no boxes here")
        return {"sets": {folder: {}}}

    monkeypatch.setattr(judge, "judge_detection", refuse_deep)
    for name in ("d.onnx", "a.json"):
        (data / name).touch()
    judges = ["--detector", data / "d.onnx", "--annotations", data / "a.json"]
    rest = ["--models", "bicubic", "--metrics", "psnr", "--out", data / "out", *judges]
    evaluate(data / "eight", data / "deep", *rest)
    results = read_results(data / "out")
    assert results.detection == {"sets": {slug(str(data / "eight")): {}}}
    assert results.not_run[f"detection on {data / 'deep'}"] == "no boxes here"
    with pytest.raises(judge.NotAnnotated):
        evaluate(data / "deep", *rest)


def test_a_segmenter_judges_with_and_without_labels(data, monkeypatch):
    from difiisr_training.segmentation import judge

    asked = []

    def note(out, folder, segmenter, labels, series, device):
        asked.append((segmenter.name, labels and labels.name, series, device))
        return {"sets": {folder: {}}}

    monkeypatch.setattr(judge, "judge_segmentation", note)
    arguments = [data / "eight", "--models", "bicubic", "--metrics", "psnr", "--out", data / "out"]
    for name in ("b1", "Label"):
        (data / name).mkdir()
    evaluate(*arguments, "--segmenter", data / "b1")
    evaluate(*arguments, "--segmenter", data / "b1", "--labels", data / "Label")
    assert asked == [("b1", name, ["bicubic", "hr"], "cpu") for name in (None, "Label")]
    assert read_results(data / "out").segmentation["sets"]


def test_outputs_of_another_method_are_judged_as_a_model_is(data):
    out = data / "out"
    arguments = [data / "eight", "--models", "bicubic", "--metrics", "psnr,consistency"]
    evaluate(*arguments, "--out", out)
    theirs = frames_folder(out, str(data / "eight"), "bicubic")
    evaluate(*arguments, "--out", data / "again", "--outputs", f"Bi-DiffSR={theirs}")
    plain, copied = read_results(data / "again").sets[0].models
    assert copied.name == "Bi-DiffSR"
    assert copied.mean == plain.mean
    assert (copied.parameters, copied.seconds_per_frame) == (None, None)
    assert len(copied.weights_sha256) == 64
    perfect = frames_folder(out, str(data / "eight"), "hr")
    evaluate(*arguments, "--out", data / "again", "--outputs", f"perfect={perfect}")
    assert read_results(data / "again").sets[0].models[1].mean["psnr"] is None  # infinite
    assert all(r.values["psnr"] == np.inf for r in read_per_frame(data / "again")[5:])
    (theirs / "03.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 5 frames .* 03"):
        evaluate(*arguments, "--out", data / "again", "--outputs", f"Bi-DiffSR={theirs}")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--metrics", "mse"], "no metric mse in reference mode"),
        (["--metrics", "flicker"], "no metric flicker in reference mode"),
        (["--metrics", "niqe"], "niqe cannot be measured: needs niqe_pris_params.npz"),
        (["--metrics", "kelvin"], "--radiometry"),
        (["--models", "safmn"], "safmn_ntire23_x4.pth"),
        (["--models", "bicubic,bicubic"], "would share the folder 'bicubic'"),
        (["--outputs", "lr=x"], "'lr'"),
        (["--limit", "0"], "1 or more"),
        (["--radiometry", "celsius"], "no linear radiometry"),
    ],
)
def test_the_command_says_what_is_wrong(data, changes, said):
    arguments = [data / "eight", "--models", "bicubic", "--metrics", "psnr"]
    with pytest.raises((ValueError, OSError), match=said):
        evaluate(*arguments, "--out", data / "out", *changes)


def test_frames_of_two_depths_are_no_set(data):
    shutil.copy(data / "deep" / "00.png", data / "eight" / "99.png")
    with pytest.raises(ValueError, match="uint16, uint8"):
        evaluate(data / "eight", "--models", "bicubic", "--out", data / "out")


def test_what_cannot_be_measured_is_said_and_never_a_number(data, capsys):
    evaluate(data / "eight", "--models", "bicubic", "--out", data / "out")
    results = read_results(data / "out")
    assert results.not_run.keys() == {
        "lpips_squeeze", "lpips_alex", "lpips_vgg", "kelvin", "niqe", "clip_iqa", "musiq",
    }  # fmt: skip
    assert "squeezenet1_1_features_lpips.pth" in results.not_run["lpips_squeeze"]
    assert "not run: musiq: needs musiq_koniq_ckpt-e95806b9.pth" in capsys.readouterr().out


@pytest.mark.skipif(not WEIGHTS.is_dir(), reason=f"no weights at {WEIGHTS}")
def test_all_metrics_agree_which_result_is_better(shared_data):
    frame = np.asarray(Image.open(sorted((shared_data / "roadscene/train").glob("*"))[0]))
    lr, hr = make_pair(frame[:288, :288])
    names = ["psnr", "ssim", "lpips_squeeze", "niqe", "spectral", "error"]
    judge = Judge("reference", names, WEIGHTS)
    exact, coarse = (judge(sr, Scene(lr, hr)) for sr in (hr, lr.repeat(4, 0).repeat(4, 1)))
    assert exact["lpips_squeeze"] == exact["spectral"] == exact["error_p95"] == 0
    for name, info in judge.columns.items():
        if info.better != "zero":
            assert (exact[name] > coarse[name]) == (info.better == "higher"), name


def test_16_bit_images_are_judged_on_their_own_range(data):
    hr = np.asarray(Image.open(data / "deep" / "00.png")).astype(np.uint16)
    lr, hr = make_pair(hr)
    score = Judge("reference", ["psnr"], None)(hr + np.uint16(100), Scene(lr, hr))
    assert score["psnr"] == pytest.approx(20 * np.log10((int(hr.max()) - int(hr.min())) / 100))


def test_tables_and_frames_come_back_as_they_were_written(tmp_path):
    rows = [
        FrameRow("a", "f", "m", {"psnr": np.inf, "niqe": np.nan}, 0.25),
        FrameRow("a", "g", "m", {"psnr": 30.123456789012345, "niqe": 4.0}, np.nan),
    ]
    write_per_frame(rows, ["psnr", "niqe"], tmp_path)
    again = read_per_frame(tmp_path)
    assert str(again) == str(rows)
    for dtype in (np.uint8, np.uint16, np.float32):
        counts = (np.random.default_rng(0).random((5, 7)) * 200).astype(dtype)
        write_frame(tmp_path / dtype.__name__, "f", counts)
        back = read_frame(tmp_path / dtype.__name__, "f")
        assert back.dtype == dtype
        assert np.array_equal(back, counts)


def note_judged(monkeypatch, unknown="nowhere"):
    """Judges that note folder and file of each set, and know none whose name holds ``unknown``."""
    from difiisr_training.detection import judge as detection
    from difiisr_training.segmentation import judge as segmentation

    asked = []

    def note(absent):
        def judge(out, folder, network, path, *_):
            if unknown in folder:
                raise absent("nothing here")
            assert not (out / "detection.json").exists()
            asked.append((folder, path and path.name))
            return {"sets": {folder: {}}}

        return judge

    monkeypatch.setattr(detection, "judge_detection", note(detection.NotAnnotated))
    monkeypatch.setattr(segmentation, "judge_segmentation", note(segmentation.NotLabelled))
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
    own = [f"{data / 'deep'}={data / 'b.json'}", f"{data / 'eight'}={data / 'a.json'}"]
    evaluate(*arguments, option, own[0], option, own[1])
    slugs = [slug(str(data / name)) for name in ("eight", "deep")]
    assert asked == [(slugs[0], "a.json"), (slugs[1], "b.json")]
    evaluate(*arguments, option, own[0])
    assert asked[2:] == [(slugs[1], "b.json")]
    (reason,) = [v for k, v in read_results(data / "out").not_run.items() if k.endswith("eight")]
    assert reason == f"no {option} {data / 'eight'}=... was given"


def test_a_file_without_a_set_must_fit_one_alone(data, judged, monkeypatch):
    option, arguments = judged
    note_judged(monkeypatch)
    with pytest.raises(ValueError, match=f"fits frames of .*eight and of .*deep; .*{option} .*="):
        evaluate(*arguments, option, data / "a.json")
    assert note_judged(monkeypatch, "eight") == []
    evaluate(*arguments, option, data / "a.json")
    results = read_results(data / "out")
    assert (results.detection or results.segmentation)["sets"].keys() == {slug(str(data / "deep"))}
    task = "detection" if results.detection else "segmentation"
    assert results.not_run[f"{task} on {data / 'eight'}"] == "nothing here"


def test_what_is_wrong_with_the_files_of_sets_is_said_before_anything_runs(data, judged):
    option, arguments = judged
    for given, error, said in (
        ([f"other={data / 'a.json'}"], ValueError, "the sets are called .*eight, .*deep"),
        ([f"{data / 'deep'}={data / 'c.json'}"], FileNotFoundError, r"c\.json"),
        ([data / "a.json", data / "b.json"], ValueError, "twice without SET="),
    ):
        with pytest.raises(error, match=said):
            evaluate(*arguments, *[word for one in given for word in (option, one)])
    assert not (data / "out").exists()


def test_what_older_runs_judged_does_not_join(data, judged, monkeypatch):
    option, arguments = judged
    note_judged(monkeypatch)
    (data / "out").mkdir()
    for name in ("detection.json", "segmentation.json"):
        (data / "out" / name).write_text("{}")
    evaluate(*arguments, option, f"{data / 'deep'}={data / 'a.json'}")
    assert not list((data / "out").glob("*ion.json"))
