"""Results of a network that is out of its mind are not published: plain bicubic is, and says so."""

import numpy as np
import pytest
import torch

from difiisr_models import Stream, WeightsError, load_upscaler
from difiisr_models.compact import CompactConfig, CompactNetwork
from difiisr_models.model_loading import save_compact

SHIPPED = "difiisr-rt-x4"


@pytest.fixture(scope="module")
def frame():
    y, x = np.mgrid[:48, :64]
    scene = 20_000 + 800 * np.sin(x / 5) * np.cos(y / 4) + 900 * (np.hypot(x - 30, y - 20) < 6)
    return (scene + np.random.default_rng(0).normal(0, 3, scene.shape)).astype(np.uint16)


@pytest.fixture
def shipped():
    return load_upscaler(SHIPPED, device="cpu", backend="torch")


@pytest.fixture(scope="module")
def bicubic(frame):
    return load_upscaler("bicubic")(frame, Stream())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e30])
def test_a_network_that_overflows_gives_bicubic_and_says_why(shipped, frame, dtype, poison):
    frame = (frame / (200 if dtype == np.uint8 else 1)).astype(dtype)
    good, stream = shipped(frame, Stream()), Stream()
    run = shipped._model._runner

    def overflow(x_t, *inputs):
        result = run(x_t, *inputs)
        result[0, 3, 20, 30] = poison  # one pixel of one phase, as half precision does
        return result

    shipped._model._runner = overflow
    result = shipped(frame, stream)
    plain = load_upscaler("bicubic")(frame, Stream())
    np.testing.assert_array_equal(result, plain)
    assert stream.fallbacks == 1
    assert "the network's estimate" in stream.last_fallback
    shipped._model._runner = run
    np.testing.assert_array_equal(shipped(frame, stream), good)  # the next one is right again
    assert stream.fallbacks == 1


@pytest.mark.parametrize("bit", [30, 31])
def test_a_bit_that_flips_in_memory_does_no_harm(shipped, frame, bicubic, bit):
    """The highest bit of the exponent makes a weight huge; signs are noticed or do not matter."""
    good = shipped(frame, Stream()).astype(float)
    rng, fallbacks = np.random.default_rng(bit), 0
    parameters = [p for p in shipped._model._runner.parameters() if p.dim() > 1]
    for _ in range(8):
        weights = parameters[rng.integers(len(parameters))]
        place = tuple(rng.integers(side) for side in weights.shape)
        before = weights.data[place].clone()
        flipped = before.view(torch.int32) ^ (1 << 30 if bit == 30 else -(1 << 31))
        weights.data[place] = flipped.view(torch.float32)
        stream = Stream()
        result = shipped(frame, stream).astype(float)
        weights.data[place] = before
        fallbacks += stream.fallbacks
        if stream.fallbacks:
            np.testing.assert_array_equal(result, bicubic)
        else:
            assert np.abs(result - good).mean() < 0.02 * np.ptp(frame)
    assert fallbacks >= 4 or bit == 31


def test_true_frames_of_every_kind_are_believed(shipped, frame):
    rng, stream = np.random.default_rng(1), Stream()
    for one in (
        frame,
        rng.integers(0, 65_535, (48, 64)).astype(np.uint16),
        np.where(rng.random((48, 64)) < 0.01, 40_000, 20_000).astype(np.uint16),
        np.full((48, 64), 7, np.uint8),
        (frame * np.float32(1e-3)).astype(np.float32),
        np.repeat(np.where(np.arange(64) > 32, 60_000, 100)[None], 48, 0).astype(np.uint16),
    ):
        for fidelity in (1.0, 0.0):
            shipped.change(fidelity=fidelity)
            shipped(one, stream)
    assert (stream.fallbacks, stream.last_fallback) == (0, "")


@pytest.mark.parametrize(
    "harm",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b"another model"),
        lambda file: file.open("r+b").write(bytes(file.stat().st_size)),  # in place
    ],
)
def test_a_loaded_model_does_not_care_what_becomes_of_its_file(tmp_path, frame, harm):
    torch.manual_seed(0)
    save_compact(CompactNetwork(CompactConfig(channels=8, blocks=1)), tmp_path, {})
    loaded = load_upscaler(str(tmp_path), backend="torch")
    before = loaded(frame, Stream())
    harm(tmp_path / "network.safetensors")
    np.testing.assert_array_equal(loaded(frame, Stream()), before)
    with pytest.raises(WeightsError, match="network"):
        load_upscaler(str(tmp_path))


@pytest.mark.parametrize("level", [12000, 40000, 65535])
def test_a_saturated_block_is_no_fault_of_the_network(shipped, frame, level):
    hot, stream = frame.copy(), Stream()
    hot[10:30, 8:40] = level
    shipped(frame, stream)
    shipped(hot, stream)
    assert stream.fallbacks == 0, stream.last_fallback
