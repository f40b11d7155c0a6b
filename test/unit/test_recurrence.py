"""What the frames before add: motion, trust in the past, and a state that never leaks."""

import shutil

import numpy as np
import pytest
import torch

from difiisr_models import Stream, load_upscaler, motion
from difiisr_models.compact import CompactConfig, CompactNetwork
from difiisr_models.model_loading import save_compact
from difiisr_models.motion import dense_flow, picture_for_motion, warp
from difiisr_models.radiometry import CountRange
from difiisr_models.recurrence import GATE, Past, drawn_to_past, past_planes, planes_of, settled
from difiisr_models.resample import downsample, pack, unpack, upsample
from difiisr_models.weights import WeightsError

ZERO = torch.zeros(1, 1, 1, 1)


def texture(seed=0, side=448):
    """Smooth random hills, (side, side) float32 in about -1..1."""
    noise = torch.randn(1, 1, side // 8, side // 8, generator=torch.Generator().manual_seed(seed))
    image = torch.nn.functional.interpolate(noise, scale_factor=8, mode="bicubic")[0, 0]
    return (image / image.abs().max()).numpy()


def window(image, down, right, side=256):
    return image[64 + down : 64 + down + side, 64 + right : 64 + right + side]


def measured(hr):
    return downsample(pack(torch.from_numpy(np.ascontiguousarray(hr))[None, None]))


def flow_between(now, before, sigma=0.0):
    pictures = (picture_for_motion(measured(x)[0, 0].numpy(), sigma) for x in (now, before))
    return dense_flow(*pictures, sigma)


def counts(hr, noise=0.0, seed=0):
    lr = measured(hr)[0, 0].numpy()
    lr = lr + np.random.default_rng(seed).normal(0, noise, lr.shape)
    return (8000 + 500 * lr).astype(np.uint16)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A recurrent network that heeds its past, and its single-frame sibling."""
    torch.manual_seed(0)
    network = CompactNetwork(CompactConfig(channels=16, blocks=1, recurrent=True))
    network.detail_head.weight.data.normal_(std=0.05)
    alone = CompactNetwork(CompactConfig(channels=16, blocks=1))
    alone.detail_head.weight.data.normal_(std=0.05)
    root = tmp_path_factory.mktemp("weights")
    save_compact(alone, root / "alone", {})
    network.stem_past.weight.data.normal_(std=0.1)
    save_compact(network, root / "recurrent", {})
    save_compact(network, root / "both", {}, alone)
    return root


@pytest.fixture
def up(folders):
    return load_upscaler(str(folders / "recurrent"), backend="torch", device="cpu")


@pytest.fixture(scope="module")
def film():
    image = texture()
    return [counts(window(image, k, 2 * k), 0.01, k) for k in range(4)]


@pytest.mark.parametrize(("down", "right"), [(0, 3), (5, -2), (0, 1)])
def test_the_flow_says_where_the_content_was(down, right):
    image = texture()
    flow = flow_between(window(image, down, right), window(image, 0, 0))
    inner = flow[32:-32, 32:-32].reshape(-1, 2)
    # What is at p now was at p + (right, down) before.
    np.testing.assert_allclose(np.median(inner, axis=0), (right, down), atol=0.25)


def noisy(hr, seed):
    noise = np.random.default_rng(seed).normal(0, 0.16, hr.shape).astype(np.float32)
    return hr + noise  # a quarter of it is left at low resolution


@pytest.mark.parametrize(("down", "right"), [(0, 2), (5, -2), (1, 1)])
def test_the_cameras_motion_is_found_in_noise_everywhere(down, right):
    image = texture()
    now, before = window(image, down, right), window(image, 0, 0)
    flow = flow_between(noisy(now, 1), noisy(before, 2), 0.04)
    error = np.hypot(*(flow - (right, down)).transpose(2, 0, 1))
    assert np.quantile(error, 0.95) < 0.5


def test_an_object_keeps_its_own_motion_while_the_camera_moves():
    image, other = texture(), texture(5)
    frames = []
    for k in (0, 1):
        frame = window(image, 0, 3 * k).copy()
        frame[96:160, 96 - 4 * k : 160 - 4 * k] = 2 * other[:64, :64]
        frames.append(frame)
    flow = flow_between(frames[1], frames[0])
    np.testing.assert_allclose(np.median(flow[110:146, 106:142, 0]), 4, atol=0.5)
    np.testing.assert_allclose(np.median(flow[:64, 32:-32, 0]), 3, atol=0.25)


def test_noise_on_a_standing_scene_is_no_motion():
    hr = window(texture(), 0, 0)
    noise = np.random.default_rng(0).normal(0, 0.05, (2, *hr.shape)).astype(np.float32) * 4
    flow = flow_between(hr + noise[0], hr + noise[1], 0.05)
    assert (flow == 0).all(axis=-1).mean() > 0.7


@pytest.mark.parametrize("in_inference", [False, True])
def test_warp_moves_and_knows_the_rim(in_inference):
    image = torch.from_numpy(texture()[None, None, :64, :64].copy())
    flow = torch.zeros(1, 64, 64, 2)
    flow[..., 0], flow[..., 1] = 5, -3
    with torch.inference_mode(in_inference):
        warped, inside = warp(image, flow)
    torch.testing.assert_close(warped[..., 3:, :59], image[..., :61, 5:], atol=1e-4, rtol=0)
    assert inside[..., 3:, :59].all()
    assert not inside[..., :2, :].any()
    assert not inside[..., 60:].any()


def test_a_stream_warps_as_training_does():
    image = torch.from_numpy(np.stack((texture(1), texture(2)))[:, None, :80, :96].copy())
    flow = 6 * torch.randn(2, 80, 96, 2, generator=torch.Generator().manual_seed(0))
    expected = warp(image, flow)
    with torch.inference_mode():
        found = warp(image, flow)
    torch.testing.assert_close(found[0], expected[0], atol=0.02, rtol=0)  # a 32nd of a pixel
    torch.testing.assert_close(found[1], expected[1])


def drawn(sigma, error):
    """How far the estimate goes towards a past of 1 that disagrees by ``error`` with the frame.

    0..1, where the past is trusted; the estimate is 0.
    """
    noise = sigma * torch.randn(1, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    past, told = torch.ones(1, 16, 48, 48), torch.full((1, 1, 1, 1), sigma)
    lr, still = 1 + error + noise, torch.zeros(1, 192, 192, 2)
    planes = past_planes(past, torch.full((1, 1, 48, 48), 0.5), still, lr, told)
    added = drawn_to_past(torch.zeros_like(past), planes, lr) / planes[:, GATE, None]
    return float(added[..., 12:-12, 12:-12].mean())


def test_in_noise_the_estimate_goes_up_to_half_of_the_way_to_a_past_that_is_right():
    assert 0.3 < drawn(0.05, 0.0) <= 0.5
    assert drawn(0.05, 0.1) < 0.05  # twice the noise is wrong with it
    assert drawn(0.0, 0.0) == 0
    assert drawn(0.0, 0.1) == 0


def test_a_small_target_that_is_new_is_not_drawn_to_the_past():
    noise = 0.05 * torch.randn(1, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    past, told = torch.ones(1, 16, 48, 48), torch.full((1, 1, 1, 1), 0.05)
    lr = 1 + noise
    lr[..., 24:26, 24:26] += 0.25  # five times the noise
    planes = past_planes(past, torch.full_like(noise, 0.5), torch.zeros(1, 192, 192, 2), lr, told)
    share = drawn_to_past(torch.zeros_like(past), planes, lr)[0].mean(0)
    assert share[24:26, 24:26].max() < 0.1 * share[12:20, 12:20].mean()
    known = settled(planes)[0, 0]
    assert known[24:26, 24:26].max() < 0.2 < 0.7 < known[12:20, 12:20].mean()


def test_the_gate_closes_where_an_object_has_left():
    scene = torch.from_numpy(window(texture(), 0, 0)[None, None].copy())
    with_object = scene.clone()
    with_object[..., 100:140, 100:140] = 3
    weight = torch.full((1, 1, 64, 64), 0.5)
    planes = past_planes(
        pack(with_object), weight, torch.zeros(1, 256, 256, 2), downsample(pack(scene)), ZERO
    )
    gate = planes[0, GATE]
    assert gate[26:34, 26:34].max() < 0.01
    assert gate[:20].min() > 0.9
    assert planes[0, :16, 26:34, 26:34].abs().max() < 0.05  # nothing of it is left to see


def test_the_past_is_heeded_and_forgotten(up, film):
    stream, alone = Stream(), [up(frame, Stream()) for frame in film]
    first, second = (up(frame, stream) for frame in film[:2])
    assert (first == alone[0]).all()
    assert (second != alone[1]).mean() > 0.5
    stream.reset()
    assert (up(film[1], stream) == alone[1]).all()
    small = film[2][:40, :48]
    assert (up(small, stream) == up(small, Stream())).all()  # another size


@pytest.mark.parametrize("shift", [0, 4000])
def test_a_cut_leaves_no_trace(up, film, shift):
    """Another scene, at the same temperatures and at others."""
    streams = Stream(), Stream()
    for stream in streams:
        for frame in film:
            up(frame, stream)
    streams[1].channel().past = None
    other = counts(3 * window(texture(7), 0, 0)) + np.uint16(shift)
    assert (up(other, streams[0]) == up(other, streams[1])).all()
    later = counts(3 * window(texture(7), 1, 2)) + np.uint16(shift)
    assert (up(later, streams[0]) != up(later, Stream())).any()  # the cut has a past of its own


def test_streams_do_not_mix(up, film):
    other = [counts(window(texture(3), 2 * k, 0)) for k in range(4)]
    alone = [[up(f, s) for f in frames] for frames, s in ((film, Stream()), (other, Stream()))]
    one, two = Stream(), Stream()
    for k in range(4):
        assert (up(film[k], one) == alone[0][k]).all()
        assert (up(other[k], two) == alone[1][k]).all()


def test_the_state_is_the_mean_at_any_fidelity(up, film):
    pasts = []
    for fidelity in (1.0, 0.0):
        up.change(fidelity=fidelity)
        stream = Stream()
        up(film[0], stream)
        pasts.append(stream.channel().past.estimate)
    torch.testing.assert_close(pasts[0], pasts[1], atol=1e-4, rtol=0)


@pytest.fixture
def both(folders):
    """A recurrent network with its sibling, and that sibling."""
    names = (str(folders / name) for name in ("both", "alone"))
    return [load_upscaler(name, backend="torch", device="cpu") for name in names]


def test_what_the_past_tells_nothing_of_is_the_siblings(both, film):
    up, alone = both
    stream = Stream()
    assert (up(film[0], stream) == alone(film[0])).all()
    assert (up(film[1], stream) != alone(film[1])).mean() > 0.5
    other = counts(3 * window(texture(7), 0, 0), 0.01)  # a cut
    assert (up(other, stream) == alone(other, Stream())).all()


def test_a_sibling_that_was_changed_is_refused(folders, tmp_path):
    folder = shutil.copytree(folders / "both", tmp_path / "both")
    file = folder / "single_frame.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(WeightsError, match="single_frame"):
        load_upscaler(str(folder))


@pytest.mark.parametrize("noise", [0, 0.05])
def test_a_standing_camera_needs_its_past_against_noise_alone(both, noise):
    frames = [window(texture(), 0, 0).copy() for _ in range(3)]
    for k, frame in enumerate(frames):
        frame[96:112, 40 + 8 * k : 56 + 8 * k] += 0.5  # an object that moves by itself
    shown = [counts(frame, noise, k) for k, frame in enumerate(frames)]
    streams = Stream(), Stream()
    results = [[up(x, s) for x in shown] for up, s in zip(both, streams, strict=True)]
    same = [(a == b).all() for a, b in zip(*results, strict=True)]
    assert same == [not noise] * 3


@pytest.mark.parametrize("fidelity", [1.0, 0.0])
def test_the_sibling_leaves_its_mean_to_the_next_frame(both, film, fidelity):
    up, alone = both
    up.change(fidelity=fidelity)
    stream, mean = Stream(), alone(film[0])
    up(film[0], stream)
    past = stream.channel().past
    counted = unpack(past.estimate)[0, 0] * past.range.half_span + past.range.centre
    assert (counted - torch.from_numpy(mean.astype(np.float32))).abs().max() < 0.51


def test_tiles_carry_the_past(up, film):
    results = []
    for tile in (0, 48):
        up.change(tile=tile, overlap=20)
        stream = Stream()
        results.append([up(frame, stream).astype(int) for frame in film][-1])
    assert np.abs(results[0] - results[1]).max() <= 2


def test_a_range_that_moves_is_followed():
    """The same counts make the same planes, whatever range the last frame was seen in."""
    before, now = (measured(window(texture(), k, 0)) for k in (0, 3))
    shown, wider = CountRange(8000, 8200), CountRange(7900, 8400)
    planes = []
    for range_ in (shown, wider):
        of_range = (before * shown.half_span + shown.centre - range_.centre) * range_.gain
        past = Past(upsample(of_range), torch.full_like(now, 0.5), range_)
        planes.append(planes_of(past, now, shown, 0.0))
    # All but a few pixels, where one motion explains as much as another.
    assert ((planes[0] - planes[1]).abs() < 2e-3).float().mean() > 0.999
    assert planes[0][:, GATE].mean() > 0.5


def test_onnx_runtime_gives_what_torch_gives(folders, film):
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason="needs the extra onnx")
    results = []
    for backend in ("torch", "onnxruntime"):
        up, stream = load_upscaler(str(folders / "both"), backend=backend), Stream()
        assert up.backend == backend
        results.append([up(frame, stream).astype(int) for frame in film][-1])
    assert np.abs(results[0] - results[1]).max() <= 1


def test_without_opencv_it_says_what_to_install(folders, monkeypatch):
    monkeypatch.setattr(motion, "cv2", None)
    monkeypatch.setattr(motion, "_MISSING", ModuleNotFoundError("cv2"), raising=False)
    with pytest.raises(ModuleNotFoundError, match="pip install opencv-python-headless"):
        load_upscaler(str(folders / "recurrent"))
    load_upscaler(str(folders / "alone"), backend="torch")  # which needs none
