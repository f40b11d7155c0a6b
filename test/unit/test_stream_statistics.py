from types import SimpleNamespace

import numpy as np
import pytest

from difiisr_ros.stream_statistics import WINDOW, StreamStatistics


@pytest.fixture
def clock():
    return SimpleNamespace(now=100.0)


@pytest.fixture
def statistics(clock):
    return StreamStatistics(lambda: clock.now)


def stream(clock, statistics, frames, hertz=10.0, latency=0.02, upscaling=0.01):
    """Receive and publish `frames` frames whose stamps are those of a steady camera."""
    for _ in range(frames):
        clock.now += 1 / hertz
        statistics.received(round(clock.now * 1e9))
        statistics.count("published", latency=latency, upscaling=upscaling)


def test_rates_and_latencies_of_a_steady_stream(clock, statistics):
    stream(clock, statistics, 30, latency=0.02)
    stream(clock, statistics, 1, latency=0.5, upscaling=0.4)
    summary = statistics.summary()
    assert summary.rate_in == pytest.approx(10)
    assert summary.rate_out == pytest.approx(10)
    assert summary.latency == pytest.approx((0.02, 0.02, 0.356))  # 0.7 of the way to the last one
    assert summary.upscaling == 0.01
    assert summary.total == {"received": 31, "published": 31}


def test_the_window_forgets_but_the_totals_do_not(clock, statistics):
    stream(clock, statistics, 5)
    statistics.count("malformed", "step 3 is too short")
    statistics.count("stale")
    statistics.count("stale")
    summary = statistics.summary()
    assert (summary.recent["malformed"], summary.recent["stale"]) == (1, 2)
    assert summary.errors == {"malformed": "step 3 is too short"}
    clock.now += WINDOW + 1
    summary = statistics.summary()
    assert np.isnan([*summary.latency, summary.upscaling]).all()
    assert summary.rate_in == summary.rate_out == 0
    assert not summary.recent
    assert summary.total == {"received": 5, "published": 5, "malformed": 1, "stale": 2}
    assert summary.silence == pytest.approx(WINDOW + 1)


def test_frames_lost_on_the_way_are_seen_in_the_stamps(clock, statistics):
    stream(clock, statistics, 8)
    clock.now += 0.3  # three frames do not arrive
    stream(clock, statistics, 8)
    summary = statistics.summary()
    assert summary.total["lost"] == summary.recent["lost"] == 3


@pytest.mark.parametrize(
    "stamps",
    [
        [100 * n + late for n, late in enumerate((0, 30, -20, 10, -30, 20, 0, 30))],
        [100 * (n % 10) for n in range(20)],
        [0] * 10,
        [*(1e-6 * n for n in range(20)), *(9000 + 1e-6 * n for n in range(20))],
        [*(100 * n for n in range(20)), *(5000 + 100 * n for n in range(20))],
    ],
    ids=["jitter", "a bag that starts again", "none", "1 ns apart, then 9 s", "a jump in no time"],
)
def test_stamps_in_ms_that_tell_of_no_loss(clock, statistics, stamps):
    for stamp in stamps:
        clock.now += 0.1
        statistics.received(round(stamp * 1e6))
    assert statistics.summary().total["lost"] == 0


def test_another_rate_is_no_loss(clock, statistics):
    for hertz in (30, 9, 30, 1, 9):
        stream(clock, statistics, 40, hertz)
        assert statistics.summary().total["lost"] == 0, hertz


def test_a_silent_or_slower_camera_has_no_longer_its_old_rate(clock, statistics):
    stream(clock, statistics, 60, hertz=10)
    clock.now += 2.0
    assert statistics.summary().rate_in == pytest.approx(60 / 7.9, rel=0.01)
    clock.now += 6.0
    assert statistics.summary().rate_in == 0


def test_every_frame_has_met_a_fate_or_is_pending_over_all_streams(clock, statistics):
    stream(clock, statistics, 3)
    for stamp in range(4):
        statistics.received(stamp)
    statistics.count("stale")
    statistics.count("idle")
    assert statistics.summary().pending == 2
    statistics.begin()
    statistics.count("stopped")
    summary = statistics.summary()
    assert (summary.pending, summary.total["received"], summary.rate_in) == (1, 7, 0)


def gap(clock, statistics, seconds):
    clock.now += seconds
    stream(clock, statistics, 8)


def test_a_pause_of_the_camera_is_no_loss(clock, statistics):
    stream(clock, statistics, 8)
    gap(clock, statistics, 1.2)
    total = statistics.summary().total
    assert (total["lost"], total["withheld"]) == (0, 12)
    for _ in range(3):
        gap(clock, statistics, 0.7)  # no shutter closes that often
    assert statistics.summary().total["lost"] == 21


@pytest.mark.parametrize("after", [False, True], ids=["frozen before", "level jumps after"])
def test_a_short_gap_at_a_shutter_event_is_no_loss(clock, statistics, after):
    stream(clock, statistics, 8)
    if not after:
        statistics.explained()
    clock.now += 0.3
    stream(clock, statistics, 2)
    if after:
        statistics.explained()
    stream(clock, statistics, 8)
    summary = statistics.summary()
    assert (summary.total["lost"], summary.recent["lost"]) == (0, 0)
    assert summary.total["withheld"] == 3
    clock.now += 3.0
    stream(clock, statistics, 40)
    gap(clock, statistics, 0.3)
    assert statistics.summary().total["lost"] == 3
