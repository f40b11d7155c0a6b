"""Weights are found by name, and damage is told apart."""

import json

import pytest
import torch

from difiisr_models import WeightsError, load_upscaler
from difiisr_models.compact import CompactConfig, CompactNetwork
from difiisr_models.files import sha256_file
from difiisr_models.model_loading import save_compact


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    save_compact(CompactNetwork(CompactConfig(channels=8, blocks=1)), tmp_path / "m", {"note": "x"})
    return tmp_path / "m"


def test_a_folder_and_a_file_in_it_are_the_same_model(folder):
    by_folder = load_upscaler(str(folder))
    by_file = load_upscaler(str(folder / "network.safetensors"))
    assert by_folder.weights_sha256 == by_file.weights_sha256
    assert by_folder.weights_sha256 == sha256_file(folder / "network.safetensors")
    assert by_folder.parameter_count > 1000


def flip_the_last_bit(folder):
    path = folder / "network.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def with_fields(**changes):
    def write(folder):
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return write


def cut_by_one_byte(folder):
    path = folder / "network.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def network(channels, blocks=1):
    return with_fields(network={"channels": channels, "blocks": blocks, "time_features": 64})


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (flip_the_last_bit, "sha256"),
        (lambda folder: (folder / "network.safetensors").unlink(), "missing"),
        (lambda folder: (folder / "manifest.json").unlink(), r"manifest\.json"),
        (lambda folder: (folder / "manifest.json").write_text("not json"), "cannot read"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "format"),
        (with_fields(format=99), "format 99"),
        (with_fields(kind="holographic"), "holographic"),
        *((network(channels), "does not fit") for channels in (12, "48", 0, -3, 10**30)),
        *((network(8, blocks), "layers cannot be in") for blocks in (100_000, 10**9)),
        (with_fields(limits={"deviation": 1e9}), "between 0 and 100"),
        (with_fields(limits={"contrast": 1}), "limits"),
        (lambda folder: (folder / "manifest.json").write_text("[" * 100_000), "nested"),
        (lambda folder: (folder / "manifest.json").write_text(" " * (1 << 21)), "at most"),
        (cut_by_one_byte, "bytes"),
    ],
)
def test_damaged_weights_are_refused(folder, damage, text):
    damage(folder)
    with pytest.raises(WeightsError, match=text):
        load_upscaler(str(folder))
