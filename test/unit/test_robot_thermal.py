"""The robot-thermal benchmark runs offline, judges others' outputs alike, and its JSON is whole."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from wave_frames import save_image

from benchmarks import robot_thermal as benchmark
from benchmarks.robot_thermal import Report, by_temperature, measure, swapped, target_measures
from difiisr_training.degradations import pillow_resize

JSON = Path(__file__).parents[2] / "benchmarks" / "robot_thermal.json"


def test_the_committed_results_fit_the_schema_and_hold_every_row():
    report = Report.model_validate_json(JSON.read_text())
    assert all(list(one.rows) == list(benchmark.ROWS) for one in report.models.values())


def test_lost_invented_and_cooled_targets_and_swapped_regions_are_counted():
    hr = np.zeros((96, 96))
    hr[[20, 20, 70], [20, 70, 20]] = 400
    hr = gaussian_filter(hr, 2)
    sr = hr.copy()
    sr[:40, :40] = 0  # lost
    sr[40:, 40:] = hr[40:, :56][:, ::-1]  # invented
    sr[:40, 50:] /= 1.25  # a fifth cooler
    found = target_measures(sr, hr, 5)
    assert (found["targets"], found["saved"], found["invented"]) == (3, 2, 1)
    assert found["peak_bias"] == pytest.approx(-(100 + 20 + 0) / 3, abs=0.5)
    slope = np.tile(np.arange(96.0), (96, 1))
    assert swapped(slope, slope, 2, 0) == 0
    assert swapped(-slope, slope, 2, 0) == 100


def test_errors_are_counted_where_the_pixel_should_be():
    """Cold pixels are 0.5 K too warm, hot ones right but for one; both lie beyond the edges."""
    kelvin, errors = np.repeat([278, 298], 10), np.r_[np.full(10, 0.5), -2, np.zeros(9)]
    cold, hot = by_temperature(kelvin, errors, np.array([279, 283, 293, 297]))
    assert cold == {"low": 279, "high": 283, "pixels": 10, "bias": 0.5, "p95": 0.5}
    assert (hot["low"], hot["bias"]) == (293, pytest.approx(-0.2))


def test_a_folder_of_outputs_is_judged_as_the_model_that_made_it(tmp_path, monkeypatch):
    kept = ("clean", "2 % + pattern", "8-bit JPEG 50")
    monkeypatch.setattr(benchmark, "ROWS", {name: benchmark.ROWS[name] for name in kept})
    rng, images, out = np.random.default_rng(0), tmp_path / "images", tmp_path / "out"
    for name in ("0.png", "1.png"):
        noise = gaussian_filter(rng.normal(0, 1, (64, 96)), 2)
        save_image(images / name, (29_000 + 4000 * noise).astype(np.uint16))
    asked = {"out": out, "size": "96x64", "sequence": images, "frames": 0}
    measure([images], models="bicubic", **asked)
    theirs = shutil.copytree(out / "lr", tmp_path / "theirs")
    for path in theirs.rglob("*.png"):
        lr = np.asarray(Image.open(path))
        Image.fromarray(pillow_resize(lr, 64, 96)).save(path)
    measure([images], models="bicubic", outputs=[f"theirs={theirs}"], **asked)
    report = Report.model_validate_json((out / "robot_thermal.json").read_text())
    ours, judged = report.models["bicubic"].rows, report.models["theirs"].rows
    assert ours == judged
    assert ours["clean"].psnr > ours["2 % + pattern"].psnr
    assert ours["clean"].kelvin_p95 > 0
    assert report.models["bicubic+c"].rows["clean"].consistency < ours["clean"].consistency
    assert (out / "robot_thermal.png").stat().st_size > 10_000
