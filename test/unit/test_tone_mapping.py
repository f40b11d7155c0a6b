"""The preview does not pump with hot objects, does not flicker, and follows shutter and gain."""

import numpy as np
import pytest

from difiisr_models.tone_mapping import ToneMapper, coloured

HEIGHT, WIDTH = 120, 160
Y, X = np.mgrid[:HEIGHT, :WIDTH]
SCENE = 7000 + 200 * np.sin(X / 20) + 150 * np.cos(Y / 12) + 0.3 * Y


def noisy(frame, seed):
    noise = np.random.default_rng(seed).normal(0, 4, frame.shape)
    return (frame + noise).clip(0, 65535).astype(np.uint16)


@pytest.mark.parametrize("radius", [5, 15, 24])
@pytest.mark.parametrize("excess", [500, 30000])
def test_a_hot_object_that_crosses_leaves_the_background_alone(radius, excess):
    mapper, before, first = ToneMapper(), None, None
    for number in range(60):
        middle = -radius + (WIDTH + 2 * radius) * (number - 10) / 40
        hot = (X - middle) ** 2 + (Y - HEIGHT / 2) ** 2 < radius**2
        mapper.update(noisy(SCENE + excess * hot, number))
        grey = mapper.grey(SCENE).astype(int)
        if number == 9:
            first = grey
        if first is not None:
            assert np.abs(grey - first)[~hot].max() <= 8  # of 255
        if before is not None:
            assert np.abs(grey - before).max() <= 2  # no flicker
        before = grey


def test_shutter_jumps_and_gain_are_followed_at_once():
    mapper = ToneMapper()
    for number in range(5):
        mapper.update(noisy(SCENE, number))
    wanted = mapper.grey(SCENE).astype(int)
    for change in (lambda x: x - 183, lambda x: 3 * x):
        frame = change(SCENE)
        mapper.update(noisy(frame, 7))
        assert np.abs(mapper.grey(frame).astype(int) - wanted).mean() <= 4
        mapper = ToneMapper()
        mapper.update(noisy(SCENE, 1))


def test_the_whole_range_is_used_and_larger_images_look_the_same():
    mapper = ToneMapper()
    mapper.update(noisy(SCENE, 0))
    grey = mapper.grey(SCENE)
    assert np.ptp(grey) > 150
    large = mapper.grey(np.kron(SCENE, np.ones((4, 4))).astype(np.float32))
    assert np.abs(large[1::4, 1::4].astype(int) - grey).max() <= 8
    hot, hotter = mapper.grey(np.full((8, 8), 9000.0)), mapper.grey(np.full((8, 8), 8000.0))
    assert (hot >= hotter).all()
    assert mapper.grey(np.full((8, 8), np.nan))[0, 0] == 0


def test_flat_frames_do_not_blow_up():
    mapper = ToneMapper()
    mapper.update(np.full((16, 16), 300, np.float32))
    assert np.ptp(mapper.grey(np.full((64, 64), 300, np.float32))) == 0


def test_colours_rise_in_brightness():
    levels = np.arange(256, dtype=np.uint8)[None]
    assert coloured(levels, "grey") is levels
    picture = coloured(levels, "inferno")
    assert picture.shape == (1, 256, 3)
    assert (np.diff(picture[0].sum(axis=-1, dtype=int)) >= 0).mean() > 0.9
