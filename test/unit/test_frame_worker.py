import threading
import time

import pytest

from difiisr_ros.frame_worker import FrameWorker, Stopped, any_computing

PATIENCE = 30  # seconds until a test gives up waiting


class Bench:
    """A worker whose computation waits for `release`, and what came out of it."""

    def __init__(self):
        self.started = threading.Semaphore(0)
        self.release = threading.Semaphore(0)
        self.delivered, self.failures = [], []
        self.done = threading.Semaphore(0)
        self.worker = FrameWorker(self.compute, self.deliver, self.fail)

    def compute(self, frame):
        self.started.release()
        assert self.release.acquire(timeout=PATIENCE)
        if frame == "bad":
            raise ValueError("bad frame")
        return frame

    def deliver(self, result):
        self.delivered.append(result)
        self.done.release()

    def fail(self, error):
        self.failures.append(error)
        self.done.release()


@pytest.fixture
def bench():
    bench = Bench()
    yield bench
    bench.release.release(100)
    assert bench.worker.stop(PATIENCE)


def test_the_newest_waiting_frame_wins(bench):
    assert not bench.worker.submit(1)
    assert bench.started.acquire(timeout=PATIENCE)
    assert not bench.worker.submit(2)
    assert bench.worker.submit(3)
    assert bench.worker.submit(4)
    bench.release.release(2)
    for _ in range(2):
        assert bench.done.acquire(timeout=PATIENCE)
    assert bench.delivered == [1, 4]


def test_a_failing_frame_is_reported_and_the_next_one_is_answered(bench):
    bench.release.release(2)
    bench.worker.submit("bad")
    assert bench.done.acquire(timeout=PATIENCE)
    bench.worker.submit("good")
    assert bench.done.acquire(timeout=PATIENCE)
    assert [str(error) for error in bench.failures] == ["bad frame"]
    assert bench.delivered == ["good"]


def test_nothing_is_delivered_after_stop(bench):
    bench.worker.submit(1)
    assert bench.started.acquire(timeout=PATIENCE)
    bench.worker.submit(2)
    assert not bench.worker.stop(timeout=0)  # still in frame 1
    assert any_computing()
    assert bench.worker.computing_since <= time.monotonic()
    bench.release.release(2)
    assert bench.worker.stop(PATIENCE)
    assert not any_computing()
    assert bench.delivered == []
    assert not bench.started.acquire(blocking=False)  # frame 2 was never begun
    assert [type(error) for error in bench.failures] == [Stopped, Stopped]
