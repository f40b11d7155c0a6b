"""The ablation trains every variant from one start and says what each came to."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from random_vgg import random_vgg
from wave_frames import save_image

from benchmarks.ablation_table import gap_at_equal_lpips
from difiisr_models import load_upscaler
from difiisr_models.compact import CompactConfig, CompactNetwork
from difiisr_models.model_loading import save_compact
from difiisr_ros.commands import train_ablation
from difiisr_training import train as training
from difiisr_training.checkpoints import load_average
from difiisr_training.config import load_config
from difiisr_training.evaluation import peers

CONFIG = """
name: tiny
network: {channels: 8, blocks: 1, time_features: 16}
sources: [{folder: frames, val_share: 0.0}]
crops: {lr_size: 16}
perceptual_weight: 0.5
last_step_share: 1.0
norm: l2
optimiser: {warmup: 0}
guidance:
  {kind: both, corrects: target, gradient_path: fixed_noise, timesteps: [15], vgg: vgg16_relu3_3}
iterations: 2
batch: 2
"""


def command(tmp_path, data, text, *more):
    path = tmp_path / "tiny.yaml"
    path.write_text(text)
    given = ["--data", data, "--out", tmp_path / "out", "--weights", tmp_path, *more]
    return ["train-ablation", path, *given]


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(5)
    for name in ("frames/0.png", "frames/1.png", "judged/0.png", "judged/1.png"):
        scene = np.kron(rng.integers(0, 255, (28, 32)), np.ones((7, 7)))
        save_image(tmp_path / "data" / name, scene.astype(np.uint8))
    return tmp_path / "data"


def test_all_variants_are_trained_judged_and_shown(data, tmp_path, monkeypatch, difiisr):
    monkeypatch.setattr(train_ablation, "METRICS", ("psnr", "ssim"))
    in_torch = {"backend": "torch"}
    monkeypatch.setattr(
        peers, "load_upscaler", lambda *model, **of: load_upscaler(*model, **of | in_torch)
    )
    torch.manual_seed(0)
    start = CompactNetwork(CompactConfig(channels=8, blocks=1, time_features=16))
    torch.nn.init.normal_(start.detail_head.weight)
    save_compact(start, tmp_path / "start", {"name": "start"})
    out, vgg = tmp_path / "out", tmp_path / "vgg16.pth"
    random_vgg("vgg16", vgg)
    arguments = command(
        tmp_path, data, CONFIG, "--init", tmp_path / "start", "--workers", 0, "--vgg", vgg,
        "--sets", "judged", "--device", "cpu", "--seed", 3,
        "--only", "none", "both", "both-sum", "both-strong",
    )  # fmt: skip
    difiisr(*arguments)

    judged = json.loads((out / "evaluation" / "results.json").read_text())
    variants = ["none", "both", "both-sum", "both-strong"]
    assert [model["title"] for model in judged["sets"][0]["models"]] == [
        "bicubic", *(f"{name}@0" for name in variants)
    ]  # fmt: skip
    assert {load_config(out / "runs" / f"{name}.yaml").seed for name in variants} == {3}
    none, both, added, strong = (
        load_average(out / "runs" / name / "checkpoint.pt")[1].state_dict()["detail_head.weight"]
        for name in variants
    )
    assert none.abs().max() < 0.1  # it started from zero
    moved, apart = (both - none).abs().max(), (both - added).abs().max()
    assert apart < 0.1 * moved  # injected and added do the same
    assert apart < 0.1 * (both - strong).abs().max()
    monkeypatch.setattr(training, "learning_rate", None)  # again: everything is there already
    difiisr(*arguments)


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ("stage: distillation", [], "compact networks by diffusion"),
        ("norm: l1", [], "matched"),
        ("", ["--only", "sum"], "no variant sum; there are none, visual, perceptual, both, "),
        ("", ["--detector", "d.onnx"], "go together"),
        ("", ["--sets", "nowhere", "--vgg", "FILE"], "nowhere"),
        ("", ["--sets", "judged"], "--vgg or --sam is needed"),
        ("", ["--sets", "judged", "--vgg", "FILE"], "lpips_squeeze cannot be measured"),
        ("begin_as: rlfn", ["--sets", "judged", "--vgg", "FILE"], "begin_as 'rlfn'"),
        ("perceptual_weight: 0.0", [], "perceptual_weight 0 does not train"),
    ],
)
def test_what_cannot_work_is_said_before_any_training(
    data, tmp_path, difiisr, change, options, said
):
    options = [tmp_path / "tiny.yaml" if word == "FILE" else word for word in options]
    assert said in difiisr(*command(tmp_path, data, CONFIG + change, *options), code=1).err
    assert not (tmp_path / "out").exists()


def test_forms_are_compared_at_equal_lpips_between_the_strengths_of_the_added_losses():
    lpips = {"none": 0.4, "both-sum": 0.3, "both-middle-sum": 0.2, "both-strong-sum": 0.1}
    psnr = {"none": 30.0, "both-sum": 29.5, "both-middle-sum": 28.0, "both-strong-sum": 26.0}
    scores = {
        "lpips_squeeze": lpips | {"both-network": 0.25},
        "psnr": psnr | {"both-network": 29.0},
    }
    columns = {(m, model, 0): [v] for m, of in scores.items() for model, v in of.items()}
    table = pd.DataFrame(columns).rename_axis(columns=[None, "model", "seed"])
    gap = gap_at_equal_lpips(table, "psnr", np.array([0]))
    assert gap == pytest.approx(29.0 - (29.5 + 28.0) / 2)
