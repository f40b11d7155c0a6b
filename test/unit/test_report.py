import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("jinja2", reason="the report needs jinja2")
pytest.importorskip("matplotlib", reason="the report needs matplotlib")

from difiisr_training.data.images import pillow_resize
from difiisr_training.evaluation.report.crops import choose_window, disagreement
from difiisr_training.evaluation.report.page import write_report
from difiisr_training.evaluation.report.ranking import marks, places
from difiisr_training.evaluation.report.spectra import frequencies, radial_power
from difiisr_training.evaluation.results import (
    HR_FOLDER,
    LR_FOLDER,
    Difference,
    FrameRow,
    MetricInfo,
    ModelResult,
    Results,
    SetResult,
    frames_folder,
    read_per_frame,
    slug,
    write_frame,
    write_per_frame,
    write_results,
)

REFERENCE = {
    "psnr": MetricInfo("PSNR", "dB", "higher"),
    "lpips_squeeze": MetricInfo("LPIPS-squeeze", "", "lower"),
    "consistency_mean": MetricInfo("|D(SR) - LR|, mean", "counts", "lower"),
}
CAMERA = {"niqe": MetricInfo("NIQE", "", "lower"), "flicker": MetricInfo("Flicker", "", "lower")}


def make_out(
    out,
    models=("bicubic", "ours"),
    sets=("road",),
    frames=3,
    dtype="uint8",
    metrics=REFERENCE,
    **parts,
):
    """A folder as an evaluation leaves it: noise, and numbers that rise with the model's place."""
    rng = np.random.default_rng(0)
    with_reference = "psnr" in metrics
    rows, found = [], []
    for name in sets:
        for index in range(frames):
            hr = (rng.random((96, 128)) * 200).astype(dtype)
            frame = f"{index:03}"
            write_frame(frames_folder(out, name, LR_FOLDER), frame, pillow_resize(hr, 24, 32))
            if with_reference:
                write_frame(frames_folder(out, name, HR_FOLDER), frame, hr)
            for place, model in enumerate(models):
                sr = (hr * (1 - 0.1 * place)).astype(dtype)
                write_frame(frames_folder(out, name, model), frame, sr)
                values = {key: 10.0 + place + 0.1 * index for key in metrics}
                rows.append(FrameRow(name, frame, model, values, 0.01))
        found.append(
            SetResult(
                name, f"/data/{name}", "images", None, frames, "5e" * 32,
                [
                    ModelResult(
                        model, f"{model} title", "ab" * 32, 1000, 0.01,
                        {key: 10.0 + place for key in metrics},
                        {key: (9.0 + place, 11.0 + place) for key in metrics},
                        {key: Difference(float(place), (0.5, 1.5)) for key in metrics},
                    )
                    for place, model in enumerate(models)
                ],
                None,
            )
        )  # fmt: skip
    mode = "reference" if with_reference else "camera"
    results = Results(
        ["difiisr", "evaluate", "a b", "--out", str(out.name)],
        {"device": "cpu", "threads": 1, "versions": {"numpy": "9.9"}},
        mode, "bicubic" if with_reference else None, metrics, {"musiq": "no file"}, found,
        **parts,
    )  # fmt: skip
    write_per_frame(rows, list(metrics), out)
    write_results(results, out)
    return out


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    out = make_out(tmp_path_factory.mktemp("out"), sets=("road", "hit_uav/test"))
    return write_report(out).read_text()


def test_everything_that_was_measured_is_named(page):
    wanted = ["road", "hit_uav/test", "bicubic title", "ours title", "no file", "ab" * 32, "9.9"]
    wanted += [info.label for info in REFERENCE.values()]
    wanted.append("difiisr evaluate &#39;a b&#39; --out")  # as a shell takes it
    assert [text for text in wanted if text not in page] == []


def test_nothing_is_fetched(page):
    sources = re.findall(r'(?:src|href)="([^"]{0,40})', page)
    assert sources
    assert all(source.startswith(("data:image/", "#")) for source in sources)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_every_picture_has_a_text(page):
    shown = re.findall(r"<img [^>]*src=[^>]*>", page)
    assert shown
    assert all(re.search(r'alt="[^"]+"', tag) for tag in shown)


def test_names_are_text_and_not_markup(tmp_path):
    hostile = "<script>alert(1)</script>$\\frac{1}{$"
    make_out(tmp_path, models=("bicubic", hostile, "_hidden"), sets=('"><img onerror=x>',))
    page = write_report(tmp_path).read_text()
    assert "<script>alert" not in page
    assert "<img onerror" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "_hidden title" in page


def test_the_same_results_give_the_same_bytes(tmp_path):
    make_out(tmp_path, frames=2, dtype="float32")
    first = write_report(tmp_path).read_bytes()
    assert b">Reference<" in first
    assert write_report(tmp_path).read_bytes() == first


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_one_model_and_one_frame_without_reference(tmp_path, dtype):
    make_out(tmp_path, models=("ours",), frames=1, dtype=dtype, metrics=CAMERA)
    page = write_report(tmp_path).read_text()
    assert "Without reference" in page
    assert "one frame has no interval" in page
    assert ">Reference<" not in page


def test_best_and_second_stand_out_in_the_table(tmp_path):
    page = write_report(make_out(tmp_path, models=("a", "b", "c"))).read_text()
    row = page.split('<th scope="row">c title</th>')[1].split("</tr>")[0]
    best = re.findall(r'<td class="best ?">.*?<b>([\d.]+)</b>', row)
    assert best == ["12.00"]  # PSNR: the higher, and worst in the two others
    assert "second" not in row


def test_a_model_that_equals_the_reference_is_best_in_psnr():
    frames = {"same": [math.inf, math.inf], "near": [40.0, 41.0], "far": [30.0, 31.0]}
    found = marks({"same": None, "near": 40.5, "far": 30.5}, frames, "higher")
    assert {name: mark.place for name, mark in found.items()} == {"same": 1, "near": 2, "far": 0}


def test_places_follow_the_better_way():
    values = {"a": 1.0, "b": -3.0, "c": 2.0, "d": None}
    assert places(values, "higher") == {"a": 2, "b": 0, "c": 1, "d": 0}
    assert places(values, "lower") == {"a": 2, "b": 1, "c": 0, "d": 0}
    assert places(values, "zero") == {"a": 1, "b": 0, "c": 2, "d": 0}
    assert places({"a": 1.0, "b": 1.0}, "higher") == {"a": 0, "b": 0}


def test_a_tie_is_judged_frame_by_frame():
    """Both differ less from the best than frames differ from each other; one does so always."""
    frames = np.linspace(20, 40, 12)
    noise = np.tile([0.5, -0.4], 6)
    means = {"best": 30.0, "same": 29.95, "worse": 29.8}
    values = {"best": frames, "same": frames - noise, "worse": frames - 0.2}
    found = marks(means, values, "higher")
    assert not found["best"].tied
    assert found["same"].tied
    assert not found["worse"].tied


def test_the_crop_lies_on_a_planted_difference():
    rng = np.random.default_rng(0)
    scene = rng.random((120, 160))
    other = scene.copy()
    other[68:92, 104:128] += 3
    window = choose_window(disagreement([scene, other]), 24, 4)
    assert (window.top, window.left, window.side) == (68, 104, 24)
    assert window.score == pytest.approx(1.5)


def test_a_crop_of_a_small_frame_is_the_frame():
    window = choose_window(np.ones((20, 30)), 64, 4)
    assert (window.top, window.left, window.side) == (0, 0, 20)


def test_a_wave_has_its_power_at_its_frequency():
    wave = np.sin(2 * np.pi * 0.2 * np.arange(128))[None].repeat(96, axis=0)
    assert frequencies()[np.nanargmax(radial_power(wave))] == pytest.approx(0.2, abs=0.011)


def test_detection_is_shown_with_its_boxes(tmp_path):
    scores = {"map": 0.4, "map50": 0.7, "per_class": {"Car": {"ap": 0.4, "ap50": 0.7, "boxes": 2}}}
    box = {"box": [10, 10, 20, 15], "class": "Car"}
    content = {
        "detector": {"name": "small.onnx", "classes": ["Car"]},
        "annotations": {"road": {"path": "boxes.json", "sha256": "cd" * 32}},
        "sets": {"road": {"bicubic": scores | {"map": 0.3}, "ours": scores, "HR": scores}},
        "overlays": {"road": {"000": {"truth": [box], "ours": [box | {"score": 0.8}], "HR": []}}},
    }
    content["sets"]["road"]["ours"] = scores | {"map_interval": [0.35, 0.44]}
    make_out(tmp_path, detection=content)
    page = write_report(tmp_path).read_text().split('<section id="detection">')[1]
    wanted = ["small.onnx", "mAP@.5:.95", "Car", "Reference (HR)", "Annotated", "<b>0.400</b>"]
    wanted += ["annotations of road: path boxes.json, sha256 cdcd", "<small>[0.350, 0.440]</small>"]
    assert [text for text in wanted if text not in page] == []


def test_segmentation_is_shown(tmp_path):
    scores = {"miou": 0.5, "miou_interval": [0.41, 0.62], "per_class": {"sky": 0.91}}
    content = {"judged_against": "pseudo-labels of HR", "sets": {slug("road"): {"ours": scores}}}
    make_out(tmp_path, segmentation=content)
    page = write_report(tmp_path).read_text().split('<section id="segmentation">')[1]
    for text in ("pseudo-labels of HR", "mIoU", "sky", "0.910", "[0.410, 0.620]"):
        assert text in page


def test_files_of_an_older_run_are_not_shown(tmp_path):
    make_out(tmp_path)
    content = {"detector": {"name": "old.onnx"}, "sets": {"gone": {"ours": {"map": 0.4}}}}
    for name in ("detection", "segmentation"):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert "old.onnx" not in write_report(tmp_path).read_text()


def test_values_that_are_not_finite_do_not_stand_below_the_crops(tmp_path):
    make_out(tmp_path, models=("bicubic", "ours", "perfect"))
    rows = read_per_frame(tmp_path)
    for model, value in {"ours": math.nan, "perfect": math.inf}.items():
        rows = [
            replace(r, values={**r.values, "psnr": value}) if r.model == model else r for r in rows
        ]
    write_per_frame(rows, list(REFERENCE), tmp_path)
    page = write_report(tmp_path).read_text()
    assert "<span>PSNR 10" in page
    assert "<span>LPIPS-squeeze 12" in page
    assert not re.search(r"<span>[^<]*(nan|inf)\b", page)
