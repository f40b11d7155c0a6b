"""Training in the latent space of the published autoencoder, with networks of no size."""

from functools import partial

import pytest
import torch
from wave_frames import write_waves

from difiisr_models.published.vq_autoencoder import VQAutoencoder, VQConfig
from difiisr_training.config import from_dict
from difiisr_training.data.images import load_images
from difiisr_training.networks import build_network, build_objective
from difiisr_training.train import make_accelerator, train
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
    for slower, sequence in enumerate("ab"):
        write_waves(folder / "frames" / sequence, 1, (256, 256), slower)
    return folder


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    sizes = VQConfig(channels=32, multipliers=(1, 1, 1), blocks=1, codes=64)
    return VQAutoencoder(sizes)


def run(settings, data, autoencoder, folder, teacher=None, budget=1e9):
    config = from_dict(SETTINGS | settings, "test")
    accelerator, load = make_accelerator(config, "cpu"), partial(load_images, data=data)
    objective = build_objective(config, accelerator.device, autoencoder=autoencoder)
    validate = None
    if config.validate_every:
        validate = Validator(config, load, folder, autoencoder)
    return train(
        config, objective, load, folder, accelerator=accelerator, teacher=teacher,
        initial=teacher, validate=validate, budget_s=budget,
    )  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {"validate_every": 2},
        {"perceptual_weight": 1.0, "guidance": {"kind": "visual"}},
        {
            "stage": "distillation",
            "guidance": {"kind": "visual", "gradient_path": "fixed_noise", "timesteps": [15]},
        },
    ],
)
def test_every_stage_trains_and_resumes_to_the_bit(data, autoencoder, tmp_path, settings):
    teacher = None
    if "stage" in settings:
        torch.manual_seed(1)
        teacher = build_network(from_dict(SETTINGS, "test")).eval()
    whole = run(settings, data, autoencoder, tmp_path / "whole", teacher)
    first, pieces = (
        run(settings, data, autoencoder, tmp_path / "pieces", teacher, budget=0) for _ in range(2)
    )
    weights, unmoved = (state.network.state_dict() for state in (pieces, first))
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert any(not torch.equal(value, unmoved[name]) for name, value in weights.items())
    if "validate_every" in settings:
        assert list((tmp_path / "whole" / "samples").glob("*.png"))
