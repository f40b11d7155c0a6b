"""Training can be stopped, resumed and trusted."""

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from wave_frames import write_waves

from difiisr_models import load_upscaler
from difiisr_models.compact import CompactConfig, CompactNetwork
from difiisr_models.model_loading import save_compact
from difiisr_models.published.vq_autoencoder import VQAutoencoder, VQConfig
from difiisr_training import checkpoints
from difiisr_training import train as training
from difiisr_training.config import OptimiserConfig, from_dict, load_config
from difiisr_training.data.images import load_images
from difiisr_training.evaluation.peers import Rlfn
from difiisr_training.losses import build_loss, distance
from difiisr_training.recipes.begin_as_rlfn import begin
from difiisr_training.train import build_network, learning_rate, make_accelerator
from difiisr_training.validation import Validator

SETTINGS = {
    "name": "tiny",
    "network": {"channels": 8, "blocks": 1, "time_features": 16},
    "sources": [{"folder": "frames", "val_share": 0.0}],
    "crops": {"lr_size": 16},
    "optimiser": {"lr": 0.001, "warmup": 2},
    "iterations": 12,
    "batch": 3,
    "checkpoint_every": 5,
    "log_every": 4,
}
PUBLISHED = {
    "published": {
        "channels": 32, "multipliers": [1, 1], "blocks": 1, "swin_channels": 32, "heads": 2,
        "mlp_ratio": 1, "latent_size": 16,
    },
    "norm": "l2",
}  # fmt: skip
VISUAL = {"perceptual_weight": 0.5, "guidance": {"kind": "visual"}}


def configured(**changes):
    return from_dict(SETTINGS | changes, "test")


@pytest.fixture
def data(tmp_path):
    write_waves(tmp_path / "data" / "frames", 3)
    for slower, sequence in enumerate("abcd"):
        write_waves(tmp_path / "data" / "scenes" / sequence, 1, (256, 256), slower)
    return tmp_path / "data"


@pytest.fixture
def fresh_accelerator():
    """A process has one precision for all its accelerators, until this."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def run(config, data, folder, budget=1e9, teacher=None):
    torch.manual_seed(0)
    sizes = VQConfig(channels=32, multipliers=(1, 1, 1), blocks=1, codes=64)
    coder = VQAutoencoder(sizes) if config.published else None
    accelerator, load = make_accelerator(config, "cpu"), partial(load_images, data=data)
    loss_of = build_loss(config, accelerator.device, autoencoder=coder, teacher=teacher)
    validate = Validator(config, load, folder, coder) if config.validate_every else None
    task = training.images_task(config, loss_of, load, accelerator)
    return training.train(config, task, folder, accelerator, teacher, validate, budget)


def command(tmp_path, data, *more, **changes):
    """Arguments of ``difiisr train`` on these settings."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | changes))
    run = [] if "--run" in more else ["--run", tmp_path / "run"]
    given = ["--data", data, "--workers", 0, "--device", "cpu", *run, *more]
    return ["train", path, *given]


def teacher_of(config):
    torch.manual_seed(3)
    network = build_network(config)
    if config.published is None:
        torch.nn.init.normal_(network.detail_head.weight, std=0.01)
    return network.eval().requires_grad_(False)


def assert_equal(network, other):
    for name, value in network.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("log_every", [8, 100])
def test_a_diverged_run_keeps_its_last_good_checkpoint(data, tmp_path, monkeypatch, log_every):
    """Whatever is due first, the check of the loss, a checkpoint or the last save."""
    monkeypatch.setattr(training, "learning_rate", lambda *_: 1e15)  # more than may be asked for
    changes = {"optimiser": {"grad_clip": 1e9}, "log_every": log_every, "checkpoint_every": 1}
    with pytest.raises(FloatingPointError, match=r"the last checkpoint in .* is kept"):
        run(configured(**changes), data, tmp_path / "run")
    saved = checkpoints.load_average(tmp_path / "run" / "checkpoint.pt")[1]
    assert all(value.isfinite().all() for value in saved.parameters())


def test_a_checkpoint_goes_on_with_its_own_settings_and_the_defaults_of_what_is_new(data, tmp_path):
    run(configured(), data, tmp_path / "run", budget=0)
    path = tmp_path / "run" / "checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    del saved["config"]["crops"]["inverted_share"]
    saved["config"]["image_teacher"] = "none"  # there was one once
    torch.save(saved, path)
    with pytest.raises(ValueError, match="batch"):
        run(configured(batch=4), data, tmp_path / "run")
    assert run(configured(), data, tmp_path / "run", budget=0).iteration == 2
    path.write_bytes(path.read_bytes()[:-5000])
    for read in (checkpoints.load_average, lambda path: run(configured(), data, path.parent)):
        with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
            read(path)


def test_distillation_shapes_fidelity_0_and_fidelity_1_stays_the_mean(data, tmp_path):
    teacher = teacher_of(configured())
    with pytest.raises(ValueError, match="'distillation' needs a teacher"):
        run(configured(stage="distillation"), data, tmp_path / "none")
    with pytest.raises(ValueError, match="'diffusion' has no teacher"):
        run(configured(), data, tmp_path / "wrong", teacher=teacher)
    for weight in (0.5, 0.0):
        settings = configured(stage="distillation", iterations=2, perceptual_weight=weight)
        found = run(settings, data, tmp_path / str(weight), teacher=teacher).network
        assert torch.equal(found.detail_head.weight, teacher.detail_head.weight) is (weight == 0)
        assert not torch.equal(found.mean_head.weight, teacher.mean_head.weight)


@pytest.mark.parametrize(("place", "scale"), [("last", 1 / 2.2181), ("first", 1 / 1.0008)])
def test_the_learned_inverse_is_told_step_0_and_scaled_as_asked(place, scale):
    """1 / sqrt(kappa^2 eta_t + 1) at t = T, as in the public reference, or at t = 1."""
    told = []

    class Watched(torch.nn.Module):
        def estimates(self, scaled, y, lr, index):
            told.append((scaled.abs().max().item(), index.tolist()))
            return scaled, scaled

    distilled = configured(stage="distillation", perceptual_weight=1.0, inverse_scaled_at=place)
    network = Watched()
    loss = build_loss(distilled, torch.device("cpu"), teacher=network)(network)
    hr = torch.ones(1, 1, 64, 64)
    loss(hr[..., :16, :16], hr, torch.tensor([14]), torch.zeros(1, 16, 16, 16), False)
    of_truth = [largest for largest, index in told if index == [0]][-1]
    assert of_truth == pytest.approx(scale, rel=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stage": "distillation", "perceptual_weight": 1.0},
        {"precision": "bf16", "optimiser": {"grad_clip": None, "ema_warmup": False}},
        VISUAL | {"norm": "l2", "guidance": {"kind": "visual", "corrects": "target", "rho": 0.1}},
        VISUAL
        | {"norm": "psnr", "guidance": {"kind": "visual", "mode": "sum", "weight_pattern": 9.0}},
        PUBLISHED
        | {"sources": [{"folder": "scenes", "val_share": 0.5}], "batch": 2, "validate_every": 2},
        PUBLISHED | VISUAL | {"batch": 2},
        PUBLISHED
        | {"stage": "distillation", "batch": 2}
        | {"guidance": {"kind": "visual", "gradient_path": "fixed_noise", "timesteps": [15]}},
    ],
)
@pytest.mark.usefixtures("fresh_accelerator")
def test_every_objective_resumes_to_the_bit(data, tmp_path, settings):
    config = configured(iterations=2, **settings)
    teacher = teacher_of(config) if config.stage == "distillation" else None
    whole = run(config, data, tmp_path / "whole", teacher=teacher)
    first, pieces = (
        run(config, data, tmp_path / "pieces", budget=0, teacher=teacher) for _ in range(2)
    )
    assert (first.iteration, pieces.iteration) == (1, 2)
    assert_equal(whole.network, pieces.network)
    assert_equal(whole.ema, pieces.ema)
    assert any(
        not torch.equal(*pair)
        for pair in zip(first.network.parameters(), pieces.network.parameters(), strict=True)
    )


def test_a_run_begins_as_the_published_network(data, tmp_path, difiisr):
    """With a rate of 0 the run ends with what it began with: weights fitted to RLFN."""
    torch.save(Rlfn().state_dict(), tmp_path / "rlfn_x4.pth")
    changes = {"network": {**SETTINGS["network"], "blocks": 6}, "optimiser": {"lr": 0.0}}
    given = command(tmp_path, data, "--budget", "0s", begin_as="rlfn", **changes)
    assert "begin_as 'rlfn' needs --peers" in difiisr(*given, code=1).err
    told = difiisr(*given, "--init", tmp_path / "any", code=1).err
    assert "both say what the run begins with" in told
    difiisr(*given, "--peers", tmp_path)
    begun = load_config(tmp_path / "tiny.yaml")
    wanted = begin(begun, tmp_path, partial(load_images, data=data))
    _, found, _ = checkpoints.load_average(tmp_path / "run" / "checkpoint.pt")
    for name, value in wanted.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, msg=name)


def test_in_decibels_an_error_of_the_same_share_counts_the_same():
    rng = torch.Generator().manual_seed(0)
    image, error = torch.randn(2, 1, 16, 8, 8, generator=rng)
    for contrast in (1, 0.1):
        near, nearer = (
            distance(contrast * image, contrast * (image + share * error), "psnr").item()
            for share in (0.2, 0.1)
        )
        assert near - nearer == pytest.approx(2 * np.log10(2), abs=0.05)  # less the rounding


def test_a_run_lowers_the_loss_is_validated_on_unseen_frames_and_exports_its_average(
    data, tmp_path, difiisr
):
    sources = [{"folder": "scenes", "val_share": 0.5}]
    changes = {"sources": sources, "perceptual_weight": 0.5, "validate_every": 25, "log_every": 15}
    given = command(tmp_path, data, "--export", tmp_path / "out", iterations=45, **changes)
    difiisr(*given)
    lines = checkpoints.read_journal(tmp_path / "run", checkpoints.STATISTICS_NAME)
    assert [line["iteration"] for line in lines] == [15, 30, 45]
    assert lines[-1]["loss"] < lines[0]["loss"]
    judged = checkpoints.read_journal(tmp_path / "run", "validation.jsonl")
    assert [line["iteration"] for line in judged] == [25, 45]
    assert judged[0]["psnr_bicubic"] == judged[1]["psnr_bicubic"] > 30
    assert judged[0]["psnr_fidelity_1"] != judged[1]["psnr_fidelity_1"]
    assert judged[1]["psnr_fidelity_1"] != judged[1]["psnr_fidelity_0"]
    pictures = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert pictures == ["0000025.png", "0000045.png"]
    up = load_upscaler(str(tmp_path / "out"), device="cpu", backend="torch")
    assert up(np.zeros((16, 16), np.uint8)).shape == (64, 64)
    average = checkpoints.load_average(tmp_path / "run" / "checkpoint.pt")[1]
    assert_equal(checkpoints.starting_weights(tmp_path / "out"), average)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["training"]["iterations"] == 45
    assert manifest["training"]["sources"][0]["folder"] == "scenes"


def test_weights_are_not_exported_over_something_else(data, tmp_path, difiisr):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("x")
    given = command(tmp_path, data, "--budget", "0s", "--export")
    for target in (taken, taken / "thesis.txt"):
        assert "--export" in difiisr(*given, target, code=1).err
        assert not (tmp_path / "run").exists()  # said before anything is trained
    for told in ("beginning with fresh weights", "going on"):  # and exports anew
        assert told in difiisr(*given, tmp_path / "model").err


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("name: [a", r"wrong\.yaml is no YAML"),
        ("name: !!python/object/apply:os.system [true]", "no YAML"),
        ("a: " + "[" * 20_000, "nested"),
        ("optimiser: {lr: 1.0e+308}", "optimiser.lr"),
        ("batchsize: 3", "batchsize: Unexpected"),
        ("sources: []", "sources"),
        ("image_teacher: rlfn", "image_teacher: Unexpected"),
        ("optimiser: {ema: 2}", "optimiser.ema: .*less than or equal to 1, got 2"),
        ("network: {channel: 8}", "network.channel: Unexpected"),
        ("crops: {degradation: {camera: {netd: [0.02, 0.001]}}}", "netd.*0.02, 0.001"),
        ("crops: {degradation: {bicubic: 0, thermal: 0, second_order: 0}}", "weights"),
        ("crops: {degradation: {bicubic: -1}}", "degradation.bicubic"),
        ("crops: {degradation: {camera: {jpeg_quality: [30, 200]}}}", "jpeg_quality"),
        ("guidance: {kind: visual}", "perceptual_weight 0 does not train"),
        ("published: {}\nguidance: {kind: visual}", "perceptual_weight 0 does not train"),
        ("perceptual_weight: 1\nguidance: {kind: visual, timesteps: [16]}", "1..15"),
        ("perceptual_weight: 1\nguidance: {kind: visual, start_iteration: 12}", "after the last"),
        ("stage: distillation\nperceptual_weight: 1\nguidance: {kind: visual, timesteps: [1]}",
         "t = 15 alone"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_by_name(tmp_path, change, text):
    path = tmp_path / "wrong.yaml"
    path.write_text(f"{yaml.safe_dump(SETTINGS)}{change}\n")
    with pytest.raises(ValueError, match=text):
        load_config(path)


def test_a_run_goes_on_after_its_beginning_is_gone_and_its_journal_was_cut(data, tmp_path, difiisr):
    save_compact(CompactNetwork(CompactConfig(8, 1, 16)), tmp_path / "start", {})
    given = command(tmp_path, data, "--init", tmp_path / "start")
    difiisr(*given, "--budget", "0s")
    shutil.rmtree(tmp_path / "start")
    (tmp_path / "run" / "statistics.jsonl").write_text('{"iteration": 1, "lo')
    assert "12 of 12 iterations" in difiisr(*given).out
    journal = checkpoints.read_journal(tmp_path / "run", checkpoints.STATISTICS_NAME)
    assert [line["iteration"] for line in journal] == [4, 8, 12]


def test_an_interrupted_command_says_so_when_all_is_saved(data, tmp_path, monkeypatch, difiisr):
    """`train A && train B` must not go on with half a run; the iteration is still finished."""

    def interrupted_rate(iteration, *settings):
        signal.raise_signal(signal.SIGINT)
        return learning_rate(iteration, *settings)

    monkeypatch.setattr(training, "learning_rate", interrupted_rate)
    handler = signal.getsignal(signal.SIGINT)
    difiisr(*command(tmp_path, data, "--export", tmp_path / "model"), code=130)
    assert signal.getsignal(signal.SIGINT) is handler
    assert checkpoints.load_average(tmp_path / "run" / "checkpoint.pt")[2] == 1
    assert checkpoints.starting_weights(tmp_path / "model")


@pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no distributed package"
)
def test_two_processes_train_the_weights_of_one(data, tmp_path, difiisr):
    changes = {"iterations": 8, "batch": 4}
    difiisr(*command(tmp_path, data, **changes))
    two = command(tmp_path, data, "--run", tmp_path / "two", **changes)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    finished = subprocess.run(
        [sys.executable, *torchrun, "--", "difiisr_ros.cli", *map(str, two)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    _, one, _ = checkpoints.load_average(tmp_path / "run" / "checkpoint.pt")
    _, other, iteration = checkpoints.load_average(tmp_path / "two" / "checkpoint.pt")
    assert iteration == 8
    for name, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_learning_rate_warms_up_and_falls_to_its_share():
    config = OptimiserConfig(lr=1.0, warmup=10, final_lr_share=0.1)
    rates = [learning_rate(i, config, 1000) for i in range(1001)]
    assert [rates[0], max(rates), rates[1000]] == pytest.approx([0.1, 1.0, 0.1], rel=1e-2)
