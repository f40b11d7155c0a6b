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
        self.worker = FrameWorker(self.compute, self.delivered.append, self.failures.append)

    def compute(self, frame):
        self.started.release()
        assert self.release.acquire(timeout=PATIENCE)
        return frame


@pytest.fixture
def bench():
    bench = Bench()
    yield bench
    bench.release.release(100)
    assert bench.worker.stop(PATIENCE)


def test_nothing_is_delivered_after_stop(bench):
    bench.worker.submit(1)
    assert bench.started.acquire(timeout=PATIENCE)
    bench.worker.submit(2)
    assert bench.worker.submit(3)  # in place of the one that waits
    assert not bench.worker.stop(timeout=0)  # still in frame 1
    assert any_computing()
    assert bench.worker.computing_since <= time.monotonic()
    bench.release.release(2)
    assert bench.worker.stop(PATIENCE)
    assert not any_computing()
    assert bench.delivered == []
    assert not bench.started.acquire(blocking=False)  # frame 3 was never begun
    assert [type(error) for error in bench.failures] == [Stopped, Stopped]
