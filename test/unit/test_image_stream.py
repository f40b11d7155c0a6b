import numpy as np
import pytest

from difiisr_ros.image_stream import ImageStream


class Recorder:
    """Stands for an upscaler: repeats pixels, remembers what it was called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, pixels, tracker):
        self.calls.append((pixels.copy(), tracker))
        return pixels.repeat(4, axis=0).repeat(4, axis=1)


@pytest.fixture
def upscaler():
    return Recorder()


def test_grey_is_one_run_with_one_tracker_for_the_whole_stream(upscaler):
    stream = ImageStream()
    counts = np.arange(256, dtype=np.uint16).reshape(16, 16)
    assert stream.upscale(upscaler, counts).shape == (64, 64)
    stream.upscale(upscaler, counts)
    assert upscaler.calls[0][1] is upscaler.calls[1][1]


def test_equal_channels_cost_one_run(upscaler):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    colour = ImageStream().upscale(upscaler, np.stack([grey] * 3, axis=-1))
    assert len(upscaler.calls) == 1
    assert colour.shape == (64, 64, 3)
    for channel in range(3):
        np.testing.assert_array_equal(colour[::4, ::4, channel], grey)


def test_different_channels_keep_their_place_and_their_own_tracker(upscaler):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    colour = ImageStream().upscale(upscaler, pixels)
    np.testing.assert_array_equal(colour[::4, ::4], pixels)
    assert len({id(tracker) for _, tracker in upscaler.calls}) == 3


def test_streams_do_not_share_trackers(upscaler):
    counts = np.zeros((16, 16), np.uint16)
    ImageStream().upscale(upscaler, counts)
    ImageStream().upscale(upscaler, counts)
    assert upscaler.calls[0][1] is not upscaler.calls[1][1]
