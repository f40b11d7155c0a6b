"""A seeded share of ``benchmarks/fuzz_messages.py``; the full count is committed beside it."""

import runpy
from pathlib import Path

import pytest

pytest.importorskip("rcl_interfaces", reason="needs ROS messages")

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "fuzz_messages.py"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_hostile_messages_raise_nothing_and_spoil_no_good_frame_but_the_next():
    if not SCRIPT.exists():
        pytest.skip("an installed package has no benchmarks beside it")
    report = runpy.run_path(str(SCRIPT))["fuzz"](1500, seed=7)
    assert report["escaped"] == []
    assert report["fates"]["upscaled"] > 400
    assert report["good_frames"] > 150
    assert report["wrong_after_the_next"] == 0
    assert report["memory_growth_mb"] < 500  # images of 2 megapixels are allowed
