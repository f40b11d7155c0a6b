"""The published networks against what the reference computed for the same parameters."""

import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from difiisr_models.published import parity
from difiisr_models.published.parity import run_parity

RECORDED = Path(__file__).parent / "parity"
OUTPUTS = {
    "schedule.sqrt_etas", "unet.out", "unet_wide.out", "vq.z", "vq.decoded", "sample.one_step",
}  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    return list(run_parity("tiny", RECORDED))


def test_tiny_networks_reproduce_every_recorded_output(rows):
    assert {row.name for row in rows} == OUTPUTS | {"sample.steps15"}
    assert {row.name: row.max_abs_diff for row in rows if not row.passed} == {}


@pytest.mark.slow
def test_published_size_reproduces_every_recorded_output():
    shared = Path(__file__).resolve().parents[3] / "shared" / "parity"
    if not shared.is_dir():
        pytest.skip(f"no recorded outputs of the full size at {shared}")
    rows = list(run_parity("full", shared))
    assert {row.name for row in rows} == OUTPUTS
    assert {row.name: row.max_abs_diff for row in rows if not row.passed} == {}


def test_the_command_prints_a_line_for_each_output(rows, difiisr, monkeypatch):
    monkeypatch.setattr(parity, "run_parity", lambda *_: rows)
    printed = difiisr("info", "bicubic", "--parity", "tiny", "--parity-data", RECORDED).out
    assert all(f"{name}: " in printed for name in OUTPUTS)
    assert "FAILED" not in printed


def test_wrong_parameters_are_noticed(tmp_path, monkeypatch):
    """One bias off by 0.01 must show."""

    def disturbed(shapes):
        state = honest(shapes)
        if "out.2.bias" in state:
            state["out.2.bias"] += 0.01
        return state

    expected = load_file(RECORDED / "tiny_expected.safetensors")
    save_file(
        {k: expected[k] for k in ("unet.out", "vq.z")}, tmp_path / "tiny_expected.safetensors"
    )
    shutil.copy(RECORDED / "tiny_state_dict_shapes.json", tmp_path)
    honest = parity.rule_state
    monkeypatch.setattr(parity, "rule_state", disturbed)
    assert {row.name: row.passed for row in run_parity("tiny", tmp_path)} == {
        "unet.out": False,
        "vq.z": True,
    }
