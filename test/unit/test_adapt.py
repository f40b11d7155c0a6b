"""A model is fitted to a blurred, striped camera, and the gate agrees with what nobody can see."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from difiisr_models import load_upscaler
from difiisr_models.compact import CompactConfig, CompactNetwork
from difiisr_models.model_loading import save_compact
from difiisr_ros.commands import adapt as command
from difiisr_training.checkpoints import starting_weights
from difiisr_training.degradations import bicubic, pillow_resize
from difiisr_training.evaluation.films import next_frame_errors, surely_better
from difiisr_training.evaluation.metrics import psnr
from difiisr_training.validation import upscaler_of

SIZE = (64, 72)
PRESET = """
name: test
network: {channels: 8, blocks: 1}
sources: [{folder: .}]
batch: 4
crops: {degradation: {thermal: 0, second_order: 0}}
norm: psnr
optimiser: {lr: %s, warmup: 5}
"""


def film(count, step=7, noise=4.0, stripes=8.0):
    """What the lens shows, blurred, and what the camera makes of it: stripes, noise; it pans."""
    rng = np.random.default_rng(0)
    height, width = (4 * side for side in SIZE)
    noise_field = rng.normal(0, 1, (height + 24, width + step * count))
    scene = 12 * gaussian_filter(noise_field, 1.5)
    scene += sum(s * np.sign(gaussian_filter(noise_field, s)) for s in (3, 6, 12))
    scene = 29_000 + 400 * scene / np.abs(scene).max()
    columns, hr, lr = rng.normal(0, stripes, SIZE[1]), [], []
    for i in range(count):
        down = 12 + round(12 * np.sin(i / 3))
        sharp = scene[down : down + height, step * i : step * i + width]
        hr.append(gaussian_filter(sharp, 1.5))
        seen = pillow_resize(hr[-1].astype(np.float32), *SIZE)
        lr.append(np.rint(seen + columns + rng.normal(0, noise, SIZE)).astype(np.uint16))
    return hr, lr


def true_psnr(upscale, hr, lr):
    return np.mean([psnr(upscale(b), a, 800) for a, b in zip(hr, lr, strict=True)])


def test_who_foretells_better_is_nearer_to_the_truth():
    hr, lr = film(4)
    own, sharp = (load_upscaler("difiisr-rt-x4", backend="torch", fidelity=f) for f in (1.0, 0.0))
    noise = np.random.default_rng(1).normal(0, 40, hr[0].shape)
    models = [
        own,
        sharp,
        bicubic,
        lambda frame: bicubic(frame) + noise.astype(np.float32),
        lambda frame: gaussian_filter(bicubic(frame).astype(np.float32), 6),
    ]
    errors = next_frame_errors(lr, models)
    truths = [true_psnr(model, hr, lr) for model in models]
    assert errors.shape == (5, 3)
    assert np.argsort(errors.mean(axis=1)).tolist() == np.argsort(truths)[::-1].tolist()
    assert surely_better(errors[2], errors[0])
    assert not surely_better(errors[0], errors[2])
    assert not surely_better(errors[0], errors[0])


def test_nothing_can_be_judged_where_nothing_moves():
    assert next_frame_errors(film(4, step=0)[1][:1] * 4, [bicubic]).shape == (1, 0)


@pytest.fixture(scope="module")
def camera(tmp_path_factory):
    folder = tmp_path_factory.mktemp("camera")
    hr, lr = film(80)
    for place, frame in enumerate(lr):
        Image.fromarray(frame).save(folder / f"{place:03}.png")
    torch.manual_seed(0)
    save_compact(CompactNetwork(CompactConfig(8, 1, 8)), folder.with_name("begun"), {})
    return folder, hr[-16:], lr[-16:]


@pytest.mark.parametrize(
    ("rate", "iterations", "is_written"), [("3e-3", 20, True), ("0.3", 5, False)]
)
def test_weights_are_written_when_the_truth_is_nearer(
    camera, tmp_path, monkeypatch, difiisr, json_of, rate, iterations, is_written
):
    folder, hr, lr = camera
    preset, out = tmp_path / "preset.yaml", tmp_path / "out"
    preset.write_text(PRESET % rate)
    monkeypatch.setattr(command, "preset_or_file", lambda _: preset)
    begun = folder.with_name("begun")
    options = ["--init", begun, "--out", out, "--iterations", iterations, "--device", "cpu"]
    if is_written:
        assert json_of("adapt", folder, *options)["change_percent"] < 0
    else:
        assert "no sure improvement" in difiisr("adapt", folder, *options, code=1).err
    assert out.exists() == is_written
    average = starting_weights(tmp_path / "out-run")
    fitted = upscaler_of(average)
    begun = load_upscaler(str(begun), backend="torch")
    gain = true_psnr(fitted, hr, lr) - true_psnr(begun, hr, lr)
    assert gain > 0.5 if is_written else gain < -0.5
    if is_written:
        fitted.reset()
        assert np.array_equal(load_upscaler(str(out), backend="torch")(lr[0]), fitted(lr[0]))
