"""What is known of cameras: files, guesses, temperatures, windows, and where they are said."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from thermal_bags import record

from difiisr_models import Camera, load_upscaler
from difiisr_models.camera_files import guess_cameras, known_cameras, read_camera_file
from difiisr_models.radiometry import temperatures
from difiisr_models.settings import Crop
from difiisr_ros.replay import replay as replay_bag

FOLDER = Path(__file__).resolve().parents[2] / "config" / "cameras"


@pytest.mark.parametrize("name", known_cameras())
def test_every_camera_says_what_it_is_and_where_that_is_from(name):
    camera = read_camera_file(name)
    text = (FOLDER / f"{name}.yaml").read_text()
    said = yaml.safe_load(text)
    assert camera.title
    assert {"bits", "justification", "telemetry", "rate", "driver"} <= said.keys()
    assert name == "generic" or ("Source" in text and said["driver"]["package"])
    assert set(camera.parameters) <= set(asdict(Camera()))
    assert camera.encodings


@pytest.mark.parametrize(
    ("name", "counts", "celsius"),
    [("optris", 1250, 25.0), ("lepton", 29815, 25.0), ("lepton_0_1k", 2981.5, 25.0)],
)
def test_counts_of_cameras_are_the_right_temperatures(name, counts, celsius):
    camera = read_camera_file(name).camera
    values = np.array([[counts]], np.float32)
    np.testing.assert_allclose(temperatures(values, camera, "celsius"), celsius, atol=2e-3)
    np.testing.assert_allclose(temperatures(values, camera, "kelvin"), celsius + 273.15, atol=2e-3)


def test_pixels_without_a_measurement_have_no_temperature():
    camera = Camera(unit="kelvin", scale=0.01, no_data="0, 65535")
    found = temperatures(np.array([[0, 30000, 65535]], np.uint16), camera, "kelvin")
    np.testing.assert_array_equal(np.isnan(found), [[True, False, True]])
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("encoding", "size", "median", "likely"),
    [
        ("mono16", (382, 288), 2655, "optris"),
        ("mono16", (160, 120), 29800, "lepton"),
        ("16UC1", (640, 512), 8000, "boson"),
        ("mono8", (640, 512), 120, "boson_agc8"),
        ("32FC1", (320, 240), 21.5, "seek"),
        ("mono16", (300, 200), 500, None),
    ],
)
def test_the_camera_is_guessed_from_its_frames(encoding, size, median, likely):
    found = [camera.name for camera in guess_cameras(encoding, *size, median)]
    assert found[:1] == ([likely] if likely else [])


def test_an_unknown_camera_lists_the_known_and_a_file_is_read(tmp_path):
    with pytest.raises(ValueError, match=r"no camera 'bozon'; known are boson, .*optris"):
        read_camera_file("bozon")
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump({"parameters": {"unit": "kelvin", "scale": 0.04}}))
    assert read_camera_file(str(mine)).camera.scale == 0.04
    mine.write_text(yaml.safe_dump({"parameters": {"no_such": 1}}))
    with pytest.raises(ValueError, match="no_such"):
        read_camera_file(str(mine))


def test_crop_telemetry_and_region_make_one_window():
    assert Camera(crop="1,2,3,4", telemetry_rows=-2).window(100, 200) == Crop(1, 4, 3, 4)
    camera = Camera(telemetry_rows=2, roi="10, 20, 64, 48")
    assert camera.window(122, 160) == Crop(22, 52, 10, 86)
    assert camera.window(122, 160).cut(np.zeros((122, 160))).shape == (48, 64)
    with pytest.raises(ValueError, match="does not lie in the 64x46 pixels"):
        camera.window(48, 64)


@pytest.fixture(params=[(120, 160, 2), (120, 160, -2), (60, 80, 3), (60, 80, -3)])
def lepton(request):
    """The camera, and a function that makes its frames, with telemetry of that FFC state."""
    height, width, rows = request.param
    wide = np.random.default_rng(0).normal(30_000, 900, (height // 4, width // 4))
    scene = np.rint(np.kron(wide, np.ones((4, 4)))).astype(np.uint16)

    def frame(number, state, revision=14):
        telemetry = np.zeros((abs(rows), width), np.uint16)
        telemetry[0, :5] = revision, number, 0, state << 4 | 0x1008, 0xFFFF
        noisy = scene + np.random.default_rng(number).integers(0, 30, scene.shape, np.uint16)
        return np.concatenate((telemetry, noisy) if rows > 0 else (noisy, telemetry))

    return replace(read_camera_file("lepton").camera, telemetry_rows=rows), frame


def test_a_lepton_says_in_header_and_footer_that_its_shutter_is_closed(lepton):
    camera, frame = lepton
    assert [camera.is_shut(frame(0, state)) for state in range(4)] == [False, False, True, False]
    assert [camera.is_shut(frame(0, n, revision=8)) for n in (1, 2)] == [True, False]
    assert not replace(camera, telemetry="none").is_shut(frame(0, 2))
    assert not replace(camera, telemetry_rows=0).is_shut(frame(0, 2))
    assert not camera.is_shut(frame(0, 2).astype(np.float32))
    assert replace(camera, crop="1, 1, 0, 2").is_shut(np.pad(frame(0, 2), ((1, 1), (0, 2))))


def test_a_correction_that_telemetry_tells_is_a_shutter_event(lepton, tmp_path, difiisr):
    camera, frame = lepton
    images = [frame(n, 2 if n in (4, 5) else 3) for n in range(9)]
    bag = record(tmp_path / "bag", images=images, encoding="16UC1")
    report = replay_bag(bag, tmp_path / "sr", load_upscaler("bicubic"), camera=camera)
    assert report.events == "2 flat"
    asked = ("--camera", "lepton", "--telemetry-rows", camera.telemetry_rows)
    assert "2 flat in 9 frames" in difiisr("info", "--bag", bag, *asked).out


@pytest.mark.parametrize("fields", [{"scale": 0.0}, {"offset": float("nan")}, {"roi": "1,2"}])
def test_what_makes_no_sense_is_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        Camera(**fields)


def test_info_finds_the_rows_of_telemetry(lepton, tmp_path, difiisr):
    camera, frame = lepton
    bag = record(tmp_path / "bag", images=[frame(n, 3) for n in range(5)])
    for asked in ([], ["--camera", "lepton"]):
        said = difiisr("info", "--bag", bag, *asked).out
        assert said.rstrip().endswith(f"camera:=lepton telemetry_rows:={camera.telemetry_rows}")
        assert "measured    0 " not in said  # the camera's own words are no temperatures


def test_info_names_the_camera_and_the_launch_line(tmp_path, difiisr):
    counts = np.random.default_rng(0).integers(29700, 29900, (120, 160)).astype(np.uint16)
    bag = record(tmp_path / "bag", images=[counts + n for n in range(5)])
    said = difiisr("info", "--bag", bag).out
    assert "lepton (FLIR Lepton, TLinear 0.01 K)" in said
    assert said.rstrip().endswith("image:=/cam/image_raw camera:=lepton")
    said = difiisr("info", "--bag", bag, "--crop", "2,0,0,0").out
    assert said.rstrip().endswith("camera:=lepton crop:=2,0,0,0")
    said = difiisr("info", "--bag", bag, "--camera", "optris", "--crop", "2,0,0,0").out
    assert "camera:=optris crop:=2,0,0,0" in said
    assert "known are boson" in difiisr("info", "--bag", bag, "--camera", "bozon", code=1).err


def test_half_the_scale_is_the_result_scaled_down_and_keeps_what_is_invalid():
    y, x = np.mgrid[:24, :32]
    frame = (7000 + 200 * np.sin(x / 4) + 10 * y).astype(np.float32)
    frame[5, 6] = np.nan
    half = load_upscaler("bicubic-consistent", output_scale=2)
    whole = load_upscaler("bicubic-consistent")(frame)
    found = half(frame)
    assert (half.scale, found.shape) == (2, (48, 64))
    assert np.isnan(found[10:12, 12:14]).all()
    mean = whole.reshape(48, 2, 64, 2).mean(axis=(1, 3))
    seen = np.isfinite(mean) & np.isfinite(found)
    assert np.abs(mean - found)[seen].max() < 0.05 * np.nanmax(np.abs(frame - 7000))


def test_signed_counts_keep_their_values():
    y, x = np.mgrid[:24, :32]
    frame = (200 * np.sin(x / 4) + 10 * y - 150).astype(np.int16)
    result = load_upscaler("bicubic-consistent")(frame)
    assert result.dtype == np.int16
    means = result.reshape(24, 4, 32, 4).mean(axis=(1, 3))
    assert np.abs(means - frame).max() < 20
    other = load_upscaler("bicubic-consistent")((frame + 1000).astype(np.uint16))
    assert np.abs(other.astype(int) - 1000 - result).max() <= 1
