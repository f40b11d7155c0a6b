import pytest

from difiisr_ros.stream_statistics import WINDOW, StreamStatistics, percentile


class ManualClock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def stream(clock, statistics, frames, hertz=10.0, latency=0.02, upscaling=0.01):
    """Receive and publish `frames` frames whose stamps are those of a steady camera."""
    for _ in range(frames):
        clock.now += 1 / hertz
        statistics.received(round(clock.now * 1e9))
        statistics.published(latency, upscaling)


@pytest.mark.parametrize(("percent", "value"), [(50, 50), (90, 90), (99, 99), (100, 100), (1, 1)])
def test_percentiles_are_nearest_rank(percent, value):
    assert percentile(list(range(100, 0, -1)), percent) == value


def test_percentile_of_one_value():
    assert percentile([7.0], 50) == percentile([7.0], 99) == 7.0


def test_rates_and_latencies_of_a_steady_stream():
    clock = ManualClock()
    statistics = StreamStatistics(clock)
    stream(clock, statistics, 30, latency=0.02)
    stream(clock, statistics, 1, latency=0.5, upscaling=0.4)
    summary = statistics.summary()
    assert summary.rate_in == pytest.approx(10)
    assert summary.rate_out == pytest.approx(10)
    assert summary.latency == (0.02, 0.02, 0.5)
    assert summary.upscaling == 0.01
    assert (summary.received, summary.published) == (31, 31)
    assert summary.lost == 0


def test_the_window_forgets_but_the_totals_do_not():
    clock = ManualClock()
    statistics = StreamStatistics(clock)
    stream(clock, statistics, 5)
    statistics.dropped("stale")
    clock.now += WINDOW + 1
    summary = statistics.summary()
    assert summary.latency is summary.upscaling is None
    assert summary.rate_in == summary.rate_out == 0
    assert summary.recent_dropped == {}
    assert summary.dropped == {"stale": 1}
    assert summary.received == 5
    assert summary.silence == pytest.approx(WINDOW + 1)


def test_a_stream_waits_while_its_newest_image_was_not_wanted():
    clock = ManualClock()
    statistics = StreamStatistics(clock)
    assert not statistics.summary().waiting
    stream(clock, statistics, 2)
    statistics.received(3)
    statistics.idle()
    assert statistics.summary().waiting
    statistics.received(4)  # for the subscriber that has come
    assert not statistics.summary().waiting


def test_drops_are_counted_by_reason_and_the_last_error_kept():
    statistics = StreamStatistics(ManualClock())
    statistics.dropped("malformed", "step 3 is too short")
    statistics.dropped("stale")
    statistics.dropped("stale")
    summary = statistics.summary()
    assert summary.dropped == summary.recent_dropped == {"malformed": 1, "stale": 2}
    assert summary.last_error == "step 3 is too short"


def test_frames_lost_on_the_way_are_seen_in_the_stamps():
    clock = ManualClock()
    statistics = StreamStatistics(clock)
    stream(clock, statistics, 8)
    clock.now += 0.3  # three frames do not arrive
    stream(clock, statistics, 8)
    assert statistics.summary().lost == 3


def test_jitter_is_not_loss():
    clock = ManualClock()
    statistics = StreamStatistics(clock)
    for jitter in (0, 0.03, -0.02, 0.01, -0.03, 0.02, 0.0, 0.03):
        clock.now += 0.1
        statistics.received(round((clock.now + jitter) * 1e9))
    assert statistics.summary().lost == 0


def test_a_bag_that_starts_again_is_not_loss():
    statistics = StreamStatistics(ManualClock())
    for _ in range(2):
        for frame in range(10):
            statistics.received(frame * 100_000_000)
    assert statistics.summary().lost == 0


def test_stamps_that_are_all_zero_are_not_loss():
    statistics = StreamStatistics(ManualClock())
    for _ in range(10):
        statistics.received(0)
    assert statistics.summary().lost == 0
