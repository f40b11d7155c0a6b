"""Training in the latent space of the published autoencoder, with networks of no size."""

import numpy as np
import pytest
import torch
from PIL import Image

from difiisr_models.vq_autoencoder import VQAutoencoder, VQConfig
from difiisr_training.cli import make_accelerator
from difiisr_training.config import from_dict
from difiisr_training.loop import train
from difiisr_training.networks import TrainingFiles, build_objective
from difiisr_training.validation import Validator

SETTINGS = {
    "name": "tiny",
    "published": {
        "channels": 32, "multipliers": [1, 1], "blocks": 1, "swin_channels": 32, "heads": 2,
        "mlp_ratio": 1, "latent_size": 16,
    },
    "sources": [{"folder": "frames", "val_share": 0.5}],
    "crops": {"lr_size": 16, "gain_jitter": 1.0, "offset_jitter": 0.0, "inverted_share": 0.0},
    "iterations": 2,
    "batch": 2,
    "norm": "l2",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    y, x = np.mgrid[:256, :256]
    for i, sequence in enumerate("ab"):
        (folder / "frames" / sequence).mkdir(parents=True)
        waves = 127 + 120 * np.sin(x / (3 + i)) * np.cos(y / (9 - i))
        Image.fromarray(waves.astype(np.uint8)).save(folder / "frames" / sequence / "0.png")
    return folder


@pytest.fixture(scope="module")
def files():
    torch.manual_seed(0)
    sizes = VQConfig(channels=32, multipliers=(1, 1, 1), blocks=1, codes=64)
    return TrainingFiles(autoencoder=VQAutoencoder(sizes))


def run(settings, data, files, folder, teacher=None, budget=1e9):
    config = from_dict(SETTINGS | settings, "test")
    accelerator = make_accelerator(config, "cpu")
    objective = build_objective(config, files, accelerator.device)
    validate = None
    if config.validate_every:
        validate = Validator(config, data, folder, files.autoencoder)
    return train(
        config, objective, data, folder, accelerator=accelerator, teacher=teacher,
        initial=teacher, validate=validate, budget_s=budget,
    )  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {"validate_every": 2},
        {"perceptual_weight": 1.0, "guidance": {"kind": "visual"}},
        {"perceptual_weight": 1.0, "guidance": {"kind": "visual", "mode": "sum"}},
        {"stage": "distillation"},
        {
            "stage": "distillation",
            "guidance": {"kind": "visual", "gradient_path": "fixed_noise", "timesteps": [15]},
        },
    ],
)
def test_every_stage_trains_and_resumes_to_the_bit(data, files, tmp_path, settings):
    teacher = None
    if "stage" in settings:
        teacher = run({}, data, files, tmp_path / "teacher").ema.eval()
    whole = run(settings, data, files, tmp_path / "whole", teacher)
    for _ in range(2):
        pieces = run(settings, data, files, tmp_path / "pieces", teacher, budget=0)
    start = run(settings | {"optimiser": {"lr": 0.0}}, data, files, tmp_path / "still", teacher)
    weights, unmoved = (state.network.state_dict() for state in (pieces, start))
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert any(not torch.equal(value, unmoved[name]) for name, value in weights.items())
    if "validate_every" in settings:
        assert list((tmp_path / "whole" / "samples").glob("*.png"))
