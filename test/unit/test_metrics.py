"""Each measure of a picture and of a film is what it says; nothing is downloaded."""

import math
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from difiisr_training.data.images import list_images, read_counts
from difiisr_training.degradations import bicubic
from difiisr_training.evaluation import measures, metrics
from difiisr_training.evaluation.inputs import make_pair
from difiisr_training.evaluation.measures import Flicker, Judge, Radiometry
from difiisr_training.evaluation.metrics import (
    LpipsSqueeze,
    Niqe,
    consistency,
    load_clip_iqa,
    load_lpips,
    load_musiq,
    mean_and_interval,
    psnr,
    spectral_distance,
    ssim,
)


@pytest.fixture
def frame(shared_data):
    return read_counts(list_images(shared_data / "roadscene" / "train")[3])[:192, :288]


def blurred(image, radius):
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def random_pair(dtype, high):
    rng = np.random.default_rng(1)
    hr = rng.integers(0, high, (40, 33)).astype(dtype)
    sr = (hr + rng.normal(0, high / 20, hr.shape)).clip(0, high).astype(dtype)
    return sr, hr


def in_colours(*images):
    """As the lpips package takes them."""
    return [torch.from_numpy(i / 127.5 - 1).float().expand(1, 3, -1, -1) for i in images]


def test_images_of_two_sizes_and_those_smaller_than_the_window_are_refused():
    _, hr = random_pair("uint8", 255)
    for metric in (psnr, ssim, spectral_distance):
        with pytest.raises(ValueError, match="one size"):
            metric(hr[:-1], hr, 255)
    with pytest.raises(ValueError, match="win_size"):
        ssim(hr[:10], hr[:10], 255)
    with pytest.raises(ValueError, match="x4"):
        consistency(hr, hr)


@pytest.mark.parametrize(("dtype", "high"), [("uint8", 255), ("uint16", 9000)])
def test_spectral_distance_is_that_of_the_papers_equations(dtype, high):
    sr, hr = random_pair(dtype, high)

    def spectrum(image):  # Eq. 10, in NumPy
        log = np.log1p(np.abs(np.fft.fftshift(np.fft.fft2(image / high * 2 - 1))))
        return (log - log.mean()) / log.std()

    wanted = np.square(spectrum(sr) - spectrum(hr)).mean()
    assert spectral_distance(sr, hr, high) == pytest.approx(wanted, rel=1e-6)


def test_lpips_is_that_of_the_lpips_package(frame, tmp_path, shared_weights):
    pytest.importorskip("torchvision", reason="the lpips package needs torchvision")
    package = pytest.importorskip("lpips")
    theirs = package.LPIPS(pretrained=False, net="squeeze", pnet_rand=True, verbose=False).eval()
    squeeze, linear = map(shared_weights, (measures.SQUEEZE_FILE, measures.SQUEEZE_LINEAR_FILE))
    state = torch.load(squeeze, weights_only=True)
    for piece in [getattr(theirs.net, f"slice{i}") for i in range(1, 8)]:
        piece.load_state_dict({k: state[k] for k in piece.state_dict()})
    theirs.load_state_dict(torch.load(linear, map_location="cpu", weights_only=True), strict=False)
    ours, sr = LpipsSqueeze(squeeze, linear), blurred(frame, 1.5)
    with torch.no_grad():
        wanted = theirs(*in_colours(sr, frame)).item()
    assert ours(sr, frame, 255) == pytest.approx(wanted, rel=1e-4)
    assert ours(np.uint16(40) * sr, np.uint16(40) * frame, 40 * 255) == pytest.approx(
        wanted, rel=1e-3
    )
    torch.save({"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}, tmp_path / "lin.pth")
    with pytest.raises(RuntimeError, match="LPIPS-squeeze"):
        LpipsSqueeze(squeeze, tmp_path / "lin.pth")


@pytest.mark.parametrize("net", ["alex", pytest.param("vgg", marks=pytest.mark.slow)])
def test_lpips_on_another_backbone_is_that_of_the_lpips_package(tmp_path, net):
    """With random backbones: the file is read into the right layers, in the right order."""
    models = pytest.importorskip("torchvision.models")
    package = pytest.importorskip("lpips")
    torch.manual_seed(0)
    backbone = models.alexnet() if net == "alex" else models.vgg16()
    torch.save(backbone.state_dict(), tmp_path / "backbone.pth")
    ours = load_lpips(net, tmp_path / "backbone.pth")
    theirs = package.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
    layers = [layer for i in range(1, 6) for layer in getattr(theirs.net, f"slice{i}")]
    for own, layer in zip(backbone.features, layers, strict=False):
        layer.load_state_dict(own.state_dict())
    hr = np.random.default_rng(5).integers(0, 255, (72, 80)).astype(np.uint8)
    with torch.no_grad():
        wanted = theirs(*in_colours(blurred(hr, 1), hr)).item()
    assert ours(blurred(hr, 1), hr, 255) == pytest.approx(wanted, rel=1e-4)


def test_niqe_says_when_an_image_is_too_small_or_flat(frame, shared_weights):
    niqe = Niqe(shared_weights(measures.NIQE_FILE))
    assert niqe(frame, 255) < niqe(blurred(frame, 3), 255)
    for image in (frame[:100, :100], frame[:40], np.full((300, 300), 7, np.uint8)):
        with pytest.raises(ValueError, match="96x96"):
            niqe(image, 255)


def test_niqe_is_that_of_its_authors(tmp_path):
    """The number of an independent reading of their MATLAB release (computequality.m).

    The image is 2 x 3 blocks of bright specks in smoothed noise: no side is like another.
    """
    rng = np.random.default_rng(8)
    noise = rng.normal(100, 25, (192, 288)).clip(0, 255).astype(np.uint8)
    texture = blurred(noise, 1).astype(np.float64) + 3 * rng.exponential(4, noise.shape)
    texture[:, 1:] += 0.4 * texture[:, :-1]
    offsets = np.arange(-3, 4)
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * (7 / 6) ** 2))
    np.savez(
        tmp_path / "model.npz", mu_pris_param=np.full((1, 36), 0.5), cov_pris_param=np.eye(36),
        gaussian_window=window / window.sum(),
    )  # fmt: skip
    found = Niqe(tmp_path / "model.npz")(np.clip(texture, 0, 255).round().astype(np.uint8), 255)
    assert found == pytest.approx(5.345422071373297, rel=1e-6)
    np.savez(tmp_path / "other.npz", mean=np.zeros(3))
    with pytest.raises(KeyError, match="mu_pris_param"):
        Niqe(tmp_path / "other.npz")


class ClipIqaStandIn(torch.nn.Module):
    """Takes what pyiqa's CLIPIQA takes, and rates an image by its mean."""

    def __init__(self, model_type="clipiqa", backbone="RN50"):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.load(backbone, weights_only=True)["factor"])

    def forward(self, image):
        assert not self.training
        assert 0 <= image.min() <= image.max() <= 1
        return self.factor * image.mean(dim=(1, 2, 3))[:, None]


class MusiqStandIn(torch.nn.Module):
    """Takes what pyiqa's MUSIQ takes, and rates an image by the mean of its weighted channels."""

    def __init__(self, num_class=1, pretrained=True):
        assert not pretrained, "this would download"
        super().__init__()
        self.head = torch.nn.Linear(3, num_class)

    def forward(self, image):
        return self.head(image.mean(dim=(2, 3)))


def test_clip_iqa_and_musiq_read_their_files_and_see_grey_colours(tmp_path, monkeypatch):
    """With stand-ins for pyiqa, which is not everywhere."""
    names = ("pyiqa", "pyiqa.archs", "pyiqa.archs.clipiqa_arch", "pyiqa.archs.musiq_arch")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["pyiqa.archs.clipiqa_arch"].CLIPIQA = ClipIqaStandIn
    sys.modules["pyiqa.archs.musiq_arch"].MUSIQ = MusiqStandIn
    image = np.random.default_rng(6).integers(0, 9000, (40, 50)).astype(np.uint16)
    unit = image / 9000
    torch.save({"factor": torch.tensor(2.0)}, tmp_path / "RN50.pt")
    rate = load_clip_iqa(tmp_path / "RN50.pt", "cpu")
    assert rate(image, 9000) == pytest.approx(2 * unit.mean(), rel=1e-5)
    assert rate(image, 4500) == pytest.approx(2 * (2 * unit).clip(0, 1).mean(), rel=1e-5)
    head = torch.nn.Linear(3, 1)
    state = {f"module.head.{name}": value for name, value in head.state_dict().items()}
    torch.save(state, tmp_path / "musiq.pth")
    wanted = (head.weight.sum() * unit.mean() + head.bias).item()
    assert load_musiq(tmp_path / "musiq.pth", "cpu")(image, 9000) == pytest.approx(wanted, rel=1e-4)
    torch.save({"module.other": torch.zeros(3)}, tmp_path / "musiq.pth")
    with pytest.raises(RuntimeError, match="other"):
        load_musiq(tmp_path / "musiq.pth", "cpu")


def test_the_interval_is_that_of_the_normal_law_and_leaves_out_frames_without_a_value():
    values = np.random.default_rng(0).normal(30, 2, 400)
    mean, ends = mean_and_interval(np.append(values, np.nan))
    half = 1.96 * values.std() / np.sqrt(400)
    assert mean == values.mean()
    assert ends == pytest.approx((mean - half, mean + half), abs=0.03)
    assert mean_and_interval(values) == (mean, ends)  # repeatable


def test_one_frame_none_and_infinity():
    assert mean_and_interval(np.array([4.0])) == (4.0, (4.0, 4.0))
    assert np.isnan(mean_and_interval(np.array([np.nan]))[0])
    mean, ends = mean_and_interval(np.array([30.0, np.inf]))
    assert mean == np.inf
    assert np.isnan(ends).all()


def nearest(lr):
    return lr.repeat(4, 0).repeat(4, 1)


def film(frames=12, size=(24, 32)):
    """A scene that stands still, seen with noise of standard deviation 3."""
    rng = np.random.default_rng(0)
    scene = rng.uniform(1000, 3000, size)
    return [(scene + rng.normal(0, 3, size)).astype(np.float32) for _ in range(frames)]


def measure(frames, model):
    """``(flicker, flicker_counts)`` per frame."""
    flicker = Flicker()
    return np.array([flicker(model(lr), lr) for lr in frames])


def test_flicker_is_over_that_of_bicubic_and_that_of_the_noise():
    """|difference| of two samples of noise of standard deviation s: 2 s / sqrt(pi) on average."""
    for factor in (1, 2):
        found = measure(film(), lambda lr, factor=factor: factor * bicubic(lr))
        assert np.isnan(found[0]).all()
        assert found[1:, 0] == pytest.approx(factor, rel=1e-5)
    counts = measure(film(40), nearest)[1:, 1].mean()
    assert counts == pytest.approx(2 * 3 / np.sqrt(np.pi), rel=0.02)


def test_pixels_that_move_in_the_scene_are_left_out():
    frames = film()
    for index, lr in enumerate(frames):
        lr[:12] = 1000 if index % 2 else 3000  # the upper half blinks

    def blink_more(lr):
        return nearest(np.vstack([5 * lr[:12], lr[12:]]))

    plain = measure(frames, nearest)
    assert np.array_equal(measure(frames, blink_more)[1:], plain[1:])
    assert plain[-1, 1] < 10


def test_no_value_where_nothing_is_static_or_the_size_changes():
    rng = np.random.default_rng(1)
    wild = [rng.uniform(0, 5000, (24, 32)).astype(np.float32) for _ in range(6)]
    assert np.isnan(measure(wild, bicubic)[2:, 0]).all()
    frames = [*film(2), *film(2, size=(16, 16))]
    assert np.isnan(measure(frames, bicubic)[:, 0]).tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("kelvin=0.04*counts", (0.04, 0)),
        ("kelvin = 0.1 * counts + 173.15", (0.1, 173.15)),
        ("Kelvin=-2e-2*Counts-5", (-0.02, -5)),
    ],
)
def test_a_linear_radiometry_is_read(text, wanted):
    found = Radiometry.parse(text)
    assert (found.gain, found.offset) == wanted
    assert found.kelvin(np.array([100], np.uint16)) == 100 * wanted[0] + wanted[1]


@pytest.mark.parametrize("text", ["0.04", "kelvin=counts**2", "kelvin=0*counts+3"])
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match="radiometry"):
        Radiometry.parse(text)


def pair(size, dtype=np.uint8, factor=1):
    return make_pair((np.random.default_rng(0).integers(20, 200, size) * factor).astype(dtype))


def test_a_network_may_fail_at_small_frames_only(monkeypatch):
    error = RuntimeError("Kernel size can't be greater")

    def fail(*_):
        raise error

    monkeypatch.setattr(metrics, "ssim", fail)
    judge = Judge("reference", ("psnr", "ssim"), None)
    lr, hr = pair((40, 400))
    found = judge(hr, lr, hr)
    assert math.isnan(found["ssim"])
    assert found["psnr"] == math.inf
    with pytest.raises(ValueError, match=r"of \(40, 400\) are compared, got \(36, 400\)"):
        judge(hr[:-4], lr, hr)
    lr, hr = pair((64, 64))
    with pytest.raises(RuntimeError, match="Kernel size"):
        judge(hr, lr, hr)
    error = torch.cuda.OutOfMemoryError("no memory")
    with pytest.raises(RuntimeError, match="no memory"):
        judge(hr[:40], lr[:10], hr[:40])


def test_all_metrics_agree_which_result_is_better(shared_data, shared_weights):
    frame = read_counts(list_images(shared_data / "roadscene" / "train")[0])
    lr, hr = make_pair(frame[:288, :288])
    names = ["psnr", "ssim", "lpips_squeeze", "niqe", "spectral", "error"]
    judge = Judge("reference", names, shared_weights(measures.NIQE_FILE).parent)
    exact, coarse = (judge(sr, lr, hr) for sr in (hr, nearest(lr)))
    assert exact["lpips_squeeze"] == exact["spectral"] == exact["error_p95"] == 0
    for name, info in judge.columns.items():
        if info.better != "zero":
            assert (exact[name] > coarse[name]) == (info.better == "higher"), name
