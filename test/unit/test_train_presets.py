"""Every preset in config/train is complete and describes itself."""

from pathlib import Path

import pytest
from wave_frames import write_waves

from difiisr_models import load_upscaler
from difiisr_models.compact import CompactNetwork
from difiisr_ros.commands import train_model as train_command
from difiisr_ros.commands.train_model import describe, preset_or_file
from difiisr_training.config import from_dict, load_config, read_yaml
from difiisr_training.sequence_training import SequenceConfig

FOLDER = Path(__file__).parents[2] / "config" / "train"
RECURRENT = sorted(FOLDER.glob("recurrent*.yaml"))
PRESETS = sorted(set(FOLDER.glob("*.yaml")) - set(RECURRENT))
BUDGET = 5.0  # GFLOP for a tile of 64x64


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_is_read_and_within_the_budget_of_its_model(path):
    config = load_config(path)
    if config.published is None:
        (line,) = (x for x in describe(config).splitlines() if x.startswith("network "))
        assert 0 < float(line.split()[1]) <= BUDGET


@pytest.mark.parametrize("path", RECURRENT, ids=lambda path: path.stem)
def test_presets_of_recurrent_networks_are_read_too(path):
    config = from_dict(read_yaml(path), str(path), SequenceConfig)
    assert config.network.recurrent
    assert CompactNetwork(config.network).config == config.network


def test_the_published_network_is_described_too():
    text = describe(load_config(PRESETS[-1]))
    assert "parameters        118,593,583" in text
    assert "101.32 GFLOP for 64x64" in text


def test_presets_are_found_by_name_and_unknown_ones_are_told(tmp_path):
    assert preset_or_file("compact_guided") == PRESETS[0].parent / "compact_guided.yaml"
    mine = tmp_path / "mine.yaml"
    mine.write_text("name: mine")
    assert preset_or_file(str(mine)) == mine
    with pytest.raises(FileNotFoundError, match=r"nothing: neither a file nor .*own_camera"):
        preset_or_file("nothing")


def test_a_folder_of_ones_own_frames_is_all_that_training_needs(
    tmp_path, monkeypatch, capsys, json_of
):
    write_waves(tmp_path / "frames", 3, (256, 256))
    preset = PRESETS[0].with_name("own_camera.yaml").read_text()
    short = preset.replace("2000", "1") + "batch: 2\ncrops: {lr_size: 16}\n"
    (tmp_path / "own.yaml").write_text(short)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_command, "preset_or_file", lambda name: tmp_path / "own.yaml")
    options = ["--data", "frames", "--workers", "0", "--device", "cpu", "--export", "mine"]
    assert json_of("train", *options)["iterations"] == 1
    assert "beginning with the weights of difiisr-rt-x4" in capsys.readouterr().err
    assert load_upscaler("mine").weights_sha256 != load_upscaler("difiisr-rt-x4").weights_sha256
