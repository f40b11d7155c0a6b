from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
import yaml

from difiisr_models import UpscalerSettings
from difiisr_ros.parameters import (
    ParameterError,
    Parameters,
    changed,
    config_yaml,
    readme_table,
)

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "config" / "sr.yaml"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("fidelity", 3, "'fidelity' is of type double, but 3 is integer: write 3.0"),
        ("fidelity", 3.0, "'fidelity' is 3.0, outside 0.0 to 1.0"),
        ("fidelity", float("nan"), "'fidelity' is nan, outside 0.0 to 1.0"),
        ("steps", 16, "'steps' is 16, outside 1 to 15"),
        ("steps", 0, "'steps' is 0, outside 1 to 15"),
        ("steps", 2.0, "'steps' is of type integer, but 2.0 is double"),
        ("steps", True, "'steps' is of type integer, but True is bool"),
        ("seed", -2, "'seed' is -2, outside -1 to"),
        ("lazy", 1, "'lazy' is of type bool, but 1 is integer"),
        ("model", None, "'model' is of type string, but None is NoneType"),
        ("device", "gpu", "'device' is 'gpu', but must be one of auto, cpu, cuda, cuda:N"),
        ("device", "cuda:x", "'device' is 'cuda:x'"),
        (
            "backend",
            "caffe",
            "'backend' is 'caffe', but must be one of auto, tensorrt, torch_tensorrt,",
        ),
        ("precision", "int8", "'precision' is 'int8', but must be one of fp32, bf16, fp16"),
        ("engine_mismatch", "ignore", "but must be one of rebuild, fallback, fail"),
        ("build_only", True, "build_only needs 'engine'"),
        ("input_reliability", "maybe", "one of best_effort, reliable"),
        ("overlap", 128, "less than half the tile (256), got 128"),
    ],
)
def test_a_bad_value_is_refused_with_name_value_and_remedy(name, value, reason):
    with pytest.raises(ParameterError) as refusal:
        Parameters(**{name: value})
    assert reason in str(refusal.value)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_devices_are_accepted(device):
    assert Parameters(device=device).device == device


def test_without_parameters_the_node_does_what_load_upscaler_does():
    assert UpscalerSettings(**Parameters().frame_settings()) == UpscalerSettings()


def test_the_model_is_loaded_as_the_parameters_say():
    parameters = Parameters(backend="torch", precision="fp16", engine="a.plan", steps=2)
    arguments = parameters.load_arguments()
    assert (arguments["backend"], arguments["precision"], arguments["steps"]) == (
        "torch",
        "fp16",
        2,
    )
    assert (arguments["engine"], arguments["engine_mismatch"]) == ("a.plan", "fallback")
    assert not {"model", "threads", "build_only", "lazy"} & set(arguments)


def test_build_only_builds_with_tensorrt_and_nothing_else():
    arguments = Parameters(build_only=True, engine="a.plan", backend="torch").load_arguments()
    assert (arguments["backend"], arguments["engine_mismatch"]) == ("tensorrt", "rebuild")


def test_parameters_are_frozen():
    with pytest.raises(FrozenInstanceError):
        Parameters().steps = 2


def test_no_noise_is_seed_minus_one():
    assert Parameters(seed=-1).frame_settings()["seed"] is None
    assert Parameters(seed=7).frame_settings()["seed"] == 7


def test_frame_settings_change_while_running():
    live = {"fidelity": 0.5, "steps": 3, "consistency": 0.5, "seed": 1, "tile": 128, "overlap": 8}
    updated = changed(Parameters(), True, {**live, "tile_batch": 1})
    assert updated.frame_settings() == {**live, "tile_batch": 1}


def test_the_model_changes_only_while_unconfigured():
    assert changed(Parameters(), False, {"model": "bicubic"}).model == "bicubic"
    with pytest.raises(ParameterError, match="cleanup"):
        changed(Parameters(), True, {"model": "bicubic"})
    # the value it has already is no change
    assert changed(Parameters(), True, {"model": Parameters().model}) == Parameters()


def test_the_shipped_configuration_is_the_table():
    assert CONFIG.read_text() == config_yaml() + "\n"


def test_the_shipped_configuration_loads_as_the_defaults_for_any_namespace():
    loaded = yaml.safe_load(CONFIG.read_text())["/**"]["ros__parameters"]
    assert Parameters(**loaded) == Parameters()
    assert list(loaded) == [parameter.name for parameter in fields(Parameters)]


def test_every_parameter_is_in_the_readme_table():
    rows = readme_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == [field.name for field in fields(Parameters)]


def test_the_readme_shows_the_table():
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("an installed package has no README beside it")
    assert readme_table() in readme.read_text(), "run python -m difiisr_ros.parameters"
