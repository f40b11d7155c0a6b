import hashlib
import importlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from difiisr_training.data.images import list_images, read_counts
from difiisr_training.degradations import pillow_resize
from difiisr_training.evaluation.inputs import make_pair
from difiisr_training.evaluation.metrics import psnr
from difiisr_training.evaluation.peers import Safmn, load_peer


def counts_of(seed, dtype="uint8", high=255):
    rng = np.random.default_rng(seed)
    coarse = rng.random((5, 6))
    fine = np.kron(coarse, np.ones((4, 4)))
    return (fine / fine.max() * high).astype(dtype)


@pytest.mark.parametrize("name", ["safmn", "rlfn", "realesrgan"])
def test_published_peers_beat_bicubic_as_they_do_in_print(name, shared_data, shared_weights):
    """On thermal frames SAFMN and RLFN gain 1.5 to 3 dB; a wrong network or input range loses.

    Real-ESRGAN paints: it need not gain, but it is no noise.
    """
    frame = read_counts(list_images(shared_data / "hit_uav" / "test")[0])
    lr, hr = make_pair(frame[150:310, 150:310])
    peer = load_peer(name, shared_weights("rlfn_x4.pth").parent, "cpu")
    gain = psnr(peer.upscale(lr), hr, 255)
    gain -= psnr(load_peer("bicubic", None, "cpu").upscale(lr), hr, 255)
    assert gain > (-6 if name == "realesrgan" else 1)
    assert len(peer.weights_sha256) == 64
    assert peer.parameters > 200_000


@pytest.mark.parametrize("name", ["safmn", "rlfn"])
def test_a_peer_is_shown_the_full_range_of_a_frame_in_any_unit(name, shared_weights):
    peer = load_peer(name, shared_weights("rlfn_x4.pth").parent, "cpu")
    counts = counts_of(2)
    counts[0, 0] = 0  # with 255 in it the 8-bit range is the frame's own
    kelvin = (counts / 255 * 40 + 280).astype(np.float32)
    raw = counts.astype(np.uint16) * 100 + 3000
    eight_bit = peer.upscale(counts).astype(float)
    inside = (eight_bit > 2) & (eight_bit < 253)  # 8 bit clips what overshoots
    in_kelvin, in_counts = (peer.upscale(frame).astype(float) for frame in (kelvin, raw))
    np.testing.assert_allclose(((in_kelvin - 280) / 40 * 255)[inside], eight_bit[inside], atol=0.51)
    np.testing.assert_allclose(((in_counts - 3000) / 100)[inside], eight_bit[inside], atol=0.51)


def test_a_published_peer_that_was_trained_on_is_known_by_its_file(tmp_path):
    network = Safmn()
    torch.nn.init.zeros_(network.to_img[0].weight)
    torch.nn.init.zeros_(network.to_img[0].bias)  # what is left is bilinear interpolation
    torch.save({"params": network.state_dict()}, tmp_path / "safmn_ntire23_x4.pth")
    peer = load_peer(str(tmp_path / "safmn_ntire23_x4.pth"), None, "cpu")
    counts = counts_of(5)
    expected = F.interpolate(
        torch.from_numpy(counts).float()[None, None], scale_factor=4.0, mode="bilinear"
    )
    assert np.abs(peer.upscale(counts) - expected[0, 0].numpy()).max() <= 0.51


def test_settings_follow_the_name(tiny_folder):
    def result(settings):
        return load_peer(f"{tiny_folder}{settings}", None, "cpu").upscale(counts_of(3))

    assert np.array_equal(result(""), result("@1.0"))
    assert not np.array_equal(result("@0"), result("@1.0"))
    assert not np.array_equal(result("@0@seed=1"), result("@seed=2@fidelity=0"))
    assert not np.array_equal(result("@steps=3"), result(""))
    low = load_peer(f"{tiny_folder}@0@seed=1", None, "cpu")
    assert low.weights_sha256 == load_peer(str(tiny_folder), None, "cpu").weights_sha256 != ""
    assert low.title == "tiny@0@seed=1"


def test_bicubic_has_the_consistency_step_where_it_is_asked_for():
    counts, errors = counts_of(1), []
    for name in ("bicubic@consistency=1", "bicubic"):
        sr = load_peer(name, None, "cpu").upscale(counts)
        errors.append(np.abs(pillow_resize(sr, *counts.shape).astype(float) - counts).mean())
    assert errors[0] < 0.5 * errors[1]  # 8 bit clip the rest


def test_a_reset_forgets_the_stream(tiny_folder):
    ours, counts = load_peer(str(tiny_folder), None, "cpu"), counts_of(4, "uint16", 900)
    warmer = counts.copy()
    warmer[:8, :8] += 300
    first = ours.upscale(counts)
    ours.upscale(warmer)
    assert not np.array_equal(ours.upscale(counts), first)
    ours.reset()
    assert np.array_equal(ours.upscale(counts), first)


@pytest.fixture
def architectures():
    pytest.importorskip("torchvision", reason="spandrel needs torchvision")
    return pytest.importorskip("spandrel.architectures.Compact").Compact


def small_peer(architecture, scale=4, channels=3):
    torch.manual_seed(1)
    return architecture(
        num_in_ch=channels, num_out_ch=channels, num_feat=4, num_conv=2, upscale=scale
    ).eval()


@pytest.mark.parametrize("wrapper", ["params_ema", "params", None])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_published_networks_file_is_run(architectures, tmp_path, wrapper, legacy):
    """Also a large frame, which goes through in tiles without a seam."""
    network = small_peer(architectures)
    state = {wrapper: network.state_dict()} if wrapper else network.state_dict()
    path = tmp_path / "compact_x4.pth"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    peer = load_peer(str(path), None, "cpu")
    for counts in (counts_of(6), np.tile(counts_of(6), (2, 13))):
        shown = torch.from_numpy(counts / np.float32(255)).expand(1, 3, -1, -1)
        with torch.no_grad():
            wanted = network(shown).clamp(0, 1)[0].mean(0).numpy() * 255
        assert np.abs(peer.upscale(counts) - wanted).max() <= 0.51
    assert peer.title == "compact_x4"
    assert peer.parameters == sum(p.numel() for p in network.parameters())
    assert peer.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


TABLE_1 = {
    # ESRGAN, RealSR-JPEG, BSRGAN and Real-ESRGAN are one architecture
    "ESRGAN": {"num_filters": 8, "num_blocks": 1},
    "SwinIR": {
        "embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 8, "upscale": 4,
        "upsampler": "nearest+conv", "mlp_ratio": 2.0,
    },
    "HAT": {
        "embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 8, "upscale": 4,
        "compress_ratio": 3, "squeeze_factor": 6, "mlp_ratio": 2.0,
    },
    "DAT": {
        "embed_dim": 32, "depth": [2], "num_heads": [2], "split_size": [8, 16], "upscale": 4,
        "expansion_factor": 2.0,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE_1)
def test_the_architectures_of_the_papers_table_run_on_any_frame(architectures, tmp_path, name):
    package = importlib.import_module(f"spandrel.architectures.{name}")
    torch.manual_seed(2)
    network = getattr(package, name)(**TABLE_1[name])
    path = tmp_path / f"{name}_x4.safetensors"
    save_file(network.state_dict(), path)
    peer = load_peer(str(path), None, "cpu")
    result = peer.upscale(counts_of(8, "uint16", 9000)[:19, :22])  # no multiples of a window
    assert result.shape == (76, 88)
    assert result.dtype == np.uint16
    assert peer.parameters == sum(p.numel() for p in network.parameters())


def test_peers_of_another_scale_or_another_kind_are_refused(architectures, tmp_path):
    torch.save(small_peer(architectures, scale=2).state_dict(), tmp_path / "x2.pth")
    with pytest.raises(ValueError, match=r"x2 .* x4"):
        load_peer(str(tmp_path / "x2.pth"), None, "cpu")
    torch.save({"something": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="no such network"):
        load_peer(str(tmp_path / "other.pth"), None, "cpu")
    torch.save({"run": print}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="print"):
        load_peer(str(tmp_path / "code.pth"), None, "cpu")
