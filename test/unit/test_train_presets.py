"""Every preset in config/train is complete and describes itself."""

from pathlib import Path

import pytest

from difiisr_ros.commands.train import describe
from difiisr_training.config import load_config

PRESETS = sorted((Path(__file__).parents[2] / "config" / "train").glob("*.yaml"))
BUDGETS = {"difiisr-rt-x4": 5.0, "difiisr-rt-l-x4": 25.0}
"""GFLOP for a tile of 64x64, by how the name begins."""


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_is_read_and_within_the_budget_of_its_model(path):
    config = load_config(path)
    if config.published is None:
        (line,) = (x for x in describe(config).splitlines() if x.startswith("network "))
        (budget,) = (most for name, most in BUDGETS.items() if config.name.startswith(name))
        assert 0 < float(line.split()[1]) <= budget


def test_the_published_network_is_described_too():
    text = describe(load_config(PRESETS[-1]))
    assert "parameters        118,593,583" in text
    assert "101.32 GFLOP for 64x64" in text
