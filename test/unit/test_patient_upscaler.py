import numpy as np
import pytest
import torch

pytest.importorskip("rclpy", reason="needs ROS 2 (pip extra ros, or a sourced distribution)")

from difiisr_models import Stream, Upscaler, load_upscaler
from difiisr_ros.patient_upscaler import RECOVERY, PatientUpscaler
from difiisr_ros.refusals import described

FRAME = np.arange(200 * 150, dtype=np.uint16).reshape(150, 200)


class Hungry(Upscaler):
    """Runs out of memory for more than `most` pixels of tiles at a time."""

    most = 10**9
    error: Exception = torch.OutOfMemoryError()

    def _estimates(self, frame, *rest):
        side = self.runtime.tile or 640
        if min(side, frame.shape[-2]) * min(side, frame.shape[-1]) > self.most:
            raise self.error
        return super()._estimates(frame, *rest)


@pytest.fixture
def hungry():
    upscaler = load_upscaler("bicubic-consistent", device="cpu")
    upscaler.__class__, upscaler.name = Hungry, "hungry"
    return upscaler


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), MemoryError()])
@pytest.mark.parametrize(("most", "instead"), [(128 * 128, "tiles of 128"), (9, "bicubic")])
def test_less_is_done_where_memory_runs_out_and_all_again_later(hungry, most, instead, error):
    now = [100.0]
    patient = PatientUpscaler(hungry, lambda: now[0])
    plain = load_upscaler("bicubic-consistent", device="cpu")(FRAME, Stream(), 0)
    hungry.most, hungry.error = most, error
    for _ in range(2):
        result = patient(FRAME, Stream(), 0)
        np.testing.assert_allclose(result.astype(float), plain, atol=2)
        assert instead in patient.trouble
        assert type(error).__name__ in patient.trouble
    hungry.most = 10**9
    patient(FRAME, Stream(), 0)
    assert patient.trouble  # not yet
    now[0] += RECOVERY
    patient(FRAME, Stream(), 0)
    assert patient.trouble == ""


def test_other_errors_are_not_its_business(hungry):
    hungry.most, hungry.error = 9, RuntimeError("a kernel failed")
    patient = PatientUpscaler(hungry)
    with pytest.raises(RuntimeError, match="a kernel failed"):
        patient(FRAME, Stream(), 0)
    assert patient.trouble == ""


def test_an_error_without_words_is_described():
    assert described(MemoryError()) == "MemoryError: there is not enough memory"
    assert len(described(ValueError("x" * 10**6))) < 1000
