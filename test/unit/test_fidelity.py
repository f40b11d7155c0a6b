"""The fidelity knob trades error for detail, evenly and without a jump."""

import itertools

import numpy as np
import pytest
import torch

from difiisr_models import load_upscaler
from difiisr_models.compact import CompactConfig, CompactNetwork
from difiisr_models.model_loading import save_compact
from difiisr_training.data.images import list_images, read_counts
from difiisr_training.degradations import pillow_resize
from difiisr_training.evaluation.measures import SQUEEZE_FILE, SQUEEZE_LINEAR_FILE
from difiisr_training.evaluation.metrics import LpipsSqueeze, psnr

KNOB = (1.0, 0.75, 0.5, 0.25, 0.0)


def results(up, frame):
    """The output at each place of the knob; the range tracker starts anew for each."""
    found = []
    for fidelity in KNOB:
        up.change(fidelity=fidelity)
        up.reset()
        found.append(up(frame))
    return found


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    """Heads set by hand: the mean is bicubic, the detail a checkerboard of 0.1."""
    network = CompactNetwork(CompactConfig(channels=8, blocks=1, time_features=16))
    with torch.no_grad():
        network.mean_head.weight.zero_()
        network.mean_head.bias.zero_()
        rows, columns = np.indices((4, 4))
        signs = torch.from_numpy((-1.0) ** (rows + columns)).float()
        network.detail_head.bias.copy_(0.1 * signs.flatten())
    folder = tmp_path_factory.mktemp("weights") / "checkerboard"
    save_compact(network, folder, {})
    return load_upscaler(str(folder), device="cpu", backend="torch")


def test_error_grows_and_the_steps_are_equal_as_the_knob_goes_down(up):
    y, x = np.mgrid[:40, :48]
    frame = (290 + 8 * np.sin(x / 3.1) * np.cos(y / 4.3)).astype(np.float32)
    outputs = results(up, frame)
    errors = [psnr(sr, outputs[0], 16.0) for sr in outputs[1:]]
    assert errors == sorted(errors, reverse=True)
    steps = [np.abs(b - a).mean() for a, b in itertools.pairwise(outputs)]
    assert min(steps) > 0.01
    np.testing.assert_allclose(steps, np.mean(steps), rtol=0.02)


def test_shipped_weights_trade_psnr_for_lpips_on_validation_images(shared_data, shared_weights):
    lpips = LpipsSqueeze(shared_weights(SQUEEZE_FILE), shared_weights(SQUEEZE_LINEAR_FILE))
    up = load_upscaler("difiisr-rt-x4", device="cpu", backend="torch")
    table = []
    for path in list_images(shared_data / "hit_uav" / "val")[::24]:
        hr = read_counts(path)[:256, :320]
        outputs = results(up, pillow_resize(hr, 64, 80))
        table.append([[psnr(sr, hr, 255), lpips(sr, hr, 255)] for sr in outputs])
    means = np.mean(table, axis=0)
    for fidelity, (decibel, distance) in zip(KNOB, means, strict=True):
        print(f"fidelity {fidelity:.2f}: {decibel:.3f} dB, LPIPS-squeeze {distance:.4f}")
    assert (np.diff(means, axis=0) < 0).all()
