"""The published networks against what the reference computed for the same parameters."""

from pathlib import Path

import pytest

from difiisr_models.parity import run_parity
from difiisr_ros import cli

RECORDED = Path(__file__).parent / "parity"
OUTPUTS = {
    "schedule.sqrt_etas", "unet.out", "unet_wide.out", "vq.z", "vq.decoded", "sample.one_step",
}  # fmt: skip


def test_tiny_networks_reproduce_every_recorded_output():
    rows = run_parity("tiny", RECORDED)
    assert {row.name for row in rows} == OUTPUTS | {"sample.steps15"}
    assert {row.name: row.max_abs_diff for row in rows if not row.passed} == {}


@pytest.mark.slow
def test_published_size_reproduces_every_recorded_output():
    shared = Path(__file__).resolve().parents[3] / "shared" / "parity"
    if not shared.is_dir():
        pytest.skip(f"no recorded outputs of the full size at {shared}")
    rows = run_parity("full", shared)
    assert {row.name for row in rows} == OUTPUTS
    assert {row.name: row.max_abs_diff for row in rows if not row.passed} == {}


def test_the_command_prints_a_line_for_each_output(capsys):
    arguments = ["info", "bicubic", "--parity", "tiny", "--parity-data", str(RECORDED)]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in OUTPUTS)
    assert "FAILED" not in printed


def test_wrong_parameters_are_noticed(monkeypatch):
    """One bias off by 0.01 must show."""
    from difiisr_models import parity

    def disturbed(shapes):
        state = honest(shapes)
        if "out.2.bias" in state:
            state["out.2.bias"] += 0.01
        return state

    honest = parity.rule_state
    monkeypatch.setattr(parity, "rule_state", disturbed)
    failed = {row.name for row in run_parity("tiny", RECORDED) if not row.passed}
    assert {"unet.out", "unet_wide.out"} <= failed
    assert "vq.z" not in failed
