"""Whatever a stream has seen, it has got over it one good frame later."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difiisr_models import Stream, load_upscaler

UP = load_upscaler("bicubic", device="cpu")
# Few values in many places: a frame of its own bits for each pixel is noise, and soon forgotten.
FRAMES = st.builds(
    lambda dtype, values, seed: (
        np.random.default_rng(seed).choice(np.frombuffer(values, dtype), (16, 20)).copy()
    ),
    st.sampled_from([np.float32, np.uint16, np.uint8]),
    st.lists(st.binary(min_size=4, max_size=4), min_size=1, max_size=8).map(b"".join),
    st.integers(0, 2**31),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(FRAMES, min_size=1, max_size=4))
def test_no_good_frame_is_wrong_but_the_next(frames):
    stream = Stream()
    for frame in frames:
        UP(frame, stream)
    y, x = np.mgrid[:16, :20]
    good = (300 + 0.02 * x + 5 * np.exp(-((x - 9) ** 2 + (y - 8) ** 2) / 20)).astype(np.float32)
    UP(good, stream)
    means = UP(good, stream).reshape(16, 4, 20, 4).mean((1, 3))
    np.testing.assert_allclose(means, good, atol=0.5)


@pytest.mark.parametrize("noisy", [1, 2, 3])
@pytest.mark.parametrize("before", [0, 6])
def test_noisy_frames_leave_no_noise_behind(before, noisy):
    """Of one size, encoding and range: they may be true, and the ones after them are not theirs."""
    up, stream, rng = (
        load_upscaler("bicubic-consistent", device="cpu"),
        Stream(),
        np.random.default_rng(before),
    )
    y, x = np.mgrid[:16, :16]
    scene = 300 + 0.02 * x + 5 * np.exp(-((x - 8) ** 2 + (y - 8) ** 2) / 20)

    def means(deviation):
        frame = rng.normal(scene, deviation).astype(np.float32)
        return up(frame, stream).reshape(16, 4, 16, 4).mean((1, 3)) - frame

    for deviation in before * [0.03] + noisy * [3.0] + [0.03]:
        means(deviation)
    assert all(np.abs(means(0.03)).max() < 0.2 for _ in range(12))
