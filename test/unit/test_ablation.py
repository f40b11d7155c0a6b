"""The ablation trains every variant from one start and says what each came to."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from random_vgg import random_vgg

from difiisr_models.compact import CompactConfig, CompactNetwork
from difiisr_models.model_loading import save_compact
from difiisr_training import ablation, loop
from difiisr_training.guidance.injection import GuidanceConfig
from difiisr_training.networks import load_average

CONFIG = """
name: tiny
network: {channels: 8, blocks: 1, time_features: 16}
sources: [{folder: frames, val_share: 0.0}]
crops: {lr_size: 16}
perceptual_weight: 0.5
last_step_share: 1.0
guidance:
  {kind: both, mode: gradient, corrects: target, gradient_path: fixed_noise, vgg: vgg16_relu3_3}
iterations: 2
batch: 2
"""


def test_the_variants_are_the_rows_of_tables_3_and_4():
    made = ablation.variants(GuidanceConfig(kind="both", mode="gradient", rho=0.25))
    assert list(made) == ["none", "visual", "perceptual", "both", "both-sum"]
    assert [g.kind for g in made.values()] == ["none", "visual", "perceptual", "both", "both"]
    assert [g.mode for g in made.values()] == ["gradient"] * 4 + ["sum"]
    assert {g.rho for g in made.values()} == {0.25}


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(5)
    for folder in ("frames", "judged"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for i in range(2):
            scene = np.kron(rng.integers(0, 255, (28, 32)), np.ones((7, 7))).astype(np.uint8)
            Image.fromarray(scene).save(tmp_path / "data" / folder / f"{i}.png")
    return tmp_path / "data"


def test_all_variants_are_trained_judged_and_shown(data, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "METRICS", ("psnr", "ssim"))
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    torch.manual_seed(0)
    start = CompactNetwork(CompactConfig(channels=8, blocks=1, time_features=16))
    torch.nn.init.normal_(start.detail_head.weight)
    save_compact(start, tmp_path / "start", {"name": "start"})
    out = tmp_path / "out"
    arguments = [str(tmp_path / "tiny.yaml"), "--data", str(data), "--out", str(out)]
    arguments += ["--init", str(tmp_path / "start"), "--weights", str(tmp_path), "--workers", "0"]
    arguments += ["--vgg", str(random_vgg("vgg16", tmp_path / "vgg16.pth"))]
    arguments += ["--sets", "judged", "--device", "cpu", "--seed", "3"]
    assert ablation.main(arguments) == 0

    written = json.loads((out / "ablation.json").read_text())
    assert written["config"]["seed"] == 3
    assert list(written["means"]["judged"]) == [
        "bicubic", "none@0", "visual@0", "perceptual@0", "both@0", "both-sum@0",
    ]  # fmt: skip
    table = (out / "ablation.md").read_text()
    assert "| none | " in table
    assert "PSNR" in table
    assert Image.open(out / "ablation.png").width > 6 * 190
    weights = {
        name: load_average(out / "runs" / name / "checkpoint.pt")[1].state_dict()
        for name in ("none", "visual", "both-sum")
    }
    detail = {name: state["detail_head.weight"] for name, state in weights.items()}
    assert all(value.abs().max() < 0.1 for value in detail.values())  # they started from zero
    assert not torch.equal(detail["none"], detail["visual"])
    assert not torch.equal(detail["none"], detail["both-sum"])
    monkeypatch.setattr(loop, "training_step", None)  # again: everything is there already
    assert ablation.main(arguments) == 0


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ("stage: distillation", [], "compact networks by diffusion"),
        ("", ["--detector", "d.onnx"], "go together"),
        ("", ["--sets", "nowhere", "--vgg", "FILE"], "nowhere"),
        ("", ["--sets", "judged"], "--vgg or --sam is needed"),
        ("", ["--sets", "judged", "--vgg", "FILE"], "lpips_squeeze cannot be measured"),
        ("begin_as: rlfn", ["--sets", "judged", "--vgg", "FILE"], "begin_as 'rlfn'"),
    ],
)
def test_what_cannot_work_is_said_before_any_training(data, tmp_path, change, options, said):
    (tmp_path / "tiny.yaml").write_text(CONFIG + change)
    arguments = [str(tmp_path / "tiny.yaml"), "--data", str(data), "--out", str(tmp_path / "out")]
    options = [str(tmp_path / "tiny.yaml") if word == "FILE" else word for word in options]
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        ablation.main([*arguments, "--weights", str(tmp_path), *options])
    assert not (tmp_path / "out").exists()


def test_a_network_without_a_perceptual_estimate_is_refused_before_any_training(data, tmp_path):
    config = CONFIG.replace("perceptual_weight: 0.5", "perceptual_weight: 0.0")
    config = config.replace("{kind: both,", "{kind: none,")
    (tmp_path / "tiny.yaml").write_text(config)
    arguments = [str(tmp_path / "tiny.yaml"), "--data", str(data), "--out", str(tmp_path / "out")]
    arguments += ["--weights", str(tmp_path), "--sets", "judged"]
    with pytest.raises(ValueError, match="perceptual_weight 0 does not train"):
        ablation.main([*arguments, "--vgg", str(tmp_path / "tiny.yaml")])
    assert not (tmp_path / "out").exists()
