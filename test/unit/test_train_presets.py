"""Every preset in config/train is complete and describes itself."""

from pathlib import Path

import pytest

from difiisr_training import cli
from difiisr_training.config import load_config

PRESETS = sorted((Path(__file__).parents[2] / "config" / "train").glob("*.yaml"))
BUDGETS = {"difiisr-rt-x4": 5.0, "difiisr-rt-l-x4": 25.0}
"""GFLOP for a tile of 64x64, by how the name begins."""


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_is_read_described_and_within_the_budget_of_its_model(path, capsys):
    config = load_config(path)
    assert cli.main([str(path), "--dry-run"]) == 0
    (line,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("network "))
    gflop = float(line.split()[1])
    if config.published is None:
        (budget,) = (most for name, most in BUDGETS.items() if config.name.startswith(name))
        assert 0 < gflop <= budget
