import math
import re

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("jinja2", reason="the report needs jinja2")
pytest.importorskip("matplotlib", reason="the report needs matplotlib")

from difiisr_training.degradations import pillow_resize
from difiisr_training.evaluation.figures import choose_window
from difiisr_training.evaluation.measures import MetricInfo
from difiisr_training.evaluation.report import best_of, write_report
from difiisr_training.evaluation.results import (
    ModelResult,
    Results,
    SetResult,
    frames_folder,
    short_names,
    slug,
    write_frame,
    write_results,
)

REFERENCE = {
    "psnr": MetricInfo("PSNR", "dB", "higher"),
    "lpips_squeeze": MetricInfo("LPIPS-squeeze", "", "lower"),
    "consistency_mean": MetricInfo("|D(SR) - LR|, mean", "counts", "lower"),
}
CAMERA = {"musiq": MetricInfo("MUSIQ", "", "higher"), "flicker": MetricInfo("Flicker", "", "lower")}


def make_report(
    out, models=("bicubic", "ours"), sets=("road",), frames=2, dtype="uint8", metrics=REFERENCE,
    changed=lambda values, model: values, **parts,
):  # fmt: skip
    """The page about noise, and numbers that rise with the model's place."""
    rng = np.random.default_rng(0)
    names, found = [f"{index:03}" for index in range(frames)], []
    for chosen in sets:
        for frame in names:
            hr = (rng.random((96, 128)) * 200).astype(dtype)
            series = {model: hr * (1 - 0.1 * place) for place, model in enumerate(models)}
            series |= {"lr": pillow_resize(hr, 24, 32)} | ({"hr": hr} if "psnr" in metrics else {})
            for name, counts in series.items():
                write_frame(frames_folder(out, chosen, name), frame, counts.astype(dtype))
        results = []
        for place, model in enumerate(models):
            values = {key: 10.0 + place + 0.1 * np.arange(frames) for key in metrics}
            values = changed(values, model)
            means = {key: float(np.mean(numbers)) for key, numbers in values.items()}
            ends = {key: (mean - 1, mean + 1) for key, mean in means.items()}
            difference = {key: {"mean": float(place), "interval": (0.5, 1.5)} for key in values}
            results.append(
                ModelResult(
                    model, f"{model} title", "ab" * 32, 1000, 0.01, means, ends, difference,
                    pd.DataFrame(values, names).assign(seconds=0.01),
                )
            )  # fmt: skip
        found.append(
            SetResult(chosen, f"/data/{chosen}", "images", None, frames, "5e" * 32, results)
        )
    mode, made = ("reference", "bicubic") if "psnr" in metrics else ("camera", None)
    results = Results(
        ["difiisr", "evaluate", "a b", "--out", str(out.name)],
        {"device": "cpu", "threads": 1, "versions": {"numpy": "9.9"}},
        mode, made, metrics, {"musiq": "no file"}, found, **parts,
    )  # fmt: skip
    write_results(results, out)
    return write_report(results, out).read_text()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return make_report(tmp_path_factory.mktemp("out"), sets=("road", "hit_uav/test"))


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


def test_names_are_text_and_not_markup(tmp_path):
    hostile = "<script>alert(1)</script>$\\frac{1}{$"
    page = make_report(
        tmp_path, models=("bicubic", hostile, "_hidden"), sets=('"><img onerror=x>',)
    )
    assert "<script>alert" not in page
    assert "<img onerror" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "_hidden title" in page


def test_the_same_results_give_the_same_bytes(tmp_path):
    first = make_report(tmp_path, dtype="float32")
    assert ">Reference<" in first
    assert make_report(tmp_path, dtype="float32") == first


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_one_model_and_one_frame_without_reference(tmp_path, dtype):
    page = make_report(tmp_path, models=("ours",), frames=1, dtype=dtype, metrics=CAMERA)
    assert "Without reference" in page
    assert "one frame has no interval" in page
    assert ">Reference<" not in page


def test_the_best_stands_out_in_the_table(tmp_path):
    page = make_report(tmp_path, models=("a", "b", "c"))
    row = page.split('<th scope="row">c title</th>')[1].split("</tr>")[0]
    best = re.findall(r'<td class="best ?">.*?<b>([\d.]+)</b>', row)
    assert best == ["12.05"]  # PSNR: the higher, and worst in the two others


def test_the_crop_lies_on_a_planted_difference():
    rng = np.random.default_rng(0)
    scene = rng.random((120, 160))
    other = scene.copy()
    other[68:92, 104:128] += 3
    window = choose_window([scene, other], 24, 4)
    assert (window.top, window.left, window.side) == (68, 104, 24)
    assert window.score == pytest.approx(1.5)
    # Of a small frame it is the frame.
    window = choose_window([np.zeros((20, 30)), np.ones((20, 30))], 64, 4)
    assert (window.top, window.left, window.side) == (0, 0, 20)


def test_detection_is_shown_with_its_boxes(tmp_path):
    scores = {"map": 0.4, "map50": 0.7, "per_class": {"Car": {"ap": 0.4, "ap50": 0.7, "boxes": 2}}}
    box = {"box": [10, 10, 20, 15], "class": "Car"}
    content = {
        "detector": {"name": "small.onnx", "classes": ["Car"]},
        "annotations": {"road": {"path": "boxes.json", "sha256": "cd" * 32}},
        "sets": {"road": {"bicubic": scores | {"map": 0.3}, "ours": scores, "HR": scores}},
        "overlays": {"road": {"000": {"truth": [box], "ours": [box | {"score": 0.8}], "HR": []}}},
    }
    above = {key: {"mean": 0.1, "interval": [0.05, 0.15]} for key in ("map", "map50")}
    content["sets"]["road"]["ours"] = scores | {
        "map_interval": [0.35, 0.44],
        "difference_to_bicubic": above,
        "difference_to_best_peer": above | {"model": "bicubic"},
    }
    page = make_report(tmp_path, detection=content).split('<section id="detection">')[1]
    wanted = ["small.onnx", "mAP@.5:.95", "Car", "Reference (HR)", "Annotated", "<b>0.400</b>"]
    wanted += ["annotations: road path boxes.json, sha256 cdcd", "<small>[0.350, 0.440]</small>"]
    wanted += ["mAP@.5 above bicubic", "<small>[+0.050, +0.150] bicubic title</small>"]
    assert [text for text in wanted if text not in page] == []


def test_segmentation_is_shown(tmp_path):
    scores = {"miou": 0.5, "miou_interval": [0.41, 0.62], "per_class": {"sky": 0.91}}
    content = {"judged_against": "pseudo-labels of HR", "sets": {slug("road"): {"ours": scores}}}
    page = make_report(tmp_path, segmentation=content).split('<section id="segmentation">')[1]
    for text in ("pseudo-labels of HR", "mIoU", "sky", "0.910", "[0.410, 0.620]"):
        assert text in page


def test_values_that_are_not_finite_do_not_stand_below_the_crops(tmp_path):
    numbers = {"ours": math.nan, "perfect": math.inf}

    def changed(values, model):
        return values | {"psnr": np.full(2, numbers[model])} if model in numbers else values

    page = make_report(tmp_path, models=("bicubic", "ours", "perfect"), changed=changed)
    assert "<span>PSNR 10" in page
    assert "<span>LPIPS-squeeze 12" in page
    assert not re.search(r"<span>[^<]*(nan|inf)\b", page)


def test_the_best_follow_the_better_way():
    values = {"a": 1.0, "b": -3.0, "c": 2.0, "d": math.nan}
    assert [best_of(values, way) for way in ("higher", "lower", "zero")] == [{"c"}, {"b"}, {"a"}]
    assert best_of({"a": 1.0, "b": 1.0}, "higher") == set()
    assert best_of({"same": math.inf, "near": 40.0}, "higher") == {"same"}


def test_sets_are_called_by_what_tells_them_apart():
    given = ["hit_uav/test", "/data/a/test", "/data/b/test", "/data/b/other"]
    assert short_names(given) == ["hit_uav/test", "test", "b/test", "other"]
