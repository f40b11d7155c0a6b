"""Weights are found by name, and damage is told apart."""

import json

import pytest
import torch

from difiisr_models import WeightsError, load_upscaler
from difiisr_models.compact import CompactConfig, CompactNetwork
from difiisr_models.files import sha256_file
from difiisr_models.model_loading import save_compact
from difiisr_models.weights import find_weights_folder


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    save_compact(CompactNetwork(CompactConfig(channels=8, blocks=1)), tmp_path / "m", {"note": "x"})
    return tmp_path / "m"


def edit_manifest(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_and_a_file_in_it_are_the_same_model(folder):
    by_folder = load_upscaler(str(folder))
    by_file = load_upscaler(str(folder / "network.safetensors"))
    assert by_folder.weights_sha256 == by_file.weights_sha256
    assert by_folder.weights_sha256 == sha256_file(folder / "network.safetensors")
    assert by_folder.parameter_count > 1000


def test_changed_bytes_are_noticed(folder):
    path = folder / "network.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(WeightsError, match="sha256"):
        load_upscaler(str(folder))


def test_missing_file_and_missing_manifest(folder):
    (folder / "network.safetensors").unlink()
    with pytest.raises(WeightsError, match="missing"):
        load_upscaler(str(folder))
    (folder / "manifest.json").unlink()
    with pytest.raises(WeightsError, match=r"manifest\.json"):
        find_weights_folder(str(folder))


@pytest.mark.parametrize("text", ["not json", "[]", '{"format": 99}'])
def test_unreadable_manifests(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(WeightsError):
        load_upscaler(str(folder))


def test_a_manifest_of_another_network_or_kind(folder):
    edit_manifest(folder, network={"channels": 12, "blocks": 1, "time_features": 64})
    with pytest.raises(WeightsError, match="does not fit"):
        load_upscaler(str(folder))
    for channels in ("48", 0, -3):
        edit_manifest(folder, network={"channels": channels, "blocks": 1, "time_features": 64})
        with pytest.raises(WeightsError, match="does not fit"):
            load_upscaler(str(folder))
    edit_manifest(folder, kind="holographic")
    with pytest.raises(WeightsError, match="holographic"):
        load_upscaler(str(folder))
