"""The Python surface: what goes in comes out four times as large, in the same units."""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from difiisr_models import Stream, load_upscaler
from difiisr_models.compact import CompactConfig, CompactNetwork
from difiisr_models.fixed_pattern import PatternTracker
from difiisr_models.model_loading import save_compact
from difiisr_models.resample import downsample, pack


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small random network whose heads do disturb the picture."""
    torch.manual_seed(0)
    network = CompactNetwork(CompactConfig(channels=16, blocks=2))
    with torch.no_grad():
        network.mean_head.weight *= 0.5
        network.detail_head.weight.normal_(std=0.01)
    path = tmp_path_factory.mktemp("weights") / "tiny"
    # Untrained, it invents what no trained one does.
    save_compact(network, path, {"limits": {"deviation": 99.0, "detail": 99.0}})
    return path


@pytest.fixture(scope="module")
def made(folder):
    """Loads that network with other settings."""
    return partial(load_upscaler, str(folder), device="cpu", backend="torch")


@pytest.fixture(scope="module")
def up(made):
    return made()


def scene(height: int, width: int, dtype=np.uint16, low: float = 7000, span: float = 2000):
    y, x = np.mgrid[:height, :width]
    waves = np.sin(x / 3.1) * np.cos(y / 4.3) + 0.3 * np.sin(x * y / 50)
    return (low + span * (waves - waves.min()) / np.ptp(waves)).astype(dtype)


def measured_again(sr: np.ndarray) -> np.ndarray:
    return downsample(pack(torch.from_numpy(sr.astype(np.float64))[None, None]))[0, 0].numpy()


@pytest.mark.parametrize("model", ["bicubic-consistent", "network"])
@pytest.mark.parametrize(
    ("dtype", "low", "span"),
    [(np.uint8, 20, 200), (np.uint16, 7000, 2000), (np.uint16, 22000, 70), (np.float32, 290, 25)],
)
def test_downsampled_output_is_the_input_in_counts(folder, model, dtype, low, span):
    frame = scene(61, 83, dtype, low, span)
    sr = load_upscaler(model if model != "network" else str(folder))(frame)
    assert sr.dtype == dtype
    assert sr.shape == (244, 332)
    error = np.abs(measured_again(sr) - frame).mean()
    assert error < 0.005 * np.ptp(frame.astype(float))


def test_without_consistency_the_random_network_would_break_that(made):
    frame = scene(61, 83)
    error = np.abs(measured_again(made(consistency=0.0)(frame)) - frame).mean()
    assert error > 0.005 * np.ptp(frame)


def test_a_whole_number_is_a_fidelity_too(folder, up):
    frame = scene(24, 24)
    for backend in ("torch", "auto"):
        whole = load_upscaler(str(folder), backend=backend, fidelity=1)
        np.testing.assert_allclose(whole(frame).astype(int), up(frame, Stream()), atol=1)


def test_threads_share_an_upscaler_one_frame_after_another(folder):
    """What a backend keeps between calls is used by one frame at a time."""
    busy, together = 0, []
    shared = load_upscaler(str(folder), backend="torch")
    compute = shared._model.super_resolve

    def watched(*arguments):
        nonlocal busy
        busy += 1
        together.append(busy)
        time.sleep(0.02)
        result = compute(*arguments)
        busy -= 1
        return result

    shared._model.super_resolve = watched
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: shared(scene(24, 24), Stream()), range(3)))
    assert together == [1, 1, 1]


def test_tiled_equals_whole_but_for_a_small_share_of_the_span(made):
    frame = scene(150, 170)
    whole = made(tile=256)(frame).astype(float)
    tiled = made(tile=64, overlap=16, tile_batch=3)(frame).astype(float)
    difference = np.abs(whole - tiled)
    assert difference.max() < 0.01 * np.ptp(frame)


def test_a_hot_object_does_not_pump_the_background(up):
    stream = Stream()
    frame = scene(120, 160)
    before = up(frame, stream).astype(float)
    hot = frame.copy()
    hot[10:40, 10:50] = 40000
    after = up(hot, stream).astype(float)
    background = np.abs(after - before)[4 * 70 :, 4 * 90 :]
    untracked = np.abs(up(hot, Stream()).astype(float) - before)[4 * 70 :, 4 * 90 :]
    assert background.mean() < 0.01 * np.ptp(frame)
    assert background.mean() < 0.5 * untracked.mean()


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (np.zeros((16, 16, 3, 1), np.uint8), r"\(16, 16, 3, 1\)"),
        (np.zeros((16, 16, 0), np.uint8), r"\(16, 16, 0\)"),
        (np.zeros((16, 15), np.uint8), "16x16"),
        (np.zeros((16, 16), np.int32), "int32"),
        ([[1, 2]], "list"),
    ],
)
def test_bad_frames_are_refused_with_what_was_wrong(up, frame, text):
    with pytest.raises(ValueError, match=text):
        up(frame)


@pytest.mark.parametrize(
    "change",
    [{"steps": 0}, {"steps": 16}, {"steps": 2.0}, {"fidelity": 1.5}, {"fidelity": float("nan")},
     {"consistency": -1}, {"seed": -5}, {"seed": 0.5}, {"seed": 1 << 32}, {"tile": 8},
     {"overlap": 200}, {"tile_batch": 0}, {"precision": "fp8"}, {"threads": "2"}],
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        load_upscaler("bicubic", **change)


def test_unknown_model_setting_device_and_backend_are_named():
    with pytest.raises(FileNotFoundError, match="no-such-model"):
        load_upscaler("no-such-model")
    with pytest.raises(ValueError, match="sharpness"):
        load_upscaler("bicubic", sharpness=3)
    with pytest.raises(ValueError, match="tpu"):
        load_upscaler("bicubic", device="tpu")
    with pytest.raises(ValueError, match="abacus"):
        load_upscaler("bicubic", backend="abacus")
    assert load_upscaler("bicubic", device="cpu:0").device == "cpu"  # the one there is


def test_settings_change_between_frames_and_a_bad_change_changes_nothing(made):
    frame = scene(40, 40, np.float32, 290, 20)
    up = made()
    first = up(frame)
    up.change(fidelity=0.5, tile=32, overlap=8)
    assert (up(frame) != first).any()
    for bad in ({"fidelity": 2.0, "steps": 2}, {"device": "cuda"}, {"sharpness": 1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            up.change(**bad)
    assert (up.settings.fidelity, up.settings.steps, up.runtime.tile) == (0.5, 1, 32)
    up.change(fidelity=1.0, tile=0)
    np.testing.assert_array_equal(up(frame), first)


def test_a_stream_remembers_for_itself_and_a_new_kind_of_frame_begins_a_new_one(up):
    warm = cold = scene(40, 48)
    warm = warm.copy()
    warm[:12, :12] += 1500
    alone, stream, other = up(cold, Stream()), Stream(), Stream()
    up(warm, stream)
    up(warm.astype(np.float32), other)
    assert (up(cold, stream) != alone).any()
    np.testing.assert_array_equal(up(cold, other), alone)
    stream.encoding = "64FC1"  # the same dtype may hold other counts
    np.testing.assert_array_equal(up(cold, stream), alone)
    up(warm, stream)
    assert (up(cold, stream) != alone).any()
    stream.reset()
    np.testing.assert_array_equal(up(cold, stream), alone)


def test_colour_is_upscaled_channel_by_channel_and_grey_once(up, monkeypatch):
    planes = [scene(24, 32, np.uint8, low, 90) for low in (20, 60, 100)]
    colour = up(np.stack(planes, axis=-1), Stream())
    for channel, plane in enumerate(planes):
        np.testing.assert_array_equal(colour[..., channel], up(plane, Stream()))
    calls = []
    monkeypatch.setattr(up, "_upscale", lambda *a: calls.append(a) or np.zeros((96, 128), np.uint8))
    assert up(np.repeat(planes[0][..., None], 3, axis=-1)).shape == (96, 128, 3)
    assert len(calls) == 1


def test_bicubic_is_plain_interpolation(up):
    frame = scene(40, 48, np.float32, 290, 20)
    frame[20, 20] = 4000
    size = (4 * 48, 4 * 40)
    plain = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
    np.testing.assert_allclose(load_upscaler("bicubic", consistency=1.0)(frame), plain, atol=2e-3)


def test_only_plain_interpolation_keeps_the_pattern_of_the_sensor(monkeypatch):
    pattern = np.full((40, 48), 100, np.float32)
    monkeypatch.setattr(PatternTracker, "update", lambda *_: pattern)
    frame = np.full((40, 48), 7000, np.uint16)
    assert (load_upscaler("bicubic")(frame) == 7000).all()
    assert (load_upscaler("bicubic-consistent")(frame) == 6900).all()
    assert (load_upscaler("bicubic-consistent", remove_pattern=False)(frame) == 7000).all()


# Whatever the frame.

SIDES = st.integers(16, 70)
CONSISTENT = load_upscaler("bicubic-consistent", consistency=1.0, device="cpu", tile=40, overlap=8)


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.sampled_from(["uint8", "uint16", "float32"]), st.integers(0, 2**31))
def test_any_frame(height, width, dtype, seed):
    rng = np.random.default_rng(seed)
    top = 255 if dtype == "uint8" else 65535
    lo, hi = np.sort(rng.uniform(0.2 * top, 0.8 * top, 2))
    ramp = np.linspace(lo, hi, height * width).reshape(height, width)
    frame = (ramp + rng.normal(0, (hi - lo) / 20, ramp.shape)).astype(dtype)
    CONSISTENT.reset()
    sr = CONSISTENT(frame)
    assert sr.dtype == frame.dtype
    assert sr.shape == (4 * height, 4 * width)
    assert np.abs(measured_again(sr) - frame).mean() <= 0.005 * np.ptp(frame.astype(float)) + 0.3


@settings(max_examples=30, deadline=None)
@given(SIDES, SIDES, st.floats(0, 0.9), st.integers(0, 2**31))
def test_missing_pixels_stay_missing_and_alone(height, width, share, seed):
    rng = np.random.default_rng(seed)
    frame = rng.normal(300, 3, (height, width)).astype(np.float32)
    missing = rng.random(frame.shape) < share
    frame[missing] = np.nan
    sr = CONSISTENT(frame)
    np.testing.assert_array_equal(np.isnan(sr), np.kron(missing, np.ones((4, 4), bool)))


# Whatever a stream has seen, it has got over it one good frame later.

BICUBIC = load_upscaler("bicubic", device="cpu")
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
        BICUBIC(frame, stream)
    y, x = np.mgrid[:16, :20]
    good = (300 + 0.02 * x + 5 * np.exp(-((x - 9) ** 2 + (y - 8) ** 2) / 20)).astype(np.float32)
    BICUBIC(good, stream)
    means = BICUBIC(good, stream).reshape(16, 4, 20, 4).mean((1, 3))
    np.testing.assert_allclose(means, good, atol=0.5)


@pytest.mark.parametrize("noisy", [1, 2, 3])
@pytest.mark.parametrize("before", [0, 6])
def test_noisy_frames_leave_no_noise_behind(before, noisy):
    """Of one size, encoding and range: they may be true, and the ones after them are not theirs."""
    up, stream = load_upscaler("bicubic-consistent", device="cpu"), Stream()
    rng = np.random.default_rng(before)
    y, x = np.mgrid[:16, :16]
    scene = 300 + 0.02 * x + 5 * np.exp(-((x - 8) ** 2 + (y - 8) ** 2) / 20)

    def means(deviation):
        frame = rng.normal(scene, deviation).astype(np.float32)
        return up(frame, stream).reshape(16, 4, 16, 4).mean((1, 3)) - frame

    for deviation in before * [0.03] + noisy * [3.0] + [0.03]:
        means(deviation)
    assert all(np.abs(means(0.03)).max() < 0.2 for _ in range(12))
