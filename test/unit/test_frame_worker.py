import threading
import time

from difiisr_ros.frame_worker import FrameWorker, Stopped, any_computing

PATIENCE = 30  # seconds until a test gives up waiting


def test_nothing_is_delivered_after_stop():
    started, release, delivered, failures = *(threading.Semaphore(0) for _ in range(2)), [], []

    def compute(frame):
        started.release()
        assert release.acquire(timeout=PATIENCE)
        return frame

    worker = FrameWorker(compute, delivered.append, failures.append)
    worker.submit(1)
    assert started.acquire(timeout=PATIENCE)
    worker.submit(2)
    assert worker.submit(3)  # in place of the one that waits
    assert not worker.stop(timeout=0)  # still in frame 1
    assert any_computing()
    assert worker.computing_since <= time.monotonic()
    release.release(2)
    assert worker.stop(PATIENCE)
    assert not any_computing()
    assert delivered == []
    assert not started.acquire(blocking=False)  # frame 3 was never begun
    assert [type(error) for error in failures] == [Stopped, Stopped]
