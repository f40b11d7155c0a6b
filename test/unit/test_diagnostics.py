from collections import Counter

import pytest

pytest.importorskip("diagnostic_msgs", reason="needs ROS messages")

from diagnostic_msgs.msg import DiagnosticStatus as Status

from difiisr_models import load_upscaler
from difiisr_models.events import Event
from difiisr_models.stream import StreamEvents
from difiisr_ros import diagnostics
from difiisr_ros.stream_statistics import Summary

TOPIC = "/thermal/image_raw"


def total(**fates):
    return {"total": Counter(fates)}


def recent(**fates):
    return {"recent": Counter(fates)}


@pytest.mark.parametrize(
    ("summary", "level", "text"),
    [
        ({**total(published=9), "rate_out": 9.0}, Status.OK, "9.0 Hz"),
        ({**total(received=4, idle=4), "waiting": True}, Status.OK, "waiting for a subscriber"),
        (total(received=5, idle=4), Status.OK, "computing the first frame"),
        ({}, Status.OK, "waiting for an image"),
        ({"silence": 5.0}, Status.ERROR, "no image on /thermal/image_raw for 5 s"),
        ({**recent(received=5), "rate_in": 0.5}, Status.WARN, "brings 0.5 Hz, less than"),
        ({**recent(received=5), "rate_in": 0.5, "silence": 4.0}, Status.ERROR, "no image on"),
        (recent(lost=3), Status.WARN, "3 frames lost before this node"),
        (recent(received=9, stale=6), Status.WARN, "6 of 9 frames skipped"),
        (
            {**recent(malformed=2), "errors": {"malformed": "step 3"}},
            Status.WARN,
            "2 images refused in 10 s: step 3",
        ),
        (
            {**recent(failed=1, stale=5), "errors": {"failed": "out of memory"}},
            Status.ERROR,  # all is told, the worst first
            "1 frames failed in 10 s: out of memory; such a frame has no result; 5 of 0 frames",
        ),
        # what is long over is counted, not alarmed about
        (total(published=1, lost=3, failed=9), Status.OK, "Hz"),
    ],
)
def test_the_worst_trouble_sets_level_and_message(summary, level, text):
    summary = Summary(**summary)
    found_level, message = diagnostics.verdict(
        diagnostics.findings(summary, TOPIC, min_rate=1.0), summary
    )
    assert found_level == level
    assert text in message


@pytest.mark.parametrize(
    ("computing", "level", "text"),
    [(2.0, None, ""), (6.0, Status.WARN, "computes for 6 s"), (31.0, Status.ERROR, "start the")],
)
def test_a_frame_that_computes_for_long_is_told(computing, level, text):
    found = diagnostics.findings(Summary(), TOPIC, computing)
    assert [finding.level for finding in found] == ([level] if level else [])
    assert all(text in finding.text for finding in found)


def test_the_values_a_dashboard_reads():
    summary = Summary(
        total=Counter(received=10, published=7, stale=2, malformed=1),
        latency=(0.02, 0.03, 0.5),
        upscaling=0.015,
    )
    values = diagnostics.stream_values(summary)
    assert values["latency p50 (ms)"] == "20.0"
    assert values["latency p99 (ms)"] == "500.0"
    assert values["upscaling p50 (ms)"] == "15.0"
    assert (values["dropped stale"], values["dropped malformed"]) == ("2", "1")
    assert values["dropped failed"] == "0"
    idle = diagnostics.stream_values(Summary())
    assert idle["latency p50 (ms)"] == idle["upscaling p50 (ms)"] == "nan"


def test_the_backend_and_what_was_passed_over_are_told():
    values = diagnostics.model_values(load_upscaler("bicubic", device="cpu", backend="onnxruntime"))
    assert (values["model"], values["backend"], values["device"]) == ("bicubic", "torch", "cpu")
    assert values["passed over onnxruntime"] == "bicubic always runs in torch"
    assert 50 < float(values["memory (MB)"]) < 50_000


def test_the_state_of_the_stream_tells_event_counts_and_last_jump():
    events = StreamEvents()
    for n, event in enumerate((Event(), Event("offset", 1.0, -183.0, pause=0.8), Event())):
        events = events.then(event, 10**9 * (n + 1))
    values = diagnostics.event_values(events)
    assert (values["event"], values["event since (s)"]) == ("normal", "3.000")
    assert (values["last event"], values["last event offset (counts)"]) == ("offset", "-183")
    counts = [values[f"events {kind}"] for kind in ("offset", "pause", "cut")]
    assert counts == ["1", "1", "0"]
