import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from difiisr_models import FrameSettings, Runtime
from difiisr_ros.parameters import Parameters, changed, config_yaml, readme_table

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "config" / "sr.yaml"


@pytest.mark.parametrize(
    ("name", "value", "reasons"),
    [
        ("fidelity", 3, ["'fidelity' is of type double, but 3 is integer: write 3.0"]),
        ("fidelity", float("nan"), ["fidelity", "got nan", "0.0 to 1.0"]),
        ("steps", 16, ["steps", "got 16", "1 to 15"]),
        ("steps", True, ["'steps' is of type integer, but True is bool"]),
        ("seed", -2, ["seed", "got -2", "-1 to"]),
        ("device", "gpu", ["device must be one of auto, cpu, cuda, cuda:N, got 'gpu'"]),
        ("device", "cuda:x", ["device", "got 'cuda:x'"]),
        ("precision", "int4", ["precision", "'int4'", "fp32, bf16, fp16"]),
        ("build_only", True, ["build_only needs 'engine'"]),
        ("no_data", "0;5", ["no_data", "numbers separated by commas", "got '0;5'"]),
        ("crop", "2, 0", ["crop", "top, bottom, left, right", "got '2, 0'"]),
        ("crop", "-1,0,0,0", ["crop", "got '-1,0,0,0'"]),
        ("no_data", True, ["'no_data'", "but True is bool"]),
        ("input_reliability", "maybe", ["best_effort, reliable"]),
        ("overlap", 128, ["less than half the tile (256), got 128"]),
    ],
)
def test_a_bad_value_is_refused_with_name_value_and_remedy(name, value, reasons):
    with pytest.raises(ValueError, match=name) as refusal:
        changed(Parameters(), False, {name: value})
    assert all(reason in str(refusal.value) for reason in reasons), refusal.value


@pytest.mark.parametrize(
    ("given", "numbers"),
    [("", ()), ("0, 65535", (0, 65535)), ("-9999.0", (-9999,)), (0, (0,)), (-3.4e38, (-3.4e38,))],
)
def test_values_without_a_measurement_are_written_as_ros_takes_them(given, numbers):
    # of "no_data:=0" ros2 makes an integer
    assert changed(Parameters(), True, {"no_data": given}).no_data_values == numbers


def test_without_parameters_the_node_does_what_load_upscaler_does():
    assert Parameters().load_arguments() == {**asdict(Runtime()), **asdict(FrameSettings())}


def test_build_only_builds_with_tensorrt_and_nothing_else():
    arguments = Parameters(build_only=True, engine="a.plan", backend="torch").load_arguments()
    assert (arguments["backend"], arguments["engine_mismatch"]) == ("tensorrt", "rebuild")


def test_frame_settings_and_tiles_change_while_running():
    live = {
        **{"fidelity": 0.5, "steps": 3, "consistency": 0.5, "seed": 1},
        **{"tile": 128, "overlap": 8, "tile_batch": 2, "remove_pattern": False},
        **{"output_scale": 4, "pipeline": "published"},
    }
    assert changed(Parameters(), True, live).live_arguments() == live


def test_the_model_changes_only_while_unconfigured():
    assert changed(Parameters(), False, {"model": "bicubic"}).model == "bicubic"
    with pytest.raises(ValueError, match="cleanup"):
        changed(Parameters(), True, {"model": "bicubic"})
    # the value it has already is no change
    assert changed(Parameters(), True, {"model": Parameters().model}) == Parameters()


def test_the_shipped_configuration_is_the_table():
    assert CONFIG.read_text() == config_yaml() + "\n"


def test_the_documentation_shows_the_table():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    if not pages[0].exists():
        pytest.skip("an installed package has no README beside it")
    shown = any(readme_table() in page.read_text() for page in pages)
    assert shown, "run python -m difiisr_ros.parameters"


def test_parameters_are_read_without_torch():
    code = "import difiisr_ros.parameters, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
