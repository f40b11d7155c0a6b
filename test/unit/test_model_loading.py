"""Weights are found by name, and damage is told apart."""

import json
import math

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


def changed(name, change):
    """A file of the folder, with other bytes, or gone."""

    def damage(folder):
        content = change((folder / name).read_bytes())
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)

    return damage


def with_fields(**fields):
    return changed("manifest.json", lambda text: json.dumps(json.loads(text) | fields).encode())


def saved(change):
    """Changed in its values, with the right hash."""

    def damage(folder):
        network = CompactNetwork(CompactConfig(channels=8, blocks=1))
        change(network)
        save_compact(network, folder, {})

    return damage


NOT_FINITE = (math.nan, math.inf, -math.inf)


def poisoned(value):
    return saved(lambda network: network.fuse.weight.data[3, 2, 1, 0].fill_(value))


def network(channels, blocks=1):
    return with_fields(network={"channels": channels, "blocks": blocks, "time_features": 64})


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (changed("network.safetensors", lambda b: b[:-1] + bytes([b[-1] ^ 1])), "sha256"),
        (changed("network.safetensors", lambda b: b[:-1]), "bytes"),
        (changed("network.safetensors", lambda _: None), "missing"),
        (changed("manifest.json", lambda _: None), r"manifest\.json"),
        *(
            (changed("manifest.json", lambda _, text=text: text), reason)
            for text, reason in (
                (b"not json", "cannot read"),
                (b"[]", "format"),
                (b"[" * 100_000, "nested"),
                (b" " * (1 << 21), "at most"),
            )
        ),
        (with_fields(format=99), "format 99"),
        (with_fields(kind="holographic"), "holographic"),
        *((network(channels), "does not fit") for channels in (12, "48", 0, -3, 10**30)),
        *((network(8, blocks), "layers cannot be in") for blocks in (100_000, 10**9)),
        *((poisoned(value), r"fuse\.weight holds (-?inf|nan)") for value in NOT_FINITE),
        (poisoned(1e38), r"fuse\.weight holds 1e\+38"),
        (saved(lambda network: network.double()), "float64"),
        (with_fields(limits={"deviation": 1e9}), "between 0 and 100"),
        (with_fields(limits={"contrast": 1}), "limits"),
    ],
)
def test_damaged_weights_are_refused(folder, damage, text):
    damage(folder)
    with pytest.raises(WeightsError, match=text):
        load_upscaler(str(folder))
