"""Training shared by processes gives the weights of one process."""

import os
import subprocess
import sys

import pytest
import torch
from wave_frames import write_waves

from difiisr_ros.cli import main as difiisr
from difiisr_training.checkpoints import load_average

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no distributed package"
)

CONFIG = """
name: tiny
network: {channels: 8, blocks: 1, time_features: 16}
sources: [{folder: frames, val_share: 0.0}]
crops: {lr_size: 16}
optimiser: {lr: 0.001, warmup: 2}
iterations: 8
batch: 4
log_every: 4
"""


def test_two_processes_train_the_weights_of_one(tmp_path):
    write_waves(tmp_path / "data" / "frames", 2)
    config = tmp_path / "tiny.yaml"
    config.write_text(CONFIG)
    command = [str(config), "--data", str(tmp_path / "data"), "--workers", "0"]
    assert difiisr(["train", *command, "--run", str(tmp_path / "one")]) == 0
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    verb = ["--", "difiisr_ros.cli", "train", *command, "--run", str(tmp_path / "two")]
    finished = subprocess.run(
        [sys.executable, *torchrun, *verb],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    _, one, _ = load_average(tmp_path / "one" / "checkpoint.pt")
    _, two, iteration = load_average(tmp_path / "two" / "checkpoint.pt")
    assert iteration == 8
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)
